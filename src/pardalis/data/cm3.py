"""CM3: spans of a document move to its end when a row is loaded, so that a model learns to infill.

A span is text, or codes of one image: it never crosses the beginning or the end of an image, a
special id or the end of a turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pardalis.config import check_at_least, check_at_most
from pardalis.errors import ConfigError
from pardalis.seeds import numpy_generator
from pardalis.tokens import END_MASK, Encoded, Grammar, SpanKind, TokenSpan, mask_names, rotate

_MOST_DRAWS = 1000  # of one span; then a whole segment is taken


@dataclass(frozen=True, kw_only=True, slots=True)
class CM3:
    """The causally masked objective, in one of two published forms.

    ========= ======================= ===================== ===================
    form      number of spans         end of a span         loss on masks
    ========= ======================= ===================== ===================
    paper     Poisson(1), at least 1  the next mask, eos    none
    metaseq   Poisson(1), also 0      ``end_mask``          as on other tokens
    ========= ======================= ===================== ===================

    ``paper`` is that of CM3 (arXiv 2201.07520), ``metaseq`` that of its code, with which CM3Leon
    (arXiv 2309.02591) was trained. There, 37 % of the documents stay as they are. Unlike that code,
    a document and not a packed row is rotated, no token is lost for a span of length 0, and
    nothing is cut from the end, since the packer reserves what masks and ends take.
    """

    kind: Literal["cm3"] = "cm3"
    form: Literal["paper", "metaseq"] = "paper"
    spans: int | None = None  # exactly so many, as far as they fit; None: Poisson(1)
    max_spans: int = 16  # masks of the vocabulary; a document may take 2 or 3 tokens for each
    # Where a span is drawn. "document": both ends anywhere, and it is clipped to the segment of
    # which it has most, so long segments are masked most; "segment": inside one segment, and all
    # segments are as likely.
    place: Literal["document", "segment"] = "document"

    def __post_init__(self) -> None:
        check_at_least(self, spans=1, max_spans=1)
        check_at_most(self, max_spans=511)
        if self.spans is not None and self.spans > self.max_spans:
            raise ConfigError(
                f"spans is {self.spans}, above max_spans = {self.max_spans}; raise max_spans."
            )

    @property
    def special(self) -> tuple[str, ...]:
        """The special ids that the vocabulary needs."""
        return (*mask_names(self.max_spans), *self.writable)

    @property
    def writable(self) -> tuple[str, ...]:
        """Those of them that a model may generate."""
        return (END_MASK,) if self.form == "metaseq" else ()

    def load(self, document: Encoded, grammar: Grammar, seed: int) -> Encoded:
        """Rotate a document; one without text and codes stays as it is."""
        segments = segments_of(document, grammar)
        if not segments:
            return document
        generator = numpy_generator(seed, "cm3")
        least = 1 if self.form == "paper" else 0
        return rotate(
            document,
            draw_spans(segments, self.draw_number(generator), generator, least, self.place),
            grammar.vocabulary,
            own_ends=self.form == "metaseq",
            learns_masks=self.form == "metaseq",
        )

    def room(self, length: int) -> int:
        """Return the tokens with those of all masks and ends; a span has at least one token."""
        most = min(self.spans or self.max_spans, length)
        return length + most * (3 if self.form == "metaseq" else 2)

    def draw_number(self, generator: np.random.Generator) -> int:
        """Return how many spans a document is to have."""
        if self.spans is not None:
            return self.spans
        least = 1 if self.form == "paper" else 0
        return int(np.clip(generator.poisson(1.0), least, self.max_spans))


def segments_of(document: Encoded, grammar: Grammar) -> list[TokenSpan]:
    """Return the stretches that a span may lie in: runs of text, and the codes of each image."""
    return [
        (span.start + 1, span.stop - 1) if span.kind is SpanKind.IMAGE else (span.start, span.stop)
        for span in grammar.spans(document.ids)
        if span.kind is SpanKind.TEXT or (span.kind is SpanKind.IMAGE and span.complete)
    ]


def draw_spans(
    segments: Sequence[TokenSpan],
    n: int,
    generator: np.random.Generator,
    least: int = 0,
    place: Literal["document", "segment"] = "document",
) -> list[TokenSpan]:
    """Draw up to n spans that do not intersect, ascending.

    Of n^2 spans, those that are not empty and do not intersect an earlier one are kept, as in
    metaseq, until there are n. Fewer may be found.

    Args:
        segments: at least one, ascending; each span lies in one of them.
        least: at least so many are drawn, 0 or 1.
    """
    kept: list[TokenSpan] = []
    for draw in range(max(n * n, least * _MOST_DRAWS)):
        if len(kept) >= (n if draw < n * n else least):
            break
        span = _draw_span(segments, generator, place)
        if span[0] < span[1] and not any(intersect(span, other) for other in kept):
            kept.append(span)
    return sorted(kept) if kept or not least else [segments[0]]


def _draw_span(
    segments: Sequence[TokenSpan], generator: np.random.Generator, place: str
) -> TokenSpan:
    first, stop = segments[0][0], segments[-1][1]
    if place == "segment":
        first, stop = segments[int(generator.integers(len(segments)))]
    low, high = np.sort(generator.random(2)) * (stop - first)
    span = first + int(low), first + int(high + 0.5)
    return clip(span, segments)


def clip(span: TokenSpan, segments: Sequence[TokenSpan]) -> TokenSpan:
    """Return the part of a span in the segment of which it has most; of equal ones the first."""
    parts = [(max(span[0], start), min(span[1], stop)) for start, stop in segments]
    return max(parts, key=lambda part: part[1] - part[0])


def intersect(one: TokenSpan, other: TokenSpan) -> bool:
    """Whether two spans share a token."""
    return max(one[0], other[0]) < min(one[1], other[1])
