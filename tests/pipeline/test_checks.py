"""Mistakes in a recipe are found before the first stage, on every form of recipe."""

import json
from pathlib import Path

import own_objectives
import pytest
from shapes import decoder_config

from pardalis import bundle as bundles
from pardalis.bundle import Bundle
from pardalis.errors import BundleError, ConfigError, DataError, PardalisError
from pardalis.model import Decoder, initialise
from pardalis.objectives import OBJECTIVES
from pardalis.pipeline import dry_run, load_recipe, run

TOKENIZERS = """
[image_tokenizer]
[image_tokenizer_training.schedule]
learning_rate = 1e-3
[image_tokenizer_loop]
steps = 100
"""
TRAINING = """
[prepare]
row_tokens = 128
[training]
batch_rows = 4
[training.schedule]
learning_rate = 1e-3
[training_loop]
steps = 100
"""
SOURCES = """
[[sources]]
name = "owls"
reader = "jsonl"
path = "owls.jsonl"
[[heldout]]
name = "unseen"
reader = "jsonl"
path = "unseen.jsonl"
"""
OWN = 'name = "own"\n' + SOURCES + TOKENIZERS + "[model]\n" + TRAINING
TOKENIZERS_ONLY = 'name = "tokenizers"\n' + SOURCES + "[text_tokenizer]\n" + TOKENIZERS
FURTHER = 'name = "further"\nstart_from = "base"\n' + SOURCES + TRAINING
GIVEN = 'name = "given"\nimage_tokenizer_from = "vq"\n' + SOURCES + "[model]\n" + TRAINING
SHARED = 'name = "shared"\ntokenizers_from = "base"\n' + SOURCES + "[model]\n" + TRAINING
CHAINED = 'name = "chained"\nstart_from = "own.toml"\n' + SOURCES + TRAINING


@pytest.fixture
def folder(tmp_path: Path, codec) -> Path:
    """Recipes of several forms, their sources, and what they are given."""
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=128, d_model=16, n_layers=1, n_heads=2,
        n_kv_heads=1, d_ff=16,
    )  # fmt: skip
    Bundle(initialise(Decoder(config), 0), codec, {"recipe": "base"}).save(tmp_path / "base")
    codec.image_tokenizer.save(tmp_path / "vq")
    (tmp_path / "owl.png").write_bytes(b"an owl, which no check decodes")
    for name in ("owls", "unseen"):
        segments = [{"text": "an owl"}, {"image": "owl.png"}]
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"segments": segments}) + "\n")
    for text in (OWN, TOKENIZERS_ONLY, FURTHER, GIVEN, SHARED, CHAINED):
        name = text.split('"')[1]
        (tmp_path / f"{name}.toml").write_text(text)
    return tmp_path


def write_pairs(folder: Path) -> None:
    asked = [{"text": "an owl", "role": "user"}, {"image": "owl.png", "role": "user"}]
    chosen, rejected = ([{"text": text, "role": "assistant"}] for text in ("yes", "no"))
    line = json.dumps({"prompt": asked, "chosen": chosen, "rejected": rejected})
    for name in ("owls", "unseen"):
        (folder / f"{name}.jsonl").write_text(line + "\n")


FORMS = ("own", "tokenizers", "further", "given", "shared")


def refused(folder: Path, form: str, *changes: str) -> str:
    """Return the message with which a dry run and a run refuse a recipe before any stage."""
    recipe = load_recipe(folder / f"{form}.toml", changes)
    run_folder = folder / "runs" / recipe.name
    with pytest.raises(PardalisError) as foreseen:
        dry_run(recipe, run_folder, with_parents=True)
    with pytest.raises(type(foreseen.value)) as found:
        run(recipe, run_folder, with_parents=True)
    assert str(found.value) == str(foreseen.value)
    assert not list(folder.glob("runs/*/stages.json"))  # no stage began, of a parent neither
    return str(found.value)


@pytest.mark.parametrize("form", [*FORMS, "chained"])
def test_a_recipe_without_mistakes(folder: Path, form: str):
    recipe = load_recipe(folder / f"{form}.toml")
    decisions = dry_run(recipe, folder / "runs" / recipe.name, with_parents=True)
    assert {decision.action for decision in decisions} == {"run"}
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("form", ["own", "further", "given", "shared", "chained"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.schedule.warmup_steps=100", "training: warmup_steps (100) and decay_steps (0)"),
        ("parallel.tensor=3", "tensor = 3 needs a multiple of 3 processes"),
        ("parallel.shard=2", "shard = 2 with tensor = 1 needs a multiple of 2 processes"),
        ("heldout.0.path=nowhere.jsonl", "nowhere.jsonl"),
        ("sources.0.path=nowhere.jsonl", "nowhere.jsonl"),
        (
            "curriculum=[{from_step=0,weights={owls=1}}, {from_step=100,weights={owls=2}}]",
            "curriculum.1.from_step is 100, but the run ends after training_loop.steps = 100",
        ),
        ("heldout.0.reader=pairs", "Some of the sources have the reader 'pairs' and others do not"),
    ],
)
def test_of_a_model(folder: Path, form: str, change: str, message: str):
    assert message in refused(folder, form, change)


