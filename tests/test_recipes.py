"""Every shipped recipe resolves, builds its networks on the meta device, and says what it costs."""

import re
from pathlib import Path

import pytest
import torch

from pardalis import config as configs
from pardalis.bundle import IMAGE_TOKENIZER, MODEL, TEXT_TOKENIZER, write_description
from pardalis.cli.main import main
from pardalis.data import PairOrder
from pardalis.errors import ConfigError
from pardalis.model import PRESETS, model_costs
from pardalis.pipeline import Recipe, load_recipe
from pardalis.pipeline.plan import plan
from pardalis.pipeline.variants import VariantConfig
from pardalis.tokens import Vocabulary
from pardalis.vq import PRESETS as IMAGE_PRESETS
from pardalis.vq import ImageTokenizer

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(FOLDER.glob("*.toml"))
FURTHER = [path for path in RECIPES if load_recipe(path).start_from is not None]


def variants_of(recipe: Recipe) -> tuple[VariantConfig, ...]:
    return recipe.variants or (recipe.stability.variants if recipe.stability else ())


def test_there_are_recipes():
    assert {"quickstart", "encyclopedia"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_resolves_and_builds(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    if path in FURTHER:
        assert recipe.model_run.training.batch_rows > 0
        return
    if recipe.trains_image_tokenizer:
        with torch.device("meta"):
            ImageTokenizer(recipe.image_tokenizer_run.model)
    if recipe.model is not None:
        config = recipe.model_run.model.sized(5000, context=256)
        assert model_costs(config).parameters > 0


JAM = [path for path in RECIPES if path.stem.startswith("jam_")]


@pytest.mark.parametrize("path", JAM, ids=lambda path: path.stem)
def test_rows_fit_the_context_of_the_models_before(path):
    """Each recipe of JAM goes on from another one, whose rows are the context of its model."""
    parent = load_recipe(FOLDER / "jam_text.toml")
    assert load_recipe(path).prepare.row_tokens <= parent.prepare.row_tokens


@pytest.mark.parametrize(
    ("path", "variant"),
    [(path, variant.name) for path in RECIPES for variant in variants_of(load_recipe(path))],
    ids=lambda value: getattr(value, "stem", value),
)
def test_every_variant_resolves_and_builds(path, variant):
    [changes] = [each.set for each in variants_of(load_recipe(path)) if each.name == variant]
    recipe = load_recipe(path, changes)
    with torch.device("meta"):
        ImageTokenizer(recipe.image_tokenizer_run.model)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_begins_with_its_command_and_cost(path):
    header = re.match(r"(#.*\n)+", path.read_text())
    assert header, "a recipe begins with a comment"
    for word in ("pardalis", "Hardware:", "Duration:", "Result:"):
        assert word in header[0], word


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_resolved_recipe_is_the_recipe(path, tmp_path, capsys):
    assert main(["show", "config", str(path)]) == 0
    resolved = tmp_path / "resolved.toml"
    resolved.write_text(capsys.readouterr().out)
    recipe, shown = load_recipe(path), load_recipe(resolved)
    assert shown == recipe.expanded == shown.expanded
    assert "preset" not in resolved.read_text()
    if recipe.has_model:
        assert shown.model_run == recipe.model_run
    if recipe.trains_image_tokenizer:
        assert shown.image_tokenizer_run == recipe.image_tokenizer_run
    if path not in FURTHER:
        assert not recipe.has_model or "feed_forward" in shown.model


def write_outline(folder: Path, preset: str) -> Path:
    """Write what a plan reads of a bundle with the shape of a preset, whose weights are empty."""
    images, vocabulary = IMAGE_PRESETS["chameleon"](), Vocabulary.build(8192, 57_336)
    (folder / IMAGE_TOKENIZER).mkdir(parents=True)
    write_description(folder, PRESETS[preset]().sized(vocabulary.size, 4096), vocabulary, {})
    ImageTokenizer.save_config(folder / IMAGE_TOKENIZER, images)
    for name in (MODEL, TEXT_TOKENIZER, f"{IMAGE_TOKENIZER}/model.safetensors"):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(("size", "gpus"), [("7b", 8), ("34b", 32)])
def test_the_alignment_of_chameleon_costs_what_its_recipe_says(size, gpus, tmp_path):
    bundle = write_outline(tmp_path / "bundle", f"chameleon_{size}")
    path = FOLDER / f"sft_chameleon_{size}.toml"
    planned = plan(load_recipe(path, [f"start_from={bundle}"]), gpus=gpus, device="h100")
    assert not planned.warnings and planned.largest_micro_rows >= planned.micro_rows
    gib, hours, all_hours = planned.memory_total / 2**30, planned.hours, planned.hours * gpus
    header = path.read_text().partition("\nname")[0]
    assert f"{gib:.1f} GiB" in header
    assert f"{hours:.1f} hours, {all_hours:.0f} GPU hours" in header


QUICKSTART = FOLDER / "quickstart.toml"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainnig.seed=1", "did you mean 'training'"),
        ("training.seeed=1", "Unknown key 'training.seeed'; did you mean 'seed'"),
        ("model.preset=huge", "model.preset must be one of 'tiny'"),
        ("model.d_modle=64", "Unknown key 'model.d_modle'; did you mean 'd_model'"),
        ("model.vocab_size=7", "follows from tokenizers"),
        ("model.n_heads=5", "model.d_model (128) must be a multiple of attention.n_heads (5)"),
        ("image_tokenizer.preset=vast", "image_tokenizer.preset must be one of"),
        ("image_tokenizer.chanels=7", "did you mean 'channels'"),
        ("sources.1.name=pairs", "Two sources are called 'pairs'"),
        ("training_loop.steps=many", "training_loop.steps must be of type int, got 'many'"),
        ("training_loop.steps=0", "training_loop.steps must be at least 1, got 0."),
        ("training.batch_rows=0", "training.batch_rows must be at least 1, got 0."),
        ("training.optimizer.beta1=1", "training.optimizer.beta1 must lie in [0, 1), got 1.0."),
        (
            "image_tokenizer_training.schedule.warmup_steps=-1",
            "image_tokenizer_training.schedule.warmup_steps must be 0 or more, got -1.",
        ),
        (
            "image_tokenizer.quantizer.beta=-1",
            "image_tokenizer.quantizer.beta must be 0 or more, got -1.0.",
        ),
        ("image_tokenizer.n_codes=0", "image_tokenizer.n_codes must be at least 1, got 0."),
        ("sources.0.weight=0", "sources.0.weight must be above 0, got 0.0"),
        ("prepare.row_tokens=2", "prepare.row_tokens must be at least 3, got 2."),
        ("prepare.row_tokens=100000000000000", "prepare.row_tokens must be at most 16777216"),
        ("name=../../mine", "name is '../../mine', but the run is written to a folder of this"),
        ("name=/mine", "choose a name that is no absolute path and has no '..'"),
        ("corpus.lead_words=0", "corpus.lead_words must be at least 1, got 0."),
        (
            "sample.image.temperature=-1",
            "sample.image.temperature must be 0 or more, got -1.0.",
        ),
    ],
)
def test_mistakes_are_found_before_anything_runs(override, message):
    with pytest.raises(ConfigError) as caught:
        load_recipe(QUICKSTART, [override])
    found = str(caught.value)
    assert found.startswith(message) if message.endswith(".") else message in found


