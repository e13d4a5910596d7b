"""The events of a completion, and what turns token ids into them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import PIL.Image

from pardalis.codec import Codec
from pardalis.inference.log_probs import TokenLogProb
from pardalis.inference.stop import held_length, stop_start
from pardalis.inference.token_loop import FinishReason
from pardalis.retrieval import Retrieved
from pardalis.tokens import SpanKind, TextStream


@dataclass(frozen=True, slots=True)
class DocumentsRetrieved:
    """The documents that stand before the prompt, the best first: the first event, if any do."""

    key: int  # identifies the completion, in every event
    documents: tuple[Retrieved, ...]


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
class LogProbs:
    """The log-probabilities of tokens: of all that a completion generates, in order, or scores."""

    key: int
    tokens: tuple[TokenLogProb, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and time that a completion took."""

    prompt_tokens: int
    prompt_image_tokens: int  # those of them that are codes of images, or begin and end one
    completion_tokens: int  # those of a stop string included
    completion_image_tokens: int
    images: int
    seconds: float  # from submission
    first_event_s: float  # from submission to the first event

    @property
    def prompt_text_tokens(self) -> int:
        """Tokens of the prompt that are of no image: text, ``bos`` and ends of turns."""
        return self.prompt_tokens - self.prompt_image_tokens

    @property
    def completion_text_tokens(self) -> int:
        """Tokens of the completion that are of no image."""
        return self.completion_tokens - self.completion_image_tokens


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a completion."""

    key: int
    reason: FinishReason | Literal["failed"]
    usage: Usage
    error: str = ""  # why an image could not be decoded; set if the reason is ``failed``


Event: TypeAlias = (
    DocumentsRetrieved | TextDelta | ImageBegun | ImageRows | ImageDone | LogProbs | Finished
)


class EventWriter:
    """Turns the token ids of one completion into events, as they are generated.

    Text that may become a stop string is held back until it cannot.

    Args:
        masked_image: the codes before and behind the gap, if the completion fills one in an image.
            The events are those of the whole image.

    Attributes:
        images: images begun so far.
        n_ids: token ids of the completion so far; those after a stop string do not count.
        stopped: whether the text has reached a stop string; later ids are ignored.
    """

    def __init__(
        self,
        key: int,
        codec: Codec,
        stop: Sequence[str] = (),
        masked_image: tuple[list[int], list[int]] | None = None,
    ) -> None:
        self.key, self.codec, self.stop, self.masked_image = key, codec, stop, masked_image
        self.images, self.n_ids, self.stopped = 0, 0, False
        self._text = TextStream(codec.text_tokenizer)
        self._held = ""  # text that may become a stop string
        self._codes: list[int] = []

    def write(self, ids: Sequence[int]) -> Iterator[TextDelta | ImageBegun | ImageRows]:
        """Yield the events that these token ids cause."""
        grammar = self.codec.grammar
        text = ""
        for span in () if self.stopped else grammar.spans(ids):
            span_ids = ids[span.start : span.stop]
            if span.kind is SpanKind.TEXT:
                text += self._text_of(span_ids)
                if self.stopped:
                    break
                continue
            yield from self._delta(text + self._rest())
            text = ""
            if self.stopped:
                break
            self.n_ids += len(span_ids)
            before, after = self.masked_image or ([], [])
            if span.kind is SpanKind.IMAGE or (span.kind is SpanKind.CODES and not self.images):
                self._codes = list(before)
                self.images += 1
                yield ImageBegun(self.key, self.images - 1)
            for code in grammar.codes(span_ids):
                self._codes.append(code)
                if len(self._codes) == grammar.codes_per_image - len(after):
                    self._codes += after
                rows, rest = divmod(len(self._codes), self.codec.image_tokenizer.config.grid)
                if not rest:
                    yield ImageRows(self.key, self.images - 1, rows, tuple(self._codes))
        yield from self._delta(text)

    def end(self) -> Iterator[TextDelta]:
        """Yield the text that was held back."""
        yield from self._delta(self._rest())

    def _text_of(self, text_ids: Sequence[int]) -> str:
        """Return the text that these ids let be shown; ids after a stop string are left out."""
        text = ""
        for token_id in text_ids:
            self.n_ids += 1
            text += self._shown(self._text.push([self.codec.vocabulary.text_token(token_id)]))
            if self.stopped:
                break
        return text

    def _shown(self, text: str) -> str:
        """Return what may be shown once more text has come, and hold the rest back."""
        if not self.stop:
            return text
        text = self._held + text
        if (start := stop_start(text, self.stop)) is not None:
            self.stopped, self._held = True, ""
            return text[:start]
        shown = len(text) - held_length(text, self.stop)
        self._held = text[shown:]
        return text[:shown]

    def _rest(self) -> str:
        """Return the text that is left to show at the end of a text."""
        text = self._shown(self._text.end())
        text, self._held = text + self._held, ""
        return text

    def _delta(self, text: str) -> Iterator[TextDelta]:
        if text:
            yield TextDelta(self.key, text)
