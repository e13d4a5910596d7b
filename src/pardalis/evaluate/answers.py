"""Whether an answer to a question is right."""

import re
from collections.abc import Iterable

_SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n")


def first_sentence(text: str) -> str:
    """Return a text up to the first end of a sentence or of a line.

    >>> first_sentence(" Paris. It lies on the Seine.")
    'Paris.'
    """
    return _SENTENCE_END.split(text.strip(), maxsplit=1)[0]


def is_right(answer: str, accepted: Iterable[str]) -> bool:
    """Whether the first sentence of an answer has an accepted text, as whole words in any case.

    >>> is_right("The capital is paris.", ["Paris"]), is_right("2 + 3 = 15", ["5", "five"])
    (True, False)
    """
    sentence = first_sentence(answer)
    return any(
        re.search(rf"(?<!\w){re.escape(text.strip())}(?!\w)", sentence, re.IGNORECASE)
        for text in accepted
    )
