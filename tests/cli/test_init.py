"""``pardalis init``: what it prints, its options, and its failures."""

import json
from pathlib import Path

import pytest
import torch
from documents_on_disk import write_documents

from pardalis.cli.main import main
from pardalis.pipeline.first_recipe import measure


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "image_tokenizer_step_s", lambda *how: 0.1)
    monkeypatch.setattr(measure, "decoder_step_s", lambda *how: 0.1)
    write_documents("folder", tmp_path / "photos", range(30))


def test_it_tells_what_it_found_and_chose_and_the_next_command(capsys):
    assert main(["init", "photos", "-o", "mine.toml", "--minutes", "5"]) == 0
    printed = capsys.readouterr().out
    assert "reader 'folder': 30 documents, 30 images" in printed
    assert "pixels a side" in printed
    assert printed.endswith(
        "mine.toml is written. Read it, change what you like, and run it:\n"
        "  pardalis run mine.toml\n"
    )
    assert main(["run", "mine.toml", "--dry-run"]) == 0
    assert "report           run     it has not run yet" in capsys.readouterr().out


def test_json_has_the_same(capsys):
    assert main(["init", "photos", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["recipe"] == "photos.toml"
    assert printed["command"] == "pardalis run photos.toml"
    assert printed["found"]["sources"][0] | {"path": ""} == {
        "name": "photos",
        "reader": "folder",
        "path": "",
        "heldout": False,
        "documents": 30,
        "images": 30,
        "characters": printed["found"]["sources"][0]["characters"],
        "rejected": {},
        "complete": True,
    }
    assert printed["chosen"]["resolution"] == 32
    assert printed["chosen"]["steps"] > 0
    assert set(printed["reasons"]) == {"images", "text", "rows", "model", "held out", "time"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["photos", "--minutes", "0"], 2, "--minutes must lie from 1 to 43,200, got 0."),
        (["none"], 3, "none does not exist; FOLDER must be a folder that holds documents."),
        (
            ["photos", "-o", "a.toml"],
            2,
            "a.toml exists already and is not overwritten; give another --output, or remove it.",
        ),
    ],
)
def test_failures_name_the_options(capsys, arguments, code, message):
    Path("a.toml").write_text("")
    assert main(["init", *arguments]) == code
    assert capsys.readouterr().err.splitlines()[-1] == f"pardalis: {message}"
    assert main(["init", *arguments, "--json"]) == code
    assert json.loads(capsys.readouterr().out)["error"] == message
