"""Starting from a bundle: what a recipe may say then, and what its run takes from the bundle."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from shapes import decoder_config

from pardalis.bundle import Bundle, load
from pardalis.codec import Codec
from pardalis.data import Shards
from pardalis.digests import file_digest
from pardalis.documents import Document, Text
from pardalis.errors import BundleError, ConfigError
from pardalis.model import Decoder, initialise
from pardalis.pipeline import load_codec, load_recipe, run, stages_of
from pardalis.pipeline.plan import plan
from pardalis.pipeline.start import given_content, start_config
from pardalis.tokens import Vocabulary

RECIPE = """
name = "further"
start_from = "base"
[[sources]]
name = "pairs"
reader = "jsonl"
path = "pairs.jsonl"
[prepare]
row_tokens = 32
[training]
batch_rows = 4
[training.schedule]
learning_rate = 1e-3
warmup_steps = 1
[training_loop]
steps = 2
"""

CONTEXT = 48


@pytest.fixture
def base_codec(codec) -> Codec:
    """A codec whose ids are not where those of a new one are."""
    old = codec.vocabulary
    first_code = old.size - old.n_codes
    vocabulary = Vocabulary(
        modalities={
            "image": range(first_code, old.size),
            "text": range(old.image.start, first_code),
        },
        special={**old.special, "bos": 7},
    )
    return Codec(vocabulary, codec.text_tokenizer, codec.image_tokenizer)


@pytest.fixture
def folder(tmp_path, base_codec) -> Path:
    """A folder with a recipe, its source, and the bundle that it starts from."""
    config = decoder_config(
        vocab_size=base_codec.vocabulary.size, context=CONTEXT, d_model=16, n_layers=1, n_heads=2,
        n_kv_heads=1, d_ff=16, dropout=0.25, rope_theta=77.0,
    )  # fmt: skip
    Bundle(initialise(Decoder(config), 0), base_codec, {"recipe": "base"}).save(tmp_path / "base")
    (tmp_path / "pairs.jsonl").write_text('{"name": "a", "segments": [{"text": "an owl"}]}\n')
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def recipe_of(folder: Path, *changes: str):
    return load_recipe(folder / "recipe.toml", changes)


def test_the_stages_lack_the_tokenizers(folder):
    names = [stage.name for stage in stages_of(recipe_of(folder))]
    assert names == ["prepare", "train", "sample", "report"]
    with pytest.raises(ConfigError, match="This recipe has no stage 'image_tokenizer'"):
        run(recipe_of(folder), folder / "run", only=("image_tokenizer",))


def test_the_path_is_relative_to_the_recipe(folder, monkeypatch):
    monkeypatch.chdir("/")
    assert recipe_of(folder).start_from == folder / "base"
    assert recipe_of(folder, "start_from=/elsewhere").start_from == Path("/elsewhere")


def test_what_is_planned_are_the_rows_of_the_recipe(folder):
    made = plan(recipe_of(folder))
    assert made.row_tokens == 32
    whole = plan(recipe_of(folder, f"prepare.row_tokens={CONTEXT}"))
    assert made.seconds_per_step < whole.seconds_per_step
    assert made.memory.activations < whole.memory.activations


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("text_tokenizer.vocab_size=300", "text_tokenizer"),
        ("image_tokenizer.preset=tiny", "image_tokenizer"),
        ("image_tokenizer_training.batch_images=8", "image_tokenizer_training"),
        ("image_tokenizer_loop.steps=8", "image_tokenizer_loop"),
        ("image_tokenizer_images=8", "image_tokenizer_images"),
        ("model.preset=tiny", "model.preset"),
        ("model.d_model=16", "model.d_model"),
        ("model.context=16", "model.context"),
    ],
)
def test_what_the_bundle_decides_cannot_be_said_twice(folder, change, name):
    if change.startswith("image_tokenizer_training"):  # it needs a schedule to be one at all
        change = "image_tokenizer_training={schedule={learning_rate=1e-3, warmup_steps=1}}"
    with pytest.raises(ConfigError, match=f"^{re.escape(name)} cannot stand beside start_from"):
        recipe_of(folder, change)


@pytest.mark.parametrize(
    "name", ["image_tokenizer", "image_tokenizer_training", "image_tokenizer_loop", "model"]
)
def test_without_a_bundle_the_tables_are_needed(folder, name):
    tables = {
        "image_tokenizer": "[image_tokenizer]\n",
        "image_tokenizer_training": "[image_tokenizer_training.schedule]\n"
        "learning_rate = 1e-3\nwarmup_steps = 1\n",
        "image_tokenizer_loop": "[image_tokenizer_loop]\nsteps = 1\n",
        "model": "[model]\n",
    }
    whole = RECIPE.replace('start_from = "base"\n', "")
    (folder / "recipe.toml").write_text(whole + "".join(tables.values()))
    recipe = recipe_of(folder)
    assert recipe.trained_text_tokenizer.vocab_size == 2048
    del tables[name]
    (folder / "recipe.toml").write_text(whole + "".join(tables.values()))
    otherwise = "leave out prepare" if name == "model" else "name a trained bundle"
    with pytest.raises(ConfigError, match=f"^{name} is missing; set it, or {otherwise}"):
        recipe_of(folder)


def config_of_start(recipe):
    run = recipe.model_run
    return start_config(run.model, run.prepare.row_tokens)


def test_the_shape_is_the_bundles_with_the_recipes_dropout(folder):
    config = config_of_start(recipe_of(folder))
    assert (config.d_model, config.position.theta) == (16, 77.0)
    assert (config.context, config.dropout) == (CONTEXT, 0.25)
    assert config_of_start(recipe_of(folder, "model.dropout=0.5")).dropout == 0.5
    assert recipe_of(folder).prepare.row_tokens < CONTEXT


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            f"prepare.row_tokens={CONTEXT + 1}",
            ConfigError,
            f"prepare.row_tokens is {CONTEXT + 1}, but the model in .*base has a context of "
            f"{CONTEXT}; set prepare.row_tokens to at most that",
        ),
        ("model.dropout=1.5", ConfigError, r"model.dropout must lie in \[0, 1\), got 1.5"),
        ("start_from=none", BundleError, "No bundle at .*none; give the path"),
        ("start_from=run/bundle", ConfigError, "which this run would replace by its own bundle"),
    ],
)
def test_a_wrong_beginning_is_told_before_anything_runs(folder, change, error, message):
    with pytest.raises(error, match=message):
        run(recipe_of(folder, change), folder / "run", only=("prepare",))
    assert not (folder / "run").exists()


def test_the_resolved_recipe_is_the_recipe(folder):
    run(recipe_of(folder, "model.dropout=0.5"), folder / "run", only=("prepare",))
    resolved = load_recipe(folder / "run" / "recipe.toml")
    assert resolved == recipe_of(folder, "model.dropout=0.5")
    assert resolved.image_tokenizer is None


def test_documents_get_the_ids_of_the_bundle(folder, base_codec):
    run(recipe_of(folder), folder / "run", only=("prepare",))
    shards = Shards.open(folder / "run" / "shards" / "pairs", base_codec.fingerprint)
    expected = base_codec.encode(Document((Text("an owl"),)))
    assert shards.document(0) == expected
    assert expected.ids[0] == 7
    assert load_codec(folder / "run").vocabulary == base_codec.vocabulary


TEMPLATE = """\
{%- for message in messages %}{{ message.role + ': ' + message.content + '<end_turn>' }}
{%- endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""


def test_the_bundle_that_a_run_writes_keeps_the_chat_template(folder, base_codec):
    """Conversations are prepared by it, and a changed template prepares them again."""
    (folder / "base" / "chat_template.jinja").write_text(TEMPLATE)
    turns = [{"text": "owl?", "role": "user", "weight": 0}, {"text": "yes", "role": "assistant"}]
    (folder / "pairs.jsonl").write_text(json.dumps({"name": "a", "segments": turns}) + "\n")
    recipe = recipe_of(folder)
    records = run(recipe, folder / "run", only=("prepare", "train"))
    bundle = load(folder / "run" / "bundle")
    assert bundle.codec.chat_template.source == TEMPLATE
    [line, said] = bundle.codec.render_weighted(
        Shards.open(folder / "run" / "shards" / "pairs", bundle.codec.fingerprint).document(0)
    ).splitlines()
    assert line == "[weight 0] user: owl?<end_turn>assistant: "
    assert said == "[weight 1] yes<end_turn>"
    (folder / "base" / "chat_template.jinja").write_text(TEMPLATE + "!")
    again = run(recipe, folder / "run", only=("prepare",))
    assert again[0].identity != records[0].identity


def later(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def other_weights(path: Path) -> None:
    """Change the last number, and neither size nor time."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def licensed(path: Path) -> None:
    (path.parent / "LICENCES.md").write_text("# Licences\n")


def described(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"made_by": {}}))


@pytest.mark.parametrize(
    ("name", "change", "differs"),
    [
        ("model.safetensors", other_weights, True),
        ("model.safetensors", later, False),
        ("image_tokenizer/model.safetensors", other_weights, True),
        ("image_tokenizer/model.safetensors", later, False),
        ("bundle.json", described, True),
        ("bundle.json", later, False),
        ("text_tokenizer.json", later, False),
        ("bundle.json", licensed, False),
    ],
)
def test_another_bundle_is_noticed(folder, name, change, differs):
    recipe = recipe_of(folder)

    def identity() -> str:
        [record] = run(recipe, folder / "run", only=("prepare",))
        return record.identity

    before, content = identity(), given_content(recipe, file_digest)
    assert identity() == before
    change(folder / "base" / name)
    assert (identity() != before) == differs == (given_content(recipe, file_digest) != content)


def test_a_moved_bundle_is_the_same(folder):
    before = given_content(recipe_of(folder), file_digest)
    shutil.copytree(folder / "base", folder / "moved", copy_function=shutil.copyfile)
    moved = recipe_of(folder, "start_from=moved")
    assert given_content(moved, file_digest) == before
