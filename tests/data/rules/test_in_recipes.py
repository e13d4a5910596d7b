"""Rules in recipes: their paths, and the parts of a source that share them."""

import json
import logging
from pathlib import Path

import pytest

from pardalis.data import RULES, Others, SourceConfig, ruled
from pardalis.data.rules import DuplicateTexts
from pardalis.documents import Document
from pardalis.pipeline.builders import documents_of, located
from pardalis.pipeline.recipe import load_recipe
from pardalis.pipeline.stages.stage import RunContext

RECIPE = """
name = "a"
heldout_fraction = 0.3
[[sources]]
name = "d"
reader = "jsonl"
path = "d.jsonl"
rules = [
    {kind = "duplicate_texts", near = false, against = [{reader = "jsonl", path = "seen.jsonl"}]},
    {kind = "text_length", min_words = 2},
]
[image_tokenizer]
[image_tokenizer_training]
[image_tokenizer_loop]
steps = 1
"""


def write(path: Path, texts: list[str]) -> None:
    lines = ({"name": f"n{n}", "segments": [{"text": text}]} for n, text in enumerate(texts))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def recipe(tmp_path):
    texts = [f"owl {n % 20}" for n in range(60)] + ["short", "seen before"]
    write(tmp_path / "d.jsonl", texts)
    write(tmp_path / "seen.jsonl", ["Seen before!", "owl 3"])
    (tmp_path / "a.toml").write_text(RECIPE)
    return load_recipe(tmp_path / "a.toml")


def test_both_parts_are_judged_together(recipe, tmp_path):
    context = RunContext(recipe, tmp_path / "run")
    train, heldout = (context.survey(source) for source in recipe.all_sources)
    assert train.n_items + heldout.n_items == 62
    left = [document.text for document in documents_of(recipe.all_sources, tmp_path / "run")]
    assert sorted(left) == sorted(f"owl {n}" for n in range(20) if n != 3)
    for survey, source in zip((train, heldout), recipe.all_sources, strict=True):
        documents = list(documents_of([source], tmp_path / "run"))
        assert survey.n_items - survey.n_rejections == len(documents) > 0
    again = RunContext(recipe, tmp_path / "run")
    ruled._known.clear()
    assert [again.survey(source) for source in recipe.all_sources] == [train, heldout]


def test_documents_that_are_compared_with_are_content_too(recipe, tmp_path):
    before = RunContext(recipe, tmp_path / "run").survey(recipe.sources[0]).digest
    write(tmp_path / "seen.jsonl", [f"owl {n}" for n in range(20)][:9])
    after = RunContext(recipe, tmp_path / "run").survey(recipe.sources[0]).digest
    assert before != after


def test_paths_begin_at_the_recipe_or_at_the_run(recipe, tmp_path):
    [rule, _] = recipe.sources[0].rules
    assert rule.against[0].path == tmp_path / "seen.jsonl"
    built = DuplicateTexts(against=(Others(reader="jsonl", path=Path("{run}/corpus/x.jsonl")),))
    source = SourceConfig(
        name="a", reader="jsonl", path=Path("{run}/corpus/d.jsonl"), rules=(built,)
    )
    there = located(source, tmp_path)
    assert there.path == tmp_path / "corpus/d.jsonl"
    assert there.rules[0].against[0].path == tmp_path / "corpus/x.jsonl"
    assert RULES["duplicate_texts"] is DuplicateTexts


def test_a_long_pass_says_how_far_it_is(monkeypatch, caplog):
    monkeypatch.setattr(ruled, "_REPORT_EVERY_S", -1.0)
    items = [(0.0, Document((), str(n))) for n in range(3)]
    with caplog.at_level(logging.INFO):
        assert len(list(ruled.judged(None, (DuplicateTexts(),), items, False))) == 3
    assert "have compared 2 documents" in caplog.text
