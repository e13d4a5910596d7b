"""The path of somebody with documents of their own: a manual of HTML pages with figures.

init, run, report, generate and the notebook follow each other as the README shows them, with no
recipe written by hand. The manual's words and figures are real; they come with the extra ``demo``.
"""

import contextlib
import html
import io
import json
import logging
import re
from pathlib import Path
from typing import NamedTuple

import PIL.Image
import pytest
import torch
from docs_workspace import ROOT
from documented import arguments
from notebook_cells import code_cells, run_cell

from pardalis.cli.main import main
from pardalis.corpora.emojis import render_svg
from pardalis.corpora.encyclopedia import packages
from pardalis.corpora.encyclopedia.concepts import all_concepts
from pardalis.corpora.encyclopedia.prose import shorten

N_PAGES = 24
# What a newcomer with a minute changes of the recipe.
SHORT = (
    "image_tokenizer_training.schedule.warmup_steps=1",
    "training.schedule.warmup_steps=1",
    "image_tokenizer_loop.steps=6",
    "training_loop.steps=6",
    "sample.pages=3",
    "sample.images=2",
    "sample.captions=2",
)


class Trial(NamedTuple):
    folder: Path  # the current folder of all commands
    titles: list[str]  # of the manual's pages
    said: dict[str, str]  # what each command printed, by its name

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "manual"

    @property
    def report(self) -> str:
        return (self.run / "report.html").read_text(encoding="utf-8")


def write_manual(folder: Path) -> list[str]:
    """Write a manual as pages with a figure each, in a folder; return the titles."""
    (folder / "figures").mkdir(parents=True)
    concepts = [c for c in all_concepts(packages.articles(), heldout_percent=0) if c.article]
    titles = []
    for number, concept in enumerate(concepts[:: len(concepts) // N_PAGES][:N_PAGES]):
        figure = f"figures/{concept.name}.png"
        svg = concept.drawing.read_text(encoding="utf-8")
        render_svg(svg, 48).save(folder / figure)
        title = html.escape(concept.article.title)
        page = f"""<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body {{ margin: 0 }}</style></head><body><nav>Contents</nav><h1>{title}</h1>
<figure><img src="{html.escape(figure)}" alt="A drawing"></figure>
<p>{html.escape(shorten(concept.article.lead, 30))}</p></body></html>"""
        (folder / f"{number:02d} {concept.name}.html").write_text(page, encoding="utf-8")
        titles.append(concept.article.title)
    return titles


@pytest.fixture(scope="module")
def trial(tmp_path_factory) -> Trial:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("newcomer")
    titles = write_manual(folder / "manual")
    settings = [word for value in SHORT for word in ("--set", value)]
    commands = {
        "init": ["init", "manual", "--minutes", "1"],
        "run": ["run", "manual.toml", *settings],
        "report": ["report", "runs/manual"],
    }
    said = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, command in commands.items():
            said[name] = _said(command)
    return Trial(folder, titles, said)


def _said(command: list[str]) -> str:
    """Run a command that must succeed; return what it printed and logged."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("pardalis")
    logger.addHandler(handler)
    try:
        with contextlib.redirect_stdout(stream):
            code = main(command)
    finally:
        logger.removeHandler(handler)
    assert code == 0, stream.getvalue()
    return stream.getvalue()


@pytest.fixture(autouse=True)
def in_the_folder(trial, monkeypatch) -> None:
    monkeypatch.chdir(trial.folder)


def test_init_says_what_it_found_and_what_to_do_next(trial):
    assert f"reader 'html': {N_PAGES} documents, {N_PAGES} images" in trial.said["init"]
    assert trial.said["init"].endswith("  pardalis run manual.toml\n")


def test_the_run_says_that_licences_are_not_stated(trial):
    assert re.search(r"^.*'?manual'?.* licence.*$", trial.said["run"], re.MULTILINE)
    for path in ("shards/LICENCES.md", "bundle/LICENCES.md", "report.html"):
        assert "not stated" in (trial.run / path).read_text(encoding="utf-8"), path


def test_the_report_has_the_documents_of_the_user_in_both_splits(trial):
    pages = json.loads((trial.run / "samples" / "samples.json").read_text())["pages"]
    assert {page["split"] for page in pages} == {"train", "heldout"}
    for page in pages:
        assert page["prompt"].strip() in trial.titles
        assert html.escape(page["prompt"].strip()) in trial.report


def test_no_section_of_the_report_is_empty(trial):
    sections = re.findall(r"<section id=\"(\w+)\">(.*?)</section>", trial.report, re.DOTALL)
    assert {"pages", "corpus", "tokenizer", "training", "try"} <= {name for name, _ in sections}
    for name, content in sections:
        words = re.sub(r"<[^>]*>|\s+", " ", re.sub(r"<h2>.*?</h2>", "", content)).strip()
        assert words or "<svg" in content, f"the section {name} is empty"
    linked = set(re.findall(r'<a href="#(\w+)">', trial.report))
    assert linked == {name for name, _ in sections}
    shown = re.sub(r"<(details|style)>.*?</\1>|<[^>]*>", " ", trial.report, flags=re.DOTALL)
    assert not re.search(r"\b(?:nan|None|undefined)\b", shown)


def test_the_commands_of_the_report_work_as_they_are(trial):
    tried = re.search(r'<section id="try">(.*?)</section>', trial.report, re.DOTALL)
    commands = [html.unescape(c) for c in re.findall(r"<code>(.*?)</code>", tried[1], re.DOTALL)]
    assert commands
    for command in commands:
        program, *words = arguments(command)
        assert program == "pardalis"
        _said(words)
    assert any(title in Path("page.html").read_text(encoding="utf-8") for title in trial.titles)


def test_generate_writes_a_page_with_the_image(trial):
    title = trial.titles[0]
    _said(["generate", "runs/manual", title, "--mode", "image", "--out", "made.html"])
    page = Path("made.html").read_text(encoding="utf-8")
    assert html.escape(title) in page
    assert page.count("data:image/png;base64,") == 1
    _said(["generate", "runs/manual", title, "--mode", "image", "--out", "made.png"])
    with PIL.Image.open("made.png") as image:
        assert image.width == image.height > 0
    figure = next(Path("manual/figures").iterdir())
    _said(["generate", "runs/manual", str(figure), "--mode", "text", "--max-new-tokens", "4"])


def test_the_notebook_runs_on_the_run_of_the_user(trial):
    cells = code_cells(ROOT / "docs" / "notebook.ipynb")
    own = [cell.replace("runs/quickstart/", "runs/manual/") for cell in cells]
    assert own != cells
    names: dict[str, object] = {}
    shown = [run_cell(cell, names) for cell in own]
    assert sum(hasattr(value, "_repr_html_") for value in shown) == 3


def test_the_same_command_makes_nothing_anew(trial):
    stamps = {p: p.stat().st_mtime_ns for p in (trial.run / "bundle").rglob("*") if p.is_file()}
    said = _said(["run", "runs/manual", "--dry-run"])
    assert " run " not in said
    _said(["run", "runs/manual"])
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}
