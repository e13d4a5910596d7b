"""A sequence of ids as a line that a person can read."""

from collections.abc import Sequence
from itertools import groupby

from pardalis.tokens.text import TextTokenizer
from pardalis.tokens.vocabulary import Vocabulary


def render(token_ids: Sequence[int], vocabulary: Vocabulary, text: TextTokenizer) -> str:
    """Write text as text, runs of image ids as ``[64 codes]`` and special ids by name.

    Tolerates malformed sequences: it is what one looks at when something is wrong.
    """

    def modality(token_id: int) -> str:
        if token_id in vocabulary.text:
            return "text"
        return "image" if token_id in vocabulary.image else vocabulary.name_of(token_id)

    parts: list[str] = []
    for kind, group in groupby(map(int, token_ids), modality):
        run = list(group)
        match kind:
            case "text":
                parts.append(text.decode([vocabulary.piece(i) for i in run]))
            case "image":
                parts.append(f"[{len(run)} codes]")
            case name:
                parts.append(name * len(run))
    return "".join(parts)
