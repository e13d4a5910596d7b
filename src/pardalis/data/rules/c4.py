"""Rule ``c4``: documents with what pages have that are no prose: code, text that fills a place."""

import re
from dataclasses import dataclass
from typing import Literal

from pardalis.config import check_at_least
from pardalis.data.rules.rule import Removal, amount
from pardalis.documents import Document

_SENTENCE_END = re.compile(r"""[.!?]["'”’)\]]*(?=\s|$)""")


@dataclass(frozen=True, kw_only=True, slots=True)
class C4:
    """Removes documents by the rules of C4 for whole pages (arXiv 1910.10683, section 2.2).

    Its rules for single lines are left out, since a line may belong to the image beside it.
    Documents without text are kept.
    """

    kind: Literal["c4"] = "c4"
    min_sentences: int = 3
    curly_brackets: bool = False  # whether a document may have "{"
    lorem_ipsum: bool = False

    def __post_init__(self) -> None:
        check_at_least(self, min_sentences=0)

    def removal(self, document: Document) -> Removal | None:
        text = document.text.strip()
        if not text:
            return None
        if not self.curly_brackets and "{" in text:
            return Removal("The text has a curly bracket, as code does.")
        if not self.lorem_ipsum and "lorem ipsum" in text.lower():
            return Removal("The text says 'lorem ipsum', which fills a place.")
        found = len(_SENTENCE_END.findall(text))
        if found < self.min_sentences:
            return Removal(
                f"The text has {amount(found, 'sentence')}; at least {self.min_sentences} count."
            )
        return None