def test_no_sources():
    values = configs.to_dict(load_recipe(QUICKSTART)) | {"sources": []}
    with pytest.raises(ConfigError, match="sources is empty"):
        configs.from_dict(Recipe, values)


def test_every_field_of_every_config_is_read_somewhere():
    """An option that nothing reads is a lie."""
    import dataclasses

    source = "\n".join(p.read_text() for p in (FOLDER.parent / "src").rglob("*.py"))
    unread, seen = [], set()

    def visit(config):
        if type(config) in seen:
            return
        seen.add(type(config))
        for field in dataclasses.fields(config):
            if not re.search(rf"\.{field.name}\b", source):
                unread.append(f"{type(config).__name__}.{field.name}")
            value = getattr(config, field.name)
            for item in value if isinstance(value, tuple) else (value,):
                if dataclasses.is_dataclass(item):
                    visit(item)

    for path in RECIPES:
        recipe = load_recipe(path)
        visit(recipe)
        if recipe.has_model:
            visit(recipe.model_run.model)
        if recipe.trains_image_tokenizer:
            visit(recipe.image_tokenizer_run.model)
        for variant in recipe.variants:
            visit(load_recipe(path, variant.set))
    assert len(seen) >= 15
    assert not unread


def test_paths_at_any_depth_begin_at_the_recipe():
    recipe = load_recipe(FOLDER / "chameleon_tokenizer.toml")
    net = recipe.image_tokenizer_training.perceptual.net
    assert net.heads == FOLDER / "../weights/vgg.pth"
    assert recipe.sources[0].path == FOLDER / "../photos"
    recipe = load_recipe(FOLDER / "quantizers.toml")
    assert recipe.corpus.packages == FOLDER / "../packages"
    assert recipe.sources[0].path == Path("{run}/corpus/pairs.train.jsonl")


OLD = """
name = "old"
prompt_pictures = "pad"
image_tokenizer_pictures = 9
[corpus]
picture_side = 32
[[sources]]
name = "pairs"
reader = "jsonl"
path = "{run}/corpus/pairs.train.jsonl"
pair_order = "random"
[[heldout]]
name = "unseen"
reader = "jsonl"
path = "{run}/corpus/pairs.heldout.jsonl"
pair_order = "as_written"
[text_tokenizer]
n_pieces = 300
[image_tokenizer]
[image_tokenizer_training]
batch_pictures = 8
heldout_pictures = 7
[image_tokenizer_loop]
steps = 1
[prepare]
row_tokens = 128
[model]
[training]
batch_rows = 4
schedule = { learning_rate = 1e-3, warmup_steps = 1 }
objective = { image_weight = 0.5 }
[training_loop]
steps = 1
[answer]
drawings = 3
picture = { temperature = 0.5 }
"""


def test_a_recipe_of_an_earlier_version_loads(tmp_path, caplog):
    path = tmp_path / "old.toml"
    path.write_text(OLD)
    recipe = load_recipe(path, ["answer.captions=4", "image_tokenizer_training.batch_pictures=6"])
    assert (recipe.image_fit, recipe.image_tokenizer_images) == ("pad", 9)
    assert (recipe.corpus.image_side, recipe.text_tokenizer.vocab_size) == (32, 300)
    training = recipe.image_tokenizer_training
    assert (training.batch_images, training.heldout_images) == (6, 7)
    assert recipe.training.objective.modality_weights == {"image": 0.5}
    sample = recipe.sample
    assert (sample.images, sample.captions, sample.image.temperature) == (3, 4, 0.5)
    assert [source.transforms for source in recipe.all_sources] == [
        (PairOrder(order="random"),), ()
    ]  # fmt: skip
    assert "pair_order of sources is now a transform; prompt_pictures is now" in caplog.text
