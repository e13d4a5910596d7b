"""Every documented form of a recipe runs through all of its stages, by one process and by two."""

import subprocess
import sys
from pathlib import Path

import forms
import pytest
from fake_drawings import pinned_hash, write_fake_packages

import pardalis
from pardalis.corpora import packages
from pardalis.pipeline import load_recipe, read_records, run, stages_of
from pardalis.train import read_metrics

SUPPORT = Path(forms.__file__)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = forms.write_given(tmp_path_factory.mktemp("forms"))
    write_fake_packages(folder / "packages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "_sha256", pinned_hash)
        yield folder


@pytest.fixture(scope="module")
def by_two(given):
    """The run folders of the forms that two ranks have run, all in one process's children."""
    command = [sys.executable, str(SUPPORT), str(given), *forms.BY_TWO]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [p.read_text() for p in sorted(given.glob("by-two/*/said/*.txt"))]
    assert done.returncode == 0, "\n".join([done.stderr, *said])
    return {name: given / "by-two" / name for name in forms.BY_TWO}


def check(given: Path, name: str, folder: Path) -> None:
    recipe = load_recipe(given / f"{name}.toml")
    records = read_records(folder)
    assert [record.name for record in records] == [stage.name for stage in stages_of(recipe)]
    assert all(record.finished for record in records)
    if recipe.has_model:
        assert "<html" in (folder / "report.html").read_text()
        bundle = pardalis.load(folder / "bundle")
        assert bundle.codec.image_fit == recipe.image_fit
        assert pardalis.generate(bundle, "noise", mode="text", max_new_tokens=2) is not None
        last = read_metrics(folder / "training" / "metrics.jsonl")[-1]
        assert ("heldout_loss" in last) == bool(recipe.heldout)


def run_once(given: Path, name: str) -> Path:
    folder = given / "runs" / name
    if not folder.exists():
        forms.run_form(given, name, folder)
    return folder


@pytest.mark.parametrize("name", forms.FORMS)
def test_by_one(given, name):
    run_once(given, forms.GIVEN_RUN)
    folder = run_once(given, name)
    check(given, name, folder)
    stamps = results(folder)
    run(load_recipe(given / f"{name}.toml"), folder)
    assert results(folder) == stamps


def results(folder):
    """Return the times of the files of results; hashes are remembered when files have settled."""
    paths = [path for path in folder.rglob("*.json*") if path.name != ".digests.json"]
    return {path: path.stat().st_mtime_ns for path in paths}


@pytest.mark.parametrize("name", forms.BY_TWO)
def test_by_two(given, by_two, name):
    check(given, name, by_two[name])
    trained = "image_tokenizer" if name == forms.GIVEN_RUN else "training"
    alone, shared = (
        [
            line["loss"]
            for line in read_metrics(folder / trained / "metrics.jsonl")
            if "loss" in line
        ]
        for folder in (run_once(given, name), by_two[name])
    )
    assert alone
    assert shared == pytest.approx(alone, rel=1e-4)
