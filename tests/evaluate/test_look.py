"""Looking at a source before training: what the page shows, and that it is safe to open."""

import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from lxml import html

from pardalis.cli.main import main
from pardalis.data import SourceConfig
from pardalis.data.rules import DuplicateTexts, ImageSize, TextLength
from pardalis.documents import Document, Image, Text, write_jsonl
from pardalis.evaluate.look import Look, look_at, look_page, visible

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)> \x00\x1b[0m \u202e{{ 7*7 }}"


def picture(seed: int, size: tuple[int, int] = (60, 40)) -> PIL.Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return PIL.Image.fromarray(small).resize(size)


@pytest.fixture
def source(tmp_path: Path) -> SourceConfig:
    documents = [
        Document((Text("An owl on an oak."), Image(picture(0), alt="an owl")), "owl", "CC0"),
        Document((Text("What?", "user"), Image(picture(1), role="user"),
                  Text("A fox.", "assistant")), "chat"),
        Document((Text(HOSTILE), Image(picture(2), alt=HOSTILE)), HOSTILE, HOSTILE),
        Document((Text("x" * 5000),), "long"),
        Document((Text("An owl on an oak."),), "again"),
        Document((Text("A tiny one."), Image(picture(3, (8, 8)))), "tiny"),
    ]  # fmt: skip
    write_jsonl(documents, tmp_path / "d.jsonl", tmp_path / "images")
    with (tmp_path / "d.jsonl").open("a") as file:
        file.write("no json\n")
        file.write(json.dumps({"name": "damaged", "segments": [
            {"text": "A broken one."}, {"image": "broken.png"}]}) + "\n")  # fmt: skip
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    rules = (ImageSize(min_side=16), DuplicateTexts(), TextLength(min_characters=3))
    return SourceConfig(name="d", reader="jsonl", path=tmp_path / "d.jsonl", rules=rules)


@pytest.fixture
def look(source: SourceConfig) -> Look:
    return look_at(source, 100)


def page_of(look: Look) -> html.HtmlElement:
    return html.document_fromstring(look_page(look))


def articles(page: html.HtmlElement, section: str) -> list[html.HtmlElement]:
    return page.xpath(f"//section[@id='{section}']//article")


def test_what_is_counted(look):
    assert (look.read, look.kept, look.images, look.is_whole) == (8, 4, 3, True)
    assert {kind: each.count for kind, each in look.rejected.items()} == {
        "bad-json": 1, "unreadable-image": 1
    }  # fmt: skip
    assert {kind: each.count for kind, each in look.removed.items()} == {
        "rule:image_size": 1, "rule:duplicate_texts": 1
    }  # fmt: skip
    assert look.roles == {"user": 2, "assistant": 1}


def test_a_limit_bounds_what_is_read(source):
    look = look_at(source, 2)
    assert (look.read, look.kept, look.is_whole) == (2, 2, False)
    assert "the first ones" in look_page(look)


def test_documents_stand_in_order_with_their_images(look):
    cards = articles(page_of(look), "documents")
    assert len(cards) == 4
    parts = [part.tag for part in cards[1] if part.tag != "h4"]
    assert parts == ["div", "p", "figure", "div", "p"]  # user: text, image; assistant: text
    assert cards[0].find(".//img").get("src").startswith("data:image/png;base64,")
    assert cards[0].find(".//figcaption").text.startswith("60 × 40")
    assert "and 3,500 characters more" in cards[3].text_content()


def test_examples_are_shown_as_they_look(look):
    page = page_of(look)
    removed = articles(page, "removed")
    assert [card.find("h4").text for card in removed] == ["again", "tiny"]
    assert "is the same as that of owl" in removed[0].text_content()
    assert removed[1].find(".//img") is not None
    [damaged] = articles(page, "rejected")
    assert "broken.png" in damaged.text_content() and "An image" in damaged.text_content()


def test_the_page_runs_nothing_and_loads_nothing(look):
    text = look_page(look)
    page = html.document_fromstring(text)
    for element in page.iter("*"):
        assert element.tag not in ("script", "iframe", "object", "embed", "link", "form", "base")
        for name, value in element.attrib.items():
            assert not name.startswith("on"), (element.tag, name)
            if name in ("src", "href"):
                assert value.startswith(("data:image/png;base64,", "#"))
    [policy] = page.xpath("//meta[@http-equiv='Content-Security-Policy']")
    assert "default-src 'none'" in policy.get("content")
    assert policy.getparent().tag == "head"
    assert "&lt;script&gt;" in text and "{{ 7*7 }}" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text)


def test_what_controls_a_page_is_seen():
    assert visible("a\x00\x1b\t\n\u202e\ud800b") == "a␀␛\t\n⟨U+202E⟩⟨U+D800⟩b"
    assert visible("👩\u200d🔬 e\u0301") == "👩\u200d🔬 e\u0301"


def test_an_empty_source_and_one_without_rules(tmp_path):
    (tmp_path / "e.jsonl").write_text("")
    source = SourceConfig(name="e", reader="jsonl", path=tmp_path / "e.jsonl")
    text = look_page(look_at(source, 5))
    assert "No document is left." in text and "The source has no rules." in text


# ── the command ──────────────────────────────────────────────────────────────────────────────────


def test_a_path_is_looked_at_by_its_reader(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "look", "d.jsonl", "-o", "page.html"]) == 0
    out = capsys.readouterr().out
    assert "d.jsonl, reader jsonl: all 8 items" in out and "1 bad-json, such as" in out
    assert "<h1>What is read of d.jsonl</h1>" in Path("page.html").read_text()
    assert main(["data", "look", "d.jsonl", "--json", "--limit", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["read"], found["kept"], found["is_whole"]) == (3, 3, False)
    assert found["documents"][0]["parts"][1]["width"] == 60 and "page" not in found
    assert not Path("look.html").exists()


RECIPE = """
name = "a"
[[sources]]
name = "short"
reader = "jsonl"
path = "d.jsonl"
rules = [{kind = "text_length", max_characters = 20}]
[[heldout]]
name = "other"
reader = "jsonl"
path = "d.jsonl"
[image_tokenizer]
[image_tokenizer_training]
[image_tokenizer_loop]
steps = 1
"""


def test_a_source_of_a_recipe_is_looked_at_with_its_rules(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.toml").write_text(RECIPE)
    assert main(["data", "look", "a.toml", "--source", "short", "--json"]) == 0
    assert "rule:text_length" in json.loads(capsys.readouterr().out)["removed"]
    assert main(["data", "look", "a.toml"]) == 2
    assert "--source is missing; the sources of a.toml are short, other." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none"], 2, "No recipe at none"),
        (["empty"], 2, "reader is missing: what is at empty is for no known reader; name one of"),
        (["mixed"], 2, "what is at mixed is for 'folder' and 'html'; name one of"),
        (["mixed", "--source", "a"], 2, "--source belongs to a recipe"),
        (["mixed", "--reader", "owl"], 2, "must be one of"),
        (["mixed", "--reader", "html", "--limit", "0"], 2, "--limit must be at least 1, got 0."),
    ],
)
def test_mistakes(arguments, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("mixed").mkdir()
    picture(0).save("mixed/owl.png")
    Path("mixed/owl.txt").write_text("an owl")
    Path("mixed/a.html").write_text("<p>An owl.")
    assert main(["data", "look", *arguments]) == code
    assert message in capsys.readouterr().err
