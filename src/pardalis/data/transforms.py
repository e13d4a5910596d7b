"""Transforms of documents, as a source of a recipe lists them.

There are two places for a transform. A :class:`WriteTransform` runs once, when shards are written,
and may make several documents of one. A :class:`LoadTransform` runs whenever a row is loaded, and
may do another thing in each epoch. What it does is a function of (seed, name of the document,
epoch), so that a run resumes exactly.

A transform is a config with a field ``kind`` and a method ``write``, or ``load`` and ``room``. One
that reads files of the run has ``open`` and ``room`` (:class:`RunTransform`).
``TRANSFORMS.add`` makes it known to recipes::

    @TRANSFORMS.add
    @dataclass(frozen=True, kw_only=True)
    class Reversed:
        kind: Literal["reversed"] = "reversed"

        def load(self, document: Encoded, grammar: Grammar, seed: int) -> Encoded: ...

        def room(self, length: int) -> int:
            return length
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer

from pardalis import config as configs
from pardalis.config import Kinds, check_fractions
from pardalis.data.cm3 import CM3
from pardalis.documents import Document, Image, Text
from pardalis.errors import ConfigError, DataError
from pardalis.seeds import derive, numpy_generator
from pardalis.tokens import Encoded, Grammar, SpanKind


@runtime_checkable
class WriteTransform(Protocol):
    """What runs when shards are written; a pure function of its arguments."""

    @property
    def kind(self) -> str: ...

    def write(
        self, document: Encoded, raw: Document, grammar: Grammar
    ) -> Iterable[tuple[str, Encoded]]:
        """Return what is written of a document, each with a suffix of its name.

        Args:
            raw: the document as it was read.
        """
        ...


@runtime_checkable
class LoadTransform(Protocol):
    """What runs when a row is loaded; a pure function of its arguments."""

    @property
    def kind(self) -> str: ...

    def load(self, document: Encoded, grammar: Grammar, seed: int) -> Encoded:
        """Return the document as training sees it in one epoch.

        Args:
            seed: derived from the seed of the run, the document's name and the epoch.
        """
        ...

    def room(self, length: int) -> int:
        """Return the most tokens that a document of some length has afterwards.

        The packer reserves them. A longer document must not get less room than a shorter one.
        """
        ...


@runtime_checkable
class NeedsSpecial(Protocol):
    """What a transform has besides, if it writes special ids of its own.

    A new vocabulary gets them.
    """

    @property
    def special(self) -> tuple[str, ...]: ...

    @property
    def writable(self) -> tuple[str, ...]:
        """Those of them that a model may generate."""
        ...


@runtime_checkable
class RunTransform(Protocol):
    """What runs when a row is loaded, and reads files that stages of the run wrote for a source."""

    @property
    def kind(self) -> str: ...

    def open(
        self, run: Path, source: str, grammar: Grammar
    ) -> Callable[[Encoded, str, int], Encoded]:
        """Open the files; return a pure function of a document, its name and a seed.

        Args:
            run: the run folder.
            source: name of the source.

        Raises:
            DataError: a file is missing or damaged.
        """
        ...

    def room(self, length: int) -> int:
        """Return the most tokens that a document has afterwards, as of a LoadTransform."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PairOrder:
    """The order of a text with one image; other documents are written as they are.

    Chameleon puts the image first in half of its pairs (arXiv 2405.09818, section 2.2), so that a
    model learns captioning and text-to-image.
    """

    kind: Literal["pair_order"] = "pair_order"
    # "both": each pair is written in both orders; "random": in one, by a hash of the name.
    order: Literal["both", "random"] = "both"

    def write(
        self, document: Encoded, raw: Document, grammar: Grammar
    ) -> list[tuple[str, Encoded]]:
        if not _is_pair(raw):
            return [("", document)]
        swapped = "#swapped", _swap(document, grammar)
        if self.order == "both":
            return [("", document), swapped]
        return [swapped if derive(0, "pair order", ascii(raw.name)) % 2 else ("", document)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModalityDropout:
    """Leaves out the text before the image of a text-image pair, anew in each epoch.

    The model then learns images without a text, which the unconditional branch of classifier-free
    guidance (arXiv 2207.12598) asks for. A pair is ``bos``, text, one image, ``eos``; other
    documents stay as they are.
    """

    kind: Literal["modality_dropout"] = "modality_dropout"
    probability: float = 0.1  # for each pair and epoch

    def __post_init__(self) -> None:
        check_fractions(self, "probability")

    def load(self, document: Encoded, grammar: Grammar, seed: int) -> Encoded:
        if numpy_generator(seed).random() >= self.probability:
            return document
        spans = grammar.spans(document.ids)
        opening = grammar.opening_length(document.ids)
        if [span.kind for span in spans[opening:]] != _TEXT_TO_IMAGE:
            return document
        return Encoded.joined(document[:opening], document[spans[opening + 1].start :])

    def room(self, length: int) -> int:
        return length


Transform = WriteTransform | LoadTransform | RunTransform
TRANSFORMS = Kinds(PairOrder, ModalityDropout, CM3)

_TEXT_TO_IMAGE = [SpanKind.TEXT, SpanKind.IMAGE, SpanKind.EOS]


class Transforms:
    """The transforms of one source, in order.

    Args:
        transforms: as the source lists them.
        source: its name.
        run: the run folder, from which some read when a document is loaded.

    Raises:
        ConfigError: one has neither ``write`` nor ``load`` and ``room``, or needs a special id that
            the vocabulary does not have.
    """

    def __init__(
        self,
        transforms: Sequence[Any],
        grammar: Grammar,
        source: str,
        run: Path | None = None,
    ) -> None:
        self.grammar, self.source, self._run = grammar, source, run
        self._written, self._loaded = _by_place(transforms)
        special, writable = special_of(transforms)
        if missing := [name for name in special if name not in grammar.vocabulary.special]:
            raise ConfigError(
                f"The transforms of source {source!r} need the special ids {', '.join(special)}, "
                f"but the vocabulary has no {missing[0]!r}; add them to the model by "
                f"`extend_vocabulary(bundle, special={special}, writable={writable})`."
            )
        self._opened: dict[int, Callable[[Encoded, str, int], Encoded]] = {}

    def __bool__(self) -> bool:
        """Whether any runs when a row is loaded."""
        return bool(self._loaded)

    def write(self, document: Encoded, raw: Document) -> list[tuple[str, Encoded]]:
        """Return what is written of a document, each with its name."""
        written = [(raw.name, document)]
        for transform in self._written:
            written = [
                (name + suffix, after)
                for name, before in written
                for suffix, after in transform.write(before, raw, self.grammar)
            ]
        return written

    def load(self, document: Encoded, name: str, seed: int, epoch: int) -> Encoded:
        """Return a document as training sees it in an epoch.

        Args:
            seed: the seed of the order of rows.

        Raises:
            DataError: a transform takes more tokens than it has declared.
        """
        for number, transform in enumerate(self._loaded):
            own_seed = derive(
                seed, "transform", number, transform.kind, self.source, ascii(name), epoch
            )
            if isinstance(transform, LoadTransform):
                after = transform.load(document, self.grammar, own_seed)
            else:
                after = self._open(number, transform)(document, name, own_seed)
            room = transform.room(len(document))
            if len(after) > room:
                raise DataError(
                    f"The transform {transform.kind!r} made {len(after)} tokens of the "
                    f"{len(document)} of {name!r} in source {self.source!r}, but its `room` "
                    f"declares at most {room}; correct it."
                )
            document = after
        return document

    def _open(self, number: int, transform: RunTransform) -> Callable[[Encoded, str, int], Encoded]:
        if number not in self._opened:
            if self._run is None:
                raise ConfigError(
                    f"The transform {transform.kind!r} of source {self.source!r} reads files of a "
                    "run; load the rows with the folder of that run."
                )
            self._opened[number] = transform.open(self._run, self.source, self.grammar)
        return self._opened[number]


def rooms(transforms: Sequence[Any], row_tokens: int) -> Integer[np.ndarray, " lengths"]:
    """Return the tokens that a document of each length, 0 to ``row_tokens``, may take in a row.

    Raises:
        ConfigError: a transform gives a longer document less room.
    """
    tokens = np.arange(row_tokens + 1)
    for transform in _by_place(transforms)[1]:
        tokens = np.array([transform.room(length) for length in tokens.tolist()], dtype=np.int64)
        if (np.diff(tokens) < 0).any():
            raise ConfigError(
                f"The transform {transform.kind!r} gives a longer document less room than a "
                "shorter one; correct its `room`."
            )
    return tokens


def shard_inputs(transforms: Sequence[Any], row_tokens: int) -> Any:
    """Return what shards depend on: what runs at writing, and the room that the rest takes.

    Where earlier versions had a word, it is that word, so that their shards remain valid.
    """
    written: Any
    match _by_place(transforms)[0]:
        case []:
            written = "as_written"
        case [PairOrder(order=order)]:
            written = order
        case several:
            written = [configs.to_dict(transform) for transform in several]
    tokens = rooms(transforms, row_tokens)
    has_room = bool((tokens != np.arange(row_tokens + 1)).any())
    return [written, configs.fingerprint(tokens.tolist())] if has_room else written


def row_inputs(transforms: Sequence[Any]) -> list[dict[str, Any]]:
    """Return what rows depend on besides the shards."""
    return [configs.deciding(transform) for transform in _by_place(transforms)[1]]


def special_of(transforms: Iterable[Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the special ids that transforms need, each once, and those of them to be generated."""
    needing = [transform for transform in transforms if isinstance(transform, NeedsSpecial)]
    special = dict.fromkeys(name for transform in needing for name in transform.special)
    writable = dict.fromkeys(name for transform in needing for name in transform.writable)
    return tuple(special), tuple(writable)


def _by_place(
    transforms: Sequence[Any],
) -> tuple[list[WriteTransform], list[LoadTransform | RunTransform]]:
    for transform in transforms:
        if not isinstance(transform, WriteTransform | LoadTransform | RunTransform):
            raise ConfigError(
                f"The transform {type(transform).__name__} needs a method `write`, or the methods "
                "`load` and `room`."
            )
    return (
        [each for each in transforms if isinstance(each, WriteTransform)],
        [each for each in transforms if isinstance(each, LoadTransform | RunTransform)],
    )


def _is_pair(document: Document) -> bool:
    """Return whether a document is one text and one image, in either order, without roles."""
    kinds = [type(segment) for segment in document.segments if segment.role is None]
    return len(document.segments) == 2 and (kinds in ([Text, Image], [Image, Text]))


def _swap(document: Encoded, grammar: Grammar) -> Encoded:
    """Exchange the text and the image of a pair: cheaper than encoding the image twice."""
    [image] = [span for span in grammar.spans(document.ids) if span.kind is SpanKind.IMAGE]
    cuts = [
        0,
        grammar.opening_length(document.ids),
        image.start,
        image.stop,
        len(document) - 1,
        len(document),
    ]
    bos, before, pixels, after, eos = (document[a:b] for a, b in pairwise(cuts))
    last = before if len(before) else pixels
    eos = Encoded(eos.ids, last.weights[-1:])
    return Encoded.joined(bos, after, pixels, before, eos)
