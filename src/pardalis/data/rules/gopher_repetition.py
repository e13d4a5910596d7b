"""Rule ``gopher_repetition``: documents whose text repeats itself."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pardalis.config import check_fractions
from pardalis.data.rules.rule import Removal
from pardalis.documents import Document

_PARAGRAPHS = re.compile(r"\n{2,}")


@dataclass(frozen=True, kw_only=True, slots=True)
class GopherRepetition:
    """Removes documents by the repetition rules of Gopher (arXiv 2112.11446, table A1).

    All numbers are shares of the text: those of lines and paragraphs that stood before, and of
    characters in repeated n-grams of words. An n-gram that stands once repeats nothing, so short
    texts pass.
    """

    kind: Literal["gopher_repetition"] = "gopher_repetition"
    lines: float = 0.30
    line_characters: float = 0.20
    paragraphs: float = 0.30
    paragraph_characters: float = 0.20
    # Characters in the most frequent n-gram of 2, 3, ... words.
    top_ngrams: tuple[float, ...] = (0.20, 0.18, 0.16)
    # Characters in n-grams of 5, 6, ... words that stood before.
    repeated_ngrams: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)

    def __post_init__(self) -> None:
        check_fractions(self, "lines", "line_characters", "paragraphs", "paragraph_characters")

    def removal(self, document: Document) -> Removal | None:
        text = document.text.strip()
        reason = self._why(text) if text else ""
        return Removal(reason) if reason else None

    def _why(self, text: str) -> str:
        for name, parts, most, most_characters in (
            ("lines", text.split("\n"), self.lines, self.line_characters),
            ("paragraphs", _PARAGRAPHS.split(text), self.paragraphs, self.paragraph_characters),
        ):
            filled = [stripped for part in parts if (stripped := part.strip())]
            repeated, characters = _repeated(filled)
            if repeated > most * len(filled):
                return _sentence(f"of its {name}", repeated / len(filled), most)
            if characters > most_characters * len(text):
                what = f"of its characters, in {name},"
                return _sentence(what, characters / len(text), most_characters)
        words = text.split()
        total = sum(map(len, words))
        for n, most in enumerate(self.top_ngrams, start=2):
            counts = Counter(_ngrams(words, n))
            top, count = max(counts.items(), key=lambda item: item[1], default=((), 0))
            if count > 1 and (share := count * sum(map(len, top)) / total) > most:
                return _sentence(f"of its characters, in one {n}-gram of words,", share, most)
        for n, most in enumerate(self.repeated_ngrams, start=5):
            if (share := _in_repeated(words, n) / total) > most:
                return _sentence(f"of its characters, in {n}-grams of words,", share, most)
        return ""


def _sentence(what: str, share: float, most: float) -> str:
    share = min(share, 1)
    return f"The text repeats itself: {share:.0%} {what} are repeated; at most {most:.0%} count."


def _repeated(parts: Sequence[str]) -> tuple[int, int]:
    """Return how many parts stood before, and how many characters they have."""
    seen: set[str] = set()
    count = characters = 0
    for part in parts:
        if part in seen:
            count, characters = count + 1, characters + len(part)
        seen.add(part)
    return count, characters


def _ngrams(words: Sequence[str], n: int) -> "zip[tuple[str, ...]]":
    return zip(*(words[start:] for start in range(n)), strict=False)


def _in_repeated(words: Sequence[str], n: int) -> int:
    """Return the characters of words in n-grams that stood before, each word once."""
    seen: set[tuple[str, ...]] = set()
    characters, after = 0, 0
    for start, gram in enumerate(_ngrams(words, n)):
        if gram in seen:
            first = max(start, after)
            characters += sum(map(len, words[first : start + n]))
            after = start + n
        seen.add(gram)
    return characters
