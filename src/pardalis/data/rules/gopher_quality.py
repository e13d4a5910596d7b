"""Rule ``gopher_quality``: documents whose text does not look like prose."""

from dataclasses import dataclass
from typing import Literal

from pardalis.config import check_at_least, check_fractions
from pardalis.data.rules.rule import Removal, amount
from pardalis.documents import Document

_STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_BULLETS = ("•", "-", "*", "‣", "●", "–")
_ELLIPSES = ("...", "…")
_EDGES = ".,;:!?\"'()[]{}“”‘’"


@dataclass(frozen=True, kw_only=True, slots=True)
class GopherQuality:
    """Removes documents by the quality rules of Gopher (arXiv 2112.11446, section A.1.1).

    They are made for English prose; words are what white space parts. Documents without text are
    kept. Lower ``min_words`` for captions.
    """

    kind: Literal["gopher_quality"] = "gopher_quality"
    min_words: int = 50
    max_words: int = 100_000
    min_word_length: float = 3.0  # characters, mean over words
    max_word_length: float = 10.0
    max_symbols: float = 0.1  # "#" to words, and ellipses to words
    max_bullets: float = 0.9  # share of lines that begin with one
    max_ellipses: float = 0.3  # share of lines that end with one
    min_letters: float = 0.8  # share of words with a letter
    min_stop_words: int = 2  # different ones of: the, be, to, of, and, that, have, with

    def __post_init__(self) -> None:
        check_at_least(
            self, min_words=0, max_words=1, min_word_length=0, max_word_length=0, max_symbols=0,
            min_stop_words=0,
        )  # fmt: skip
        check_fractions(self, "max_bullets", "max_ellipses", "min_letters")

    def removal(self, document: Document) -> Removal | None:
        text = document.text.strip()
        reason = self._why(text) if text else ""
        return Removal(reason) if reason else None

    def _why(self, text: str) -> str:
        words = text.split()
        n, lines = len(words), [line.strip() for line in text.splitlines() if line.strip()]
        if not self.min_words <= n <= self.max_words:
            return (
                f"The text has {amount(n, 'word')}; {self.min_words:,} to {self.max_words:,} count."
            )
        length = sum(map(len, words)) / n
        if not self.min_word_length <= length <= self.max_word_length:
            return (
                f"Its words have {length:.1f} characters on average; {self.min_word_length:g} to "
                f"{self.max_word_length:g} count."
            )
        for name, count in (
            ("number signs", text.count("#")),
            ("ellipses", sum(map(text.count, _ELLIPSES))),
        ):
            if count > self.max_symbols * n:
                return (
                    f"It has {count:,} {name} to {n:,} words; at most {self.max_symbols:g} count."
                )
        for what, share, most in (
            ("begin with a bullet", _share(lines, _BULLETS, str.startswith), self.max_bullets),
            ("end with an ellipsis", _share(lines, _ELLIPSES, str.endswith), self.max_ellipses),
        ):
            if share > most:
                return f"Of its lines {share:.0%} {what}; at most {most:.0%} count."
        lettered = sum(any(map(str.isalpha, word)) for word in words) / n
        if lettered < self.min_letters:
            return (
                f"Of its words {lettered:.0%} have a letter; at least {self.min_letters:.0%} count."
            )
        found = _STOP_WORDS & {word.strip(_EDGES).lower() for word in words}
        if len(found) < self.min_stop_words:
            return (
                f"It has {len(found)} of the stop words {', '.join(sorted(_STOP_WORDS))}; at least "
                f"{self.min_stop_words} count."
            )
        return ""


def _share(lines: list[str], ends: tuple[str, ...], has: object) -> float:
    return sum(bool(has(line, ends)) for line in lines) / len(lines)  # type: ignore[operator]
