"""Plain text and Markdown."""

import codecs

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
    "nested", ["> " * 3000 + "a", "[" * 50_000, "*" * 50_000, "- " * 2000 + "a"]
)
def test_deep_markdown_takes_bounded_time(tmp_path, nested):
    (tmp_path / "a.md").write_text(nested)
    assert list(READERS["markdown"](tmp_path))
