"""Plain text and Markdown."""

import codecs
import gzip

import pytest

from pardalis.documents import READERS, Document, Image, Rejection, Text


def test_text_files_of_all_encodings(tmp_path):
    words = "Ein schöner Uhu — “bei Nacht” auf dem Ast, größer als gedacht."
    for name in ("utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"):
        (tmp_path / f"{name}.txt").write_bytes(f"\r\n{words}\r\n\r\nÜber.\n".encode(name))
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    (tmp_path / "mixed.txt").write_bytes(f"{words} ".encode() + b"\xff")
    items = {
        item.where if isinstance(item, Rejection) else item.name: item
        for item in READERS["text"](tmp_path)
    }
    kinds = [each.kind for each in items.values() if isinstance(each, Rejection)]
    assert sorted(kinds) == ["damaged-text", "empty-document", "unreadable-file"]
    found = {name: each.text for name, each in items.items() if isinstance(each, Document)}
    assert found.pop("mixed.txt") == f"{words} \ufffd"
    assert len(found) == 5 and set(found.values()) == {f"{words}\n\nÜber."}


@pytest.mark.parametrize(
    ("content", "text", "n_lost"),
    [
        (b"one \x07 bell in a long enough line of an ordinary text file", "one  bell", 1),
        (b"a NUL \0 in a long enough line of an ordinary text file of us", "a NUL  in", 1),
        (b"W\bWO\bOR\bRD_\b_S", "WORD_S", 0),  # as manuals print bold letters
        (b"the last line of DOS\r\n\x1a", "the last line of DOS", 0),
        (b"old\rMacs", "old\nMacs", 0),
    ],
)
def test_control_characters_do_not_lose_a_text(tmp_path, content, text, n_lost):
    for name, written in (("a.txt", content), ("b.txt.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(written)
        *omissions, document = READERS["text"](tmp_path / name)
        assert document.text.startswith(text) and "\0" not in document.text
        assert [item.count for item in omissions] == [n_lost] * bool(n_lost)


def test_what_is_no_text_is_called_by_its_name(tmp_path, red_png):
    (tmp_path / "a.txt").write_bytes(red_png)
    [rejection] = READERS["text"](tmp_path)
    assert "it is a PNG image" in rejection.reason


MARKDOWN = """\
---
title: Owls
tags: [a, b]
---
An *owl* sits `here`.

![a white owl](red.png "title")

| a | b |
|---|---|
| 1 | 2 |

- one
- two

```python
x = 1  # not a heading
```

<p>See <img src="red.png" alt="again"> it.</p>

![gone](gone.png) ![far](https://example.org/a.png)
"""


def test_markdown_is_read_in_order(tmp_path, red_file):
    path = tmp_path / "owls.md"
    path.write_bytes(codecs.BOM_UTF8 + MARKDOWN.replace("\n", "\r\n").encode())
    items = list(READERS["markdown"](path))
    assert [each.kind for each in items if isinstance(each, Rejection)] == [
        "missing-image", "remote-image",
    ]  # fmt: skip
    [document] = [each for each in items if isinstance(each, Document)]
    assert [image.source for image in document.images] == [red_file] * 2
    first, image, rest, again, *_ = document.segments
    assert (
        isinstance(first, Text)
        and first.text.split() == "Owls An owl sits here .".replace(" .", ".").split()
    )
    assert image == Image(red_file, "a white owl") and again == Image(red_file, "again")
    words = rest.text
    for before, after in (
        ("1", "2"),
        ("2", "one"),
        ("one", "two"),
        ("two", "x = 1"),
        ("x = 1", "See"),
    ):
        assert words.index(before) < words.index(after)
    assert "# not a heading" in words


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("Owls[^1] sleep.\n\n[^1]: By day.", "Owls[1] sleep.\n1. By day."),
        ("Let $x*y*z = \\{a\\}$ hold", "Let $x*y*z = \\{a\\}$ hold"),
        ("$$a \\\\ b_1 < c_1$$", "$$a \\\\ b_1 < c_1$$"),
        ("It costs $5, or *two* for $9.", "It costs $5, or two for $9."),
        ("`$a*b*` and\n\n    x[[1]] <- $a_b$\n", "$a*b* and\nx[[1]] <- $a_b$"),
        ('+++\ntitle = "Owls"\n+++\nwords', "Owls\nwords"),
    ],
)
def test_what_markdown_means(tmp_path, page, text):
    (tmp_path / "a.md").write_text(page)
    [document] = [item for item in READERS["markdown"](tmp_path) if isinstance(item, Document)]
    assert document.text == text


def test_images_of_a_wiki_are_found_by_name(tmp_path, red_png):
    (tmp_path / "attachments").mkdir()
    (tmp_path / "attachments" / "Pasted image 1.png").write_bytes(red_png)
    (tmp_path / "notes").mkdir()
    names = ("Pasted image 1.png|300", "pasted image 1.PNG|an owl", "gone.png", "a note")
    (tmp_path / "notes" / "a.md").write_text("\n\n".join(f"![[{name}]]" for name in names))
    rejection, document = READERS["markdown"](tmp_path)
    assert [image.alt for image in document.images] == ["", "an owl"]
    assert rejection.kind == "missing-image" and document.text.strip() == "![[a note]]"


@pytest.mark.parametrize(
    "nested", ["> " * 3000 + "a", "[" * 50_000, "*" * 50_000, "- " * 2000 + "a"]
)
def test_deep_markdown_takes_bounded_time(tmp_path, nested):
    (tmp_path / "a.md").write_text(nested)
    assert list(READERS["markdown"](tmp_path))
