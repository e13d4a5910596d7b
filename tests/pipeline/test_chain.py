"""Chains of runs: what start_from may name, and what is said when a parent is not finished."""

import json

import pytest

from pardalis.errors import ConfigError
from pardalis.pipeline import load_recipe, run
from pardalis.pipeline.chain import parents_of, with_bundle

NEW = """
name = "{name}"
[[sources]]
name = "pairs"
reader = "jsonl"
path = "pairs.jsonl"
[image_tokenizer]
[image_tokenizer_training]
[image_tokenizer_loop]
steps = 1
"""
TRAINING = """
[prepare]
row_tokens = 128
[training]
batch_rows = 4
[training.schedule]
learning_rate = 1e-3
[training_loop]
steps = 3
"""
FURTHER = """
name = "{name}"
start_from = "{start}"
[[sources]]
name = "pairs"
reader = "jsonl"
path = "pairs.jsonl"
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "base.toml").write_text(NEW.format(name="base") + "[model]\n" + TRAINING)
    for name, start in (("tuned", "base.toml"), ("chat", "tuned.toml")):
        (tmp_path / f"{name}.toml").write_text(FURTHER.format(name=name, start=start) + TRAINING)
    return tmp_path


def test_a_recipe_stands_for_its_run_beside_this_one(folder):
    recipe = load_recipe(folder / "chat.toml")
    runs = folder / "runs"
    assert [parent.folder for parent in parents_of(recipe, runs / "chat")] == [
        runs / "base",
        runs / "tuned",
    ]
    assert with_bundle(recipe, runs / "chat").start_from == runs / "tuned" / "bundle"


def test_the_folder_of_a_run_stands_for_its_bundle(folder):
    (folder / "done").mkdir()
    (folder / "done" / "recipe.toml").write_text((folder / "base.toml").read_text())
    recipe = load_recipe(folder / "tuned.toml", [f"start_from='{folder / 'done'}'"])
    assert with_bundle(recipe, folder / "run").start_from == folder / "done" / "bundle"
    bundle = load_recipe(folder / "tuned.toml", [f"start_from='{folder / 'any'}'"])
    assert parents_of(bundle, folder / "run") == []
    assert with_bundle(bundle, folder / "run") is bundle


def test_an_unfinished_parent_is_named(folder):
    recipe = load_recipe(folder / "tuned.toml")
    needed = r"start_from needs the model of the recipe 'base', and the run .*/runs/base has not"
    with pytest.raises(ConfigError, match=needed + r".*or give `with_parents`"):
        run(recipe, folder / "runs" / "tuned")
    assert not (folder / "runs").exists()
    # The same if its last run was of fewer steps.
    (folder / "runs" / "base" / "bundle").mkdir(parents=True)
    record = {"name": "train", "identity": "0", "steps": 2, "finished": "2026-01-01T00:00:00+00:00"}
    (folder / "runs" / "base" / "stages.json").write_text(json.dumps([record]))
    with pytest.raises(ConfigError, match=needed):
        run(recipe, folder / "runs" / "tuned")


def test_a_circle_is_refused(folder):
    text = (folder / "tuned.toml").read_text().replace("base.toml", "chat.toml")
    (folder / "tuned.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"start_from of '\w+' leads back to the run"):
        parents_of(load_recipe(folder / "chat.toml"), folder / "runs" / "chat")
    itself = (folder / "chat.toml").read_text().replace("tuned.toml", "chat.toml")
    (folder / "chat.toml").write_text(itself)
    with pytest.raises(ConfigError, match="'chat' leads back to the run"):
        parents_of(load_recipe(folder / "chat.toml"), folder / "runs" / "chat")


def test_a_parent_without_a_model_is_refused(folder):
    (folder / "base.toml").write_text(NEW.format(name="base"))
    with pytest.raises(ConfigError, match="whose recipe trains tokenizers only; name one with a"):
        parents_of(load_recipe(folder / "tuned.toml"), folder / "runs" / "tuned")
