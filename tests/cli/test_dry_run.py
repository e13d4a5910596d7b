"""``--dry-run``: lines for people, an object for programs, and nothing on disk."""

import json

import pytest

from pardalis.cli.main import main
from pardalis.pipeline.runner import Decision

RECIPE = """
name = "owls"
[[sources]]
name = "owls"
reader = "folder"
path = "images"
[text_tokenizer]
[image_tokenizer]
[image_tokenizer_training.schedule]
learning_rate = 1e-3
[image_tokenizer_loop]
steps = 100
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "owl.png").write_bytes(b"an owl")
    (tmp_path / "images" / "owl.txt").write_text("an owl")
    (tmp_path / "owls.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_lines(folder, capsys):
    assert main(["run", "owls.toml", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "text_tokenizer   run     it has not run yet",
        "image_tokenizer  run     it has not run yet",
    ]
    assert not (folder / "runs").exists()


def test_json_of_a_stage(folder, capsys):
    assert main(["tokenizer", "train-text", "owls.toml", "--dry-run", "--json"]) == 0
    decision = {
        "recipe": "owls", "stage": "text_tokenizer", "action": "run",
        "reason": "it has not run yet",
    }  # fmt: skip
    assert json.loads(capsys.readouterr().out) == {"run": "runs/owls", "stages": [decision]}
    assert not (folder / "runs").exists()


def test_a_parent_is_named(folder, capsys, monkeypatch):
    decisions = [Decision("base", "train", "skip", "x"), Decision("owls", "train", "run", "y")]
    monkeypatch.setattr("pardalis.pipeline.dry_run", lambda *_, **__: decisions)
    assert main(["run", "owls.toml", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "train            skip    x  (recipe 'base')",
        "train            run     y",
    ]


def test_a_mistake(folder, capsys):
    wrong = ["--set", "image_tokenizer_training.schedule.warmup_steps=100"]
    assert main(["run", "owls.toml", "--dry-run", "--json", *wrong]) == 2
    assert "do not fit into 100 steps" in json.loads(capsys.readouterr().out)["error"]
