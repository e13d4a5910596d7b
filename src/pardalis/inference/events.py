"""What an engine tells about the answers that it writes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import PIL.Image

from pardalis.codec import Codec
from pardalis.inference.token_loop import FinishReason
from pardalis.tokens import SpanKind, TextStream


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text was written: whole characters, which join to the text of the answer."""

    key: int  # of the answer, as of all events
    text: str


@dataclass(frozen=True, slots=True)
class ImageBegun:
    """The model began to draw."""

    key: int
    index: int  # its number among the images of the answer, from 0


@dataclass(frozen=True, slots=True)
class ImageRows:
    """One more row of an image's grid of codes is complete."""

    key: int
    index: int
    rows: int  # complete ones
    codes: tuple[int, ...]  # of these rows, as ``ImageTokenizer.partial_image`` takes them


@dataclass(frozen=True, slots=True)
class ImageDone:
    """An image is there."""

    key: int
    index: int
    image: PIL.Image.Image


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer took."""

    prompt_tokens: int
    completion_tokens: int
    images: int
    seconds: float  # from submission
    first_event_s: float  # from submission to the first event


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of an answer."""

    key: int
    reason: FinishReason | Literal["failed"]
    usage: Usage
    error: str = ""  # of an image that could not be decoded


Event: TypeAlias = TextDelta | ImageBegun | ImageRows | ImageDone | Finished


class EventWriter:
    """Turns the ids of one answer into events, as they are written."""

    def __init__(self, key: int, codec: Codec) -> None:
        self.key, self.codec = key, codec
        self.images = 0  # begun so far
        self._text = TextStream(codec.text_tokenizer)
        self._codes: list[int] = []

    def write(self, ids: Sequence[int]) -> Iterator[TextDelta | ImageBegun | ImageRows]:
        """Yield what is known after these ids that was not known before."""
        vocabulary, grammar = self.codec.vocabulary, self.codec.grammar
        text = ""
        for span in grammar.spans(ids):
            span_ids = ids[span.start : span.stop]
            if span.kind is SpanKind.TEXT:
                text += self._text.push([vocabulary.piece(token_id) for token_id in span_ids])
                continue
            yield from self._delta(text + self._text.end())
            text = ""
            if span.kind is SpanKind.IMAGE:
                self._codes = []
                self.images += 1
                yield ImageBegun(self.key, self.images - 1)
            for code in grammar.codes(span_ids):
                yield from self._code(code)
        yield from self._delta(text)

    def end(self) -> Iterator[TextDelta]:
        """Yield the text that was held back for what might follow."""
        yield from self._delta(self._text.end())

    def _delta(self, text: str) -> Iterator[TextDelta]:
        if text:
            yield TextDelta(self.key, text)

    def _code(self, code: int) -> Iterator[ImageRows]:
        self._codes.append(code)
        rows, rest = divmod(len(self._codes), self.codec.image_tokenizer.config.grid)
        if not rest:
            yield ImageRows(self.key, self.images - 1, rows, tuple(self._codes))
