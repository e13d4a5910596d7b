"""A comparison of variants of an image tokenizer."""

import json
import logging
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from pardalis.cli.main import main
from pardalis.errors import ConfigError, DataError
from pardalis.parallel import join
from pardalis.pipeline import load_recipe, run
from pardalis.studies import compare_image_tokenizers
from pardalis.vq import ImageTokenizer

RECIPE = """
name = "small"
[[sources]]
name = "images"
reader = "folder"
path = "train"
[[heldout]]
name = "heldout"
reader = "folder"
path = "heldout"
[image_tokenizer]
preset = "tiny"
resolution = 32
channels = 16
z_channels = 16
code_width = 8
n_codes = 32
[image_tokenizer_training]
batch_images = 4
[image_tokenizer_training.schedule]
learning_rate = 1e-3
[image_tokenizer_loop]
steps = 4
report_every = 2
evaluate_every = 2
[[variants]]
name = "means"
[[variants]]
name = "levels"
set = ["image_tokenizer.quantizer.kind=fsq", "image_tokenizer_loop.steps=3"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name, n in (("train", 6), ("heldout", 5)):
        (tmp_path / name).mkdir()
        for i in range(n):
            blocks = generator.integers(0, 255, (4, 4, 3), np.uint8)
            PIL.Image.fromarray(blocks).resize((32, 32)).save(tmp_path / name / f"{i}.png")
    (tmp_path / "small.toml").write_text(RECIPE)
    return tmp_path


def test_variants_are_trained_evaluated_and_shown(folder, capsys, caplog):
    arguments = ["tokenizer", "compare", str(folder / "small.toml"), "--out", str(folder / "run")]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["heldout", "means", "levels"]

    written = json.loads((folder / "run" / "comparison.json").read_text())
    means, levels = written["variants"]
    assert (means["name"], means["set"], means["steps"]) == ("means", [], 4)
    assert (levels["name"], levels["steps"], levels["n_codes"]) == ("levels", 3, 32)
    for variant in (means, levels):
        scores = variant["scores"]["heldout"]
        assert scores["images"] == 5
        assert scores["psnr"] > 3
        assert "perceptual_squeezenet" in scores
        trained = ImageTokenizer.load(folder / "run" / "variants" / variant["name"] / "final")
        assert trained.config.quantizer.kind == ("ema" if variant is means else "fsq")
    page = (folder / "run" / "comparison.html").read_text()
    assert page.count("<img ") == 3 * 5
    assert "image_tokenizer.quantizer.kind=fsq" in page
    assert (folder / "run" / "variants" / "means" / "progress.html").is_file()

    before = (folder / "run" / "variants" / "means" / "metrics.jsonl").read_text()
    assert main([*arguments, "--json"]) == 0  # finished variants are not trained again
    assert json.loads(capsys.readouterr().out) == written
    assert (folder / "run" / "variants" / "means" / "metrics.jsonl").read_text() == before


def test_a_changed_variant_is_refused(folder):
    recipe, out = folder / "small.toml", folder / "run"
    compare_image_tokenizers(recipe, out)
    recipe.write_text(RECIPE.replace("learning_rate = 1e-3", "learning_rate = 2e-3"))
    with pytest.raises(ConfigError, match=r"begun with other settings: .*learning_rate"):
        compare_image_tokenizers(recipe, out)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("variants", r"has no \[\[variants\]\] to compare; add some"),
        ("heldout", r"has no \[\[heldout\]\] source to evaluate the variants on"),
    ],
)
def test_a_comparison_needs_variants_and_held_out_sources(folder, what, message):
    text = RECIPE.split("[[variants]]")[0] if what == "variants" else RECIPE
    if what == "heldout":
        text = text.replace(
            '[[heldout]]\nname = "heldout"\nreader = "folder"\npath = "heldout"\n', ""
        )
    (folder / "small.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        compare_image_tokenizers(folder / "small.toml", folder / "run")


def test_processes_join_once(folder, monkeypatch):
    """Processes that join a second time may find stale addresses and hang."""
    joined = []

    def counted(device):
        joined.append(device)
        return join(device)

    def stops(context, folder):
        raise DataError("stop here")

    tables = '[corpus]\nkind = "drawings"\npackages = "packages"\n[[heldout]]'
    (folder / "small.toml").write_text(RECIPE.replace("[[heldout]]", tables))
    monkeypatch.setattr("pardalis.studies.comparison.join", counted)
    monkeypatch.setattr("pardalis.pipeline.runner.join", counted)
    monkeypatch.setattr(
        "pardalis.corpora.drawings.build.build_drawings", lambda config, folder: folder.mkdir()
    )
    monkeypatch.setattr("pardalis.studies.comparison.train_image_tokenizer", stops)
    with pytest.raises(DataError, match="stop here"):
        compare_image_tokenizers(folder / "small.toml", folder / "run")
    assert (folder / "run" / "corpus").is_dir()
    assert len(joined) == 1


def test_a_given_image_tokenizer_has_no_variants(folder):
    given = 'name = "small"\nimage_tokenizer_from = "final"\n[[sources]]\nname = "images"'
    tables = RECIPE[: RECIPE.index("[image_tokenizer]")].replace(
        'name = "small"\n[[sources]]\nname = "images"', given
    )
    (folder / "small.toml").write_text(tables + RECIPE[RECIPE.index("[[variants]]") :])
    with pytest.raises(ConfigError, match="variants are of an image tokenizer that is trained"):
        load_recipe(folder / "small.toml")


def test_zero_images_are_refused(folder):
    (folder / "small.toml").write_text("image_tokenizer_images = 0\n" + RECIPE)
    with pytest.raises(ConfigError, match="image_tokenizer_images must be at least 1, got 0"):
        load_recipe(folder / "small.toml")


def test_variants_need_unique_names(folder):
    (folder / "small.toml").write_text(RECIPE.replace('"levels"', '"means"'))
    with pytest.raises(ConfigError, match="Two variants are called 'means'"):
        load_recipe(folder / "small.toml")


def test_a_recipe_without_a_model_ends_with_the_tokenizer(folder):
    records = run(load_recipe(folder / "small.toml"), folder / "run")
    assert [record.name for record in records] == ["image_tokenizer"]
    assert (folder / "run" / "image_tokenizer" / "final" / "model.safetensors").is_file()


def test_without_packages_of_pages_training_continues(folder, monkeypatch, caplog):
    def missing(*arguments, **options):
        raise ConfigError("The page needs the package 'jinja2', which is not installed")

    monkeypatch.setattr("pardalis.pipeline.stages.image_tokenizer.write_training_page", missing)
    with caplog.at_level(logging.WARNING):
        run(load_recipe(folder / "small.toml"), folder / "run")
    assert (folder / "run" / "image_tokenizer" / "final").is_dir()
    assert sum("No progress page is written" in each.message for each in caplog.records) == 1


def test_a_trained_image_tokenizer_is_reused(folder):
    run(load_recipe(folder / "small.toml"), folder / "run")
    tables = RECIPE[: RECIPE.index("[image_tokenizer]")].replace(
        'name = "small"', 'name = "next"\nimage_tokenizer_from = "run/image_tokenizer/final"', 1
    )
    (folder / "next.toml").write_text(
        tables + "[prepare]\nrow_tokens = 32\n[model]\n[training]\nbatch_rows = 2\n"
        "[training.schedule]\nlearning_rate = 1e-3\n[training_loop]\nsteps = 1\n"
    )
    recipe = load_recipe(folder / "next.toml")
    assert not recipe.trains_image_tokenizer
    for kind in ("train", "heldout"):
        for i in range(5):
            (folder / kind / f"{i}.txt").write_text(f"image {i}")
    stages = ("text_tokenizer", "prepare", "train")
    records = run(recipe, folder / "next", only=stages)
    assert [record.name for record in records] == list(stages)
    kept = ImageTokenizer.load(folder / "next" / "bundle" / "image_tokenizer")
    given = ImageTokenizer.load(folder / "run" / "image_tokenizer" / "final")
    assert kept.fingerprint() == given.fingerprint()
    with pytest.raises(ConfigError, match="image_tokenizer cannot stand beside image_tokenizer_fr"):
        load_recipe(folder / "next.toml", ["image_tokenizer.preset=tiny"])
