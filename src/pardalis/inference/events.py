"""The events of a completion, and what turns token ids into them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import PIL.Image

from pardalis.codec import Codec
from pardalis.inference.token_loop import FinishReason
from pardalis.tokens import SpanKind, TextStream


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text in whole characters; all deltas join to the text of the completion."""

    key: int  # identifies the completion, in every event
    text: str


@dataclass(frozen=True, slots=True)
class ImageBegun:
    """An image began."""

    key: int
    index: int  # counts the images of the completion from 0


@dataclass(frozen=True, slots=True)
class ImageRows:
    """Another row of an image's code grid is complete."""

    key: int
    index: int
    rows: int  # complete rows so far
    codes: tuple[int, ...]  # all their codes, as ``ImageTokenizer.partial_image`` takes them


@dataclass(frozen=True, slots=True)
class ImageDone:
    """An image is decoded."""

    key: int
    index: int
    image: PIL.Image.Image


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and time that a completion took."""

    prompt_tokens: int
    completion_tokens: int
    images: int
    seconds: float  # from submission
    first_event_s: float  # from submission to the first event


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a completion."""

    key: int
    reason: FinishReason | Literal["failed"]
    usage: Usage
    error: str = ""  # why an image could not be decoded; set if the reason is ``failed``


Event: TypeAlias = TextDelta | ImageBegun | ImageRows | ImageDone | Finished


class EventWriter:
    """Turns the token ids of one completion into events, as they are generated."""

    def __init__(self, key: int, codec: Codec) -> None:
        self.key, self.codec = key, codec
        self.images = 0  # images begun so far
        self._text = TextStream(codec.text_tokenizer)
        self._codes: list[int] = []

    def write(self, ids: Sequence[int]) -> Iterator[TextDelta | ImageBegun | ImageRows]:
        """Yield the events that these token ids cause."""
        vocabulary, grammar = self.codec.vocabulary, self.codec.grammar
        text = ""
        for span in grammar.spans(ids):
            span_ids = ids[span.start : span.stop]
            if span.kind is SpanKind.TEXT:
                text += self._text.push([vocabulary.text_token(token_id) for token_id in span_ids])
                continue
            yield from self._delta(text + self._text.end())
            text = ""
            if span.kind is SpanKind.IMAGE:
                self._codes = []
                self.images += 1
                yield ImageBegun(self.key, self.images - 1)
            for code in grammar.codes(span_ids):
                self._codes.append(code)
                rows, rest = divmod(len(self._codes), self.codec.image_tokenizer.config.grid)
                if not rest:
                    yield ImageRows(self.key, self.images - 1, rows, tuple(self._codes))
        yield from self._delta(text)

    def end(self) -> Iterator[TextDelta]:
        """Yield the text that was held back because a character was incomplete."""
        yield from self._delta(self._text.end())

    def _delta(self, text: str) -> Iterator[TextDelta]:
        if text:
            yield TextDelta(self.key, text)
