"""Rule ``text_length``: documents whose text is too short or too long."""

from dataclasses import dataclass
from typing import Literal

from pardalis.config import check_at_least
from pardalis.data.rules.rule import Removal, amount
from pardalis.documents import Document


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLength:
    """Removes documents by the length of all their text; one of images alone has none.

    Words are what white space parts, so count characters of languages that write none between them.
    """

    kind: Literal["text_length"] = "text_length"
    min_words: int = 0
    max_words: int | None = None
    min_characters: int = 0
    max_characters: int | None = None

    def __post_init__(self) -> None:
        check_at_least(self, min_words=0, min_characters=0)
        for name in ("max_words", "max_characters"):
            if getattr(self, name) is not None:
                check_at_least(self, **{name: 0})

    def removal(self, document: Document) -> Removal | None:
        text = document.text.strip()
        for found, noun, least, most in (
            (len(text), "character", self.min_characters, self.max_characters),
            (len(text.split()), "word", self.min_words, self.max_words),
        ):
            if found < least:
                return Removal(f"The text has {amount(found, noun)}, and at least {least:,} count.")
            if most is not None and found > most:
                return Removal(f"The text has {amount(found, noun)}, and at most {most:,} count.")
        return None
