"""Text and images of a page as they come, put together as a browser lays them out: in lines."""

import hashlib
import re
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from pardalis.documents.document import Image, Segment, Text

_SPACE = re.compile(r"\s+")
_INDENT = re.compile(r"[ \t\n\f\r\xa0]*")
_COLLAPSING = re.compile(r"[ \t\n\f\r]+")
_LEAST_INDENT = 2  # spaces: one is padding, mostly

Key: TypeAlias = tuple[str, str]


@dataclass(slots=True)
class Block:
    """A line or a table cell of text, or an image, with what stands between it and that before."""

    before: str  # "", " ", "\n", tabs, or "\n" and tabs where the first cells of a row are empty
    place: str  # the element that it is the text of, with its class
    content: str | Image = ""
    is_verbatim: bool = False  # code, say, in which line breaks are part of the text

    @property
    def key(self) -> Key:
        """What identifies a block on other pages."""
        if isinstance(self.content, str):
            return self.place, " ".join(self.content.split())
        source = self.content.source
        if isinstance(source, Path):
            return "image", str(source)
        return "image", hashlib.sha256(bytes(source)).hexdigest()  # type: ignore[arg-type]


@dataclass(slots=True)
class Assembly:
    """Collects the blocks of a page in order."""

    blocks: list[Block] = field(default_factory=list)
    is_verbatim: bool = False  # whether spaces and ends of lines are part of the text
    marker: str = ""  # of a list item, before its first text
    _gap: str = ""  # between the last block and the next
    _is_new_row: bool = False  # nothing stands in the row yet
    _indent: int = 0  # spaces that break no line at the beginning of one, and those between
    _is_open: bool = False  # whether text goes on in the last block
    _parts: list[str] = field(default_factory=list)  # of the last block

    def write(self, text: str, place: str) -> None:
        """Add text; outside verbatim parts its whitespace collapses, but for an indentation.

        That of code is written with spaces that break no line (``&nbsp;``), where there is no
        ``pre``. Within a line they are spaces as others.
        """
        if self.is_verbatim:
            if text:
                self._add(text, place)
            return
        if self._gap == "\n" or not self.blocks:
            run = _COLLAPSING.sub(" ", _INDENT.match(text)[0])  # type: ignore[index]
            self._indent += len(run if self._indent else run.lstrip(" "))
        text = _SPACE.sub(" ", text)
        if text.startswith(" "):
            self._space()
        core = text.strip(" ")
        if core:
            self._add(core, place)
            if text.endswith(" "):
                self._space()

    def join(self, text: str) -> None:
        """Add text that belongs to the last word."""
        if self._is_open and not self._gap:
            self._parts.append(text)

    def line(self) -> None:
        """End a line."""
        if "\t" not in self._gap:
            self._gap = "\n"
        self._indent = 0

    def row(self) -> None:
        """End a line, also that of a table whose last cells are empty."""
        self._gap = "\n"
        self._is_new_row, self._indent = True, 0

    def cell(self) -> None:
        """End a table cell that is followed by another in its row."""
        is_kept = "\t" in self._gap or self._is_new_row
        self._gap = self._gap + "\t" if is_kept else "\t"
        self._indent = 0

    def image(self, image: Image, place: str) -> None:
        """Add an image."""
        if self.marker:
            self._add("", place)
            self._space()
        self._close()
        self.blocks.append(Block(self._gap, place, image))
        self._gap, self._is_new_row, self._indent = "", False, 0

    def ends_with_word(self) -> bool:
        """Whether the last character is part of a word, a number or a bracket that ends one."""
        last = self._parts[-1][-1:] if self._is_open and self._parts and not self._gap else ""
        return last.isalnum() or (last != "" and last in ")]}’'")

    def finish(self) -> list[Block]:
        """Return the blocks."""
        self._close()
        return self.blocks

    def _space(self) -> None:
        self._gap = self._gap or " "

    def _add(self, text: str, place: str) -> None:
        if self._gap not in ("", " ") or not self._is_open:
            self._close()
            self.blocks.append(Block(self._gap, place, "", self.is_verbatim))
            self._is_open = True
            if self._indent >= _LEAST_INDENT and not self.marker:
                self._parts.append(" " * self._indent)
        elif self._gap:
            self._parts.append(" ")
        self._gap, self._is_new_row, self._indent = "", False, 0
        if self.marker:
            self._parts.append(self.marker + " " if text else self.marker)
            self.marker = ""
        self._parts.append(text)

    def _close(self) -> None:
        if self._is_open:
            block = self.blocks[-1]
            block.content = "".join(self._parts)
            if block.is_verbatim:
                block.content = block.content.rstrip()
        self._parts, self._is_open = [], False


def segments(blocks: list[Block], left_out: Container[Key] = ()) -> tuple[Segment, ...]:
    """Return the segments of blocks; no whitespace stands at either end of the page.

    Args:
        left_out: keys of blocks that are no part of the document.
    """
    found: list[Segment] = []
    texts: list[str] = []
    gap = ""

    def end_text() -> None:
        text = "".join(texts)
        if text.strip():
            found.append(Text(text))
        texts.clear()

    for block in blocks:
        gap = _wider(gap, block.before)
        if not block.is_verbatim and left_out and block.key in left_out:
            gap = _wider(gap, "\n" if "\t" not in block.before else "")
            continue
        if found or texts:
            texts.append(gap)
        gap = ""
        if isinstance(block.content, str):
            texts.append(block.content)
        else:
            end_text()
            found.append(block.content)
    end_text()
    return tuple(found)


def _wider(first: str, second: str) -> str:
    """Return the one of two gaps that keeps more apart."""
    return max(first, second, key=lambda gap: ("", " ", "\t", "\n").index(gap[:1] and gap[0]))
