"""A sequence of token ids as a readable line."""

from collections.abc import Mapping

from pardalis.tokens.encoded import Ids
from pardalis.tokens.grammar import Grammar, SpanKind
from pardalis.tokens.text import TextTokenizer


def render(
    token_ids: Ids,
    grammar: Grammar,
    text: TextTokenizer,
    names: Mapping[int, str] | None = None,
) -> str:
    """Write text as text, runs of image ids as ``[64 codes]`` and special ids by name.

    Malformed sequences are accepted, so that errors can be inspected.

    Args:
        names: names that a chat template has for special ids.
    """
    names = names or {}
    vocabulary = grammar.vocabulary
    parts: list[str] = []
    for span in grammar.spans(token_ids):
        ids = [int(token_id) for token_id in token_ids[span.start : span.stop]]
        if span.kind is SpanKind.TEXT:
            parts.append(text.decode([vocabulary.text_token(token_id) for token_id in ids]))
            continue
        codes = grammar.codes(ids)
        marks = [
            names.get(token_id) or vocabulary.name_of(token_id)
            for token_id in ids
            if token_id not in vocabulary.image
        ]
        parts += [*marks[:1], *([f"[{len(codes)} codes]"] if codes else []), *marks[1:]]
    return "".join(parts)
