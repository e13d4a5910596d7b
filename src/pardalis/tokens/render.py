"""A sequence of ids as a line that a person can read."""

from collections.abc import Sequence

from pardalis.tokens.text import TextTokenizer
from pardalis.tokens.vocabulary import Vocabulary


def render(token_ids: Sequence[int], vocabulary: Vocabulary, text: TextTokenizer) -> str:
    """Write text as text, runs of image ids as ``[64 codes]`` and special ids by name.

    Tolerates malformed sequences: it is what one looks at when something is wrong.
    """
    parts: list[str] = []
    position = 0
    while position < len(token_ids):
        for ids, show in (
            (vocabulary.text, lambda run: text.decode([i - vocabulary.text.start for i in run])),
            (vocabulary.image, lambda run: f"[{len(run)} codes]"),
        ):
            run = _run(token_ids, position, ids)
            if run:
                parts.append(show(run))
                position += len(run)
                break
        else:
            parts.append(vocabulary.name_of(int(token_ids[position])))
            position += 1
    return "".join(parts)


def _run(token_ids: Sequence[int], start: int, ids: range) -> list[int]:
    stop = start
    while stop < len(token_ids) and int(token_ids[stop]) in ids:
        stop += 1
    return [int(token_id) for token_id in token_ids[start:stop]]
