"""What an engine tells about the answers that it writes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from PIL import Image

from pardalis.codec import Codec
from pardalis.inference.token_loop import FinishReason
from pardalis.tokens import TextStream


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text was written: whole characters, which join to the text of the answer."""

    key: int  # of the answer, as of all events
    text: str


@dataclass(frozen=True, slots=True)
class PictureBegun:
    """The model began to draw."""

    key: int
    picture: int  # its number in the answer, from 0


@dataclass(frozen=True, slots=True)
class PictureRows:
    """One more row of a picture's grid of codes is complete."""

    key: int
    picture: int
    rows: int  # complete ones
    codes: tuple[int, ...]  # of these rows, as ``ImageTokenizer.partial_image`` takes them


@dataclass(frozen=True, slots=True)
class PictureDone:
    """A picture is there."""

    key: int
    picture: int
    image: Image.Image


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer took."""

    prompt_ids: int
    written_ids: int
    pictures: int
    seconds: float  # from submission
    first_event_s: float  # from submission to the first event


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of an answer."""

    key: int
    reason: FinishReason | Literal["failed"]
    usage: Usage
    error: str = ""  # of a picture that could not be decoded


Event: TypeAlias = TextDelta | PictureBegun | PictureRows | PictureDone | Finished


class EventWriter:
    """Turns the ids of one answer into events, as they are written."""

    def __init__(self, key: int, codec: Codec) -> None:
        self.key, self.codec = key, codec
        self.pictures = 0  # begun so far
        self._text = TextStream(codec.text_tokenizer)
        self._codes: list[int] = []

    def write(self, ids: Sequence[int]) -> Iterator[TextDelta | PictureBegun | PictureRows]:
        """Yield what is known after these ids that was not known before."""
        vocabulary = self.codec.vocabulary
        text = ""
        for token_id in ids:
            if token_id in vocabulary.text:
                text += self._text.push([vocabulary.piece(token_id)])
                continue
            yield from self._delta(text + self._text.end())
            text = ""
            if token_id == vocabulary.begin_image_id:
                self._codes = []
                self.pictures += 1
                yield PictureBegun(self.key, self.pictures - 1)
            elif token_id in vocabulary.image:
                yield from self._code(token_id - vocabulary.image.start)
        yield from self._delta(text)

    def end(self) -> Iterator[TextDelta]:
        """Yield the text that was held back for what might follow."""
        yield from self._delta(self._text.end())

    def _delta(self, text: str) -> Iterator[TextDelta]:
        if text:
            yield TextDelta(self.key, text)

    def _code(self, code: int) -> Iterator[PictureRows]:
        self._codes.append(code)
        rows, rest = divmod(len(self._codes), self.codec.image_tokenizer.config.grid)
        if not rest:
            yield PictureRows(self.key, self.pictures - 1, rows, tuple(self._codes))