@pytest.mark.parametrize("form", ["own", "further", "given"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["training.objective.modality_weights.audio=1"],
            "modality_weights",
        ),
        (
            ["sources.0.reader=pairs", "heldout.0.reader=pairs"],
            "training.objective.kind = 'next_token' learns from 1 rows at a time, and the sources "
            "give 2",
        ),
        (["training.objective={kind='preference'}"], "learns from 2 rows at a time"),
    ],
)
def test_of_an_objective(folder: Path, monkeypatch, form: str, changes: list[str], message: str):
    config = own_objectives.PreferenceConfig
    monkeypatch.setitem(OBJECTIVES, "preference", config)
    if form == "own" and "reader=pairs" in changes[0]:  # an image tokenizer of pairs needs images
        changes = [*changes, "image_tokenizer_images=4"]
        write_pairs(folder)
    assert message in refused(folder, form, *changes)


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        ("own", "prepare.row_tokens=66", "prepare.row_tokens is 66, which holds a document of 66"),
        ("given", "prepare.row_tokens=6", "but an image takes 7 with its <bos>"),
        ("further", "prepare.row_tokens=6", "but an image takes 7 with its <bos>"),
        ("own", "prepare.row_tokens=68", "sample.captions is 40, but each takes at least 69"),
        ("own", "model.preset=huge", "preset"),
        ("further", "prepare.row_tokens=129", "has a context of 128"),
        ("further", "start_from=nowhere", "No bundle at"),
        ("given", "image_tokenizer_from=nowhere", "does not exist"),
        ("shared", "tokenizers_from=nowhere", "No bundle at"),
        ("shared", "prepare.row_tokens=6", "but an image takes 7 with its <bos>"),
        ("own", "image_tokenizer.has_decoder=false", "image_tokenizer.has_decoder is false"),
        (
            "tokenizers",
            "image_tokenizer_training.schedule.warmup_steps=100",
            "image_tokenizer_training: warmup_steps (100) and decay_steps (0)",
        ),
    ],
)
def test_of_parts(folder: Path, form: str, change: str, message: str):
    try:
        assert message in refused(folder, form, change)
    except ConfigError as error:  # found as the recipe is read
        assert message in str(error)


@pytest.mark.parametrize(
    ("form", "file"), [("further", "base/model.safetensors"), ("given", "vq/model.safetensors")]
)
def test_truncated_weights(folder: Path, form: str, file: str):
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    assert "cannot be read" in refused(folder, form)


def test_an_unreadable_text_tokenizer(folder: Path):
    (folder / "base" / bundles.TEXT_TOKENIZER).write_text("{")
    with pytest.raises(BundleError):
        dry_run(load_recipe(folder / "further.toml"), folder / "run")


def test_sources_without_images(folder: Path):
    (folder / "owls.jsonl").write_text(json.dumps({"segments": [{"text": "an owl"}]}) + "\n")
    with pytest.raises(DataError, match="The sources hold no image, so no image tokenizer"):
        dry_run(load_recipe(folder / "tokenizers.toml"), folder / "run")
    recipe = load_recipe(folder / "further.toml", ["prepare.row_tokens=6", "sample.images=0"])
    (folder / "unseen.jsonl").write_text((folder / "owls.jsonl").read_text())
    assert dry_run(recipe, folder / "run")  # rows of text may be short


@pytest.mark.parametrize(
    ("ranks", "change", "message"),
    [
        ("8", "training.seed=0", "batch_rows (4) must be a multiple of the 8 ranks that read"),
        ("4", "training.accumulation_steps=2", "ranks that read different rows times accumulation"),
        ("3", "parallel.tensor=3", "tensor = 3 does not divide attention.n_kv_heads"),
        ("3", "image_tokenizer_training.batch_images=32", "batch_images is 32, which 3 processes"),
    ],
)
def test_of_ranks(folder: Path, monkeypatch, ranks: str, change: str, message: str):
    monkeypatch.setenv("WORLD_SIZE", ranks)
    changes = [change]
    if "tensor" in change:
        changes.append("image_tokenizer_training.batch_images=33")
    with pytest.raises(ConfigError) as found:
        dry_run(load_recipe(folder / "own.toml", changes), folder / "run")
    assert message in str(found.value)


def test_a_stage_that_does_not_run_is_not_checked(folder: Path):
    """Tokenizers can be trained where the model cannot."""
    recipe = load_recipe(folder / "own.toml", ["parallel.shard=8"])
    assert dry_run(recipe, folder / "run", ["text_tokenizer"])
