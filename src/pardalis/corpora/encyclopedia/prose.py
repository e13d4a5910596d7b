"""Cutting a paragraph of English at sentence ends; good enough for encyclopedia leads, no more."""

import re

# A sentence ends at . ! ? before a capital, unless a short word precedes the stop ("c.", "St.").
_SENTENCE_END = re.compile(r"(?<=\w\w\w[.!?]|\w\w[)\"'][.!?]|\w\w[.!?][)\"'])\s+(?=[A-Z\"'(])")


def sentences(text: str) -> list[str]:
    """Return the sentences of a text whose whitespace is single spaces."""
    return [sentence for sentence in _SENTENCE_END.split(text) if sentence]


def shorten(text: str, n_words: int) -> str:
    """Return the whole sentences that fit into ``n_words`` words; the first words if none fits."""
    kept: list[str] = []
    left = n_words
    for sentence in sentences(text):
        left -= len(sentence.split())
        if left < 0:
            break
        kept.append(sentence)
    return " ".join(kept) if kept else " ".join(text.split()[:n_words])
