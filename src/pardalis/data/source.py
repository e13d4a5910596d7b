"""A source of documents: its config, reading it, and detecting changes in it."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pardalis.config import OneOf, not_deciding
from pardalis.data.ruled import Placed, Removed, first_pass, judged, key_of, replayed
from pardalis.data.rules import RULES, Rule
from pardalis.data.split import WHOLE, Part, placed
from pardalis.data.transforms import TRANSFORMS, Transform
from pardalis.digests import file_digest
from pardalis.documents import (
    READERS,
    Document,
    Image,
    Omission,
    Rejection,
    Segment,
    hint_at,
    reader_with,
)
from pardalis.errors import ConfigError, DataError

_NAME = re.compile(r"[\w-][\w.-]*")  # letters of any alphabet
_LONGEST_NAME = 200  # bytes; file systems allow 255 with what is added
_MOST_LICENCES = 20  # that a survey lists
_PAGES = ("html", "mhtml", "epub", "markdown", "obelics", "mmc4", "pdf")  # readers


def check_name(name: str) -> None:
    """Raise ConfigError unless a name of a recipe can be the name of a folder."""
    if len(name.encode()) > _LONGEST_NAME:
        raise ConfigError(
            f"name must have at most {_LONGEST_NAME} bytes in UTF-8, since a folder is named after "
            f"it; {name[:40]!r}… has {len(name.encode())}."
        )
    if not _NAME.fullmatch(name):
        raise ConfigError(
            "name must consist of letters, digits, '.', '_' and '-' and not begin with '.', since "
            f"a folder is named after it; got {name!r}."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """One source of training documents."""

    name: str  # what reports, folders and the mixture call it
    reader: Annotated[str, OneOf(READERS)]  # the format of what is at path
    path: Path  # file or folder, relative to the recipe
    # How the reader reads; see pardalis.documents.OPTIONS for those that have options.
    options: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0  # share of rows in the mixture; only ratios matter
    # The documents whose place, a hash of their content in [0, 1), lies from the first number on
    # and below the second; see pardalis.data.split.
    part: tuple[float, float] = WHOLE
    # "objective": what the objective learns of a document, with "sft" the assistant's turns; "all":
    # the whole, as of the data of pre-training that is mixed with conversations.
    learn: Literal["objective", "all"] = "objective"
    # What is done with each document between its encoding and training, in order.
    transforms: tuple[Annotated[Transform, TRANSFORMS], ...] = ()
    # What is removed, in order: images and documents, see pardalis.data.rules.
    rules: tuple[Annotated[Rule, RULES], ...] = ()
    licence: str = not_deciding("")  # of the documents, such as "CC BY 4.0"; empty: not stated
    attribution: str = not_deciding("")  # whom to name with it, and where the documents come from

    def __post_init__(self) -> None:
        check_name(self.name)
        reader_with(self.reader, self.options)
        if not self.weight > 0:
            raise ConfigError(
                f"weight must be above 0, got {self.weight} for source {self.name!r}; correct it "
                "or leave the source out."
            )
        if not 0 <= self.part[0] < self.part[1] <= 1:
            raise ConfigError(
                f"part must be two numbers in [0, 1], the smaller one first, got "
                f"{list(self.part)} for source {self.name!r}."
            )
        for name in ("transforms", "rules") if self.has_pairs else ():
            if found := len(getattr(self, name)):
                raise ConfigError(
                    f"{name} must be empty for reader 'pairs', got {found} for source "
                    f"{self.name!r}; leave them out."
                )

    @property
    def has_pairs(self) -> bool:
        """Whether each two documents are a pair of a chosen and a rejected completion."""
        return self.reader == "pairs"

    @property
    def has_pages(self) -> bool:
        """Whether a document is a page, which is kept without an image that cannot be decoded."""
        return self.reader in _PAGES

    def learnt_roles(self, of_objective: tuple[str, ...]) -> tuple[str, ...]:
        """Return the roles whose turns are learnt, given those of the objective; (): all."""
        return of_objective if self.learn == "objective" else ()


def read_source(source: SourceConfig) -> Iterator[Document | Rejection]:
    """Yield the documents of a source lazily, as its rules leave them.

    If a rule compares documents and the source was not surveyed by this process, the source is read
    through once before.

    Raises:
        DataError: its path does not exist.
    """
    if not source.rules:
        return read_part(source.path, source.reader, source.part, source.options)
    first, end = source.part
    items = _ruled(source)
    return (item for place, item in items if first <= place < end)


def read_first(
    source: SourceConfig, most: int, removed: Removed, read: Callable[[], None]
) -> Iterator[Document | Rejection]:
    """Yield what becomes of the first items of a source, of which no more are read.

    Rules that compare documents compare these alone.

    Args:
        most: documents and rejections of the reader.
        removed: told of what the rules remove.
        read: told of each item that the reader yields.

    Raises:
        DataError: the path does not exist.
    """
    first, end = source.part
    items = ((place, item) for place, item in _placed(source) if first <= place < end)

    def some() -> Iterator[Placed]:
        n_read = 0
        for pair in items:
            if not isinstance(pair[1], Omission):
                n_read += 1
                read()
            yield pair
            if n_read == most:
                return

    return (item for _, item in judged(None, source.rules, some(), source.has_pages, removed))


def _placed(source: SourceConfig) -> Iterator[Placed]:
    return placed(reader_with(source.reader, source.options)(source.path), _together(source.reader))


def _ruled(source: SourceConfig, *, anew: bool = False) -> Iterator[Placed]:
    """Yield the items of all parts with their places, as the rules leave them."""
    items = _placed(source)  # raises if there is nothing
    if not source.rules:
        return items
    rules, is_page = source.rules, source.has_pages
    key = key_of(source.reader, source.options, source.path, rules)
    if anew:
        return judged(key, rules, items, is_page)
    found = first_pass(key, rules, lambda: _placed(source), is_page)
    return replayed(rules, items, is_page, found)


def read_part(
    path: Path, reader: str, part: Part = WHOLE, options: Mapping[str, Any] | None = None
) -> Iterator[Document | Rejection]:
    """Yield the documents at a path that lie in a part, lazily.

    Args:
        reader: a name in :data:`pardalis.documents.READERS`.
        options: those of the reader, in :data:`pardalis.documents.OPTIONS`.

    Raises:
        DataError: the path does not exist.
        ConfigError: the reader has no such option.
    """
    items = reader_with(reader, options or {})(path)
    if part == WHOLE:
        return items
    first, end = part
    return (item for place, item in placed(items, _together(reader)) if first <= place < end)


def _together(reader: str) -> int:
    """Return how many documents in succession belong together."""
    return 2 if reader == "pairs" else 1


class Survey(NamedTuple):
    """The result of one reading of a source."""

    n_items: int  # documents and rejections
    digest: str  # hash of the content
    n_images: int  # images of the documents, and one for each rejection
    n_rejections: int = 0
    licences: tuple[str, ...] = ()  # the first ones that documents state, each once

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Survey":
        """Return the survey of the values of its fields; raises TypeError or ValueError."""
        found = cls(**values)
        counts = (found.n_items, found.n_images, found.n_rejections)
        is_sound = all(type(count) is int and count >= 0 for count in counts)
        if not is_sound or not isinstance(found.digest, str):
            raise ValueError("it is not what was found in a source")
        return found._replace(licences=tuple(map(str, found.licences)))

    def n_groups(self, together: int) -> int:
        """Return the number of rejections and of groups of documents that belong together."""
        return self.n_rejections + (self.n_items - self.n_rejections) // together


def survey(source: SourceConfig, of_file: Callable[[Path], object] = file_digest) -> Survey:
    """Count the items of a source and hash them, without decoding an image.

    This reading is short beside encoding, and gives progress a total.

    Args:
        of_file: what identifies an image file: by default the hash of its content, so that a copy
            is the same; :meth:`pardalis.digests.Digests.of` spares reading unchanged files.
    """
    return survey_parts(source, [source.part], of_file)[0]


def survey_parts(
    source: SourceConfig,
    parts: Sequence[Part],
    of_file: Callable[[Path], object] = file_digest,
    read: Callable[[], None] = lambda: None,
) -> list[Survey]:
    """Survey several parts of a source in one reading; see :func:`survey`.

    The rules of the source decide, so they are part of what the hash says. Those that compare
    documents do so now, over all parts.

    Args:
        read: told of each item that is read.
    """
    counts = [_Count() for _ in parts]
    for place, item in _ruled(source, anew=True):
        read()
        for (first, end), count in zip(parts, counts, strict=True):
            if first <= place < end:
                count.add(item, source.path, of_file)
    return [count.survey() for count in counts]


class _Count:
    """Counts and hashes the items of one part."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._n_items = self._n_images = self._n_rejections = 0
        self._licences: dict[str, None] = {}

    def add(
        self, item: Document | Rejection, root: Path, of_file: Callable[[Path], object]
    ) -> None:
        if isinstance(item, Omission):
            return  # the document, as it is without that, is counted
        self._n_items += 1
        if isinstance(item, Document):
            self._n_images += len(item.images)
            if item.licence and len(self._licences) < _MOST_LICENCES:
                self._licences.setdefault(item.licence)
            key = (item.name, *(_segment_key(segment, of_file) for segment in item.segments))
        else:
            self._n_images += 1
            self._n_rejections += 1
            # Without the path of the source, so that documents that are moved stay the same.
            key = (item.where.removeprefix(str(root)), item.kind)
        self._digest.update(repr(key).encode())

    def survey(self) -> Survey:
        return Survey(
            self._n_items,
            self._digest.hexdigest(),
            self._n_images,
            self._n_rejections,
            tuple(self._licences),
        )


def empty_part(source: SourceConfig) -> DataError:
    """Return the error of a source in whose part no document lies; reads the source once more."""
    places, rejected = [], []
    for place, item in _ruled(source):
        if not isinstance(item, Rejection):
            places.append(place)
        elif not isinstance(item, Omission):
            rejected.append(item)
    if not places:
        at = f"Source {source.name!r} at {source.path}"
        hint = hint_at(source.path, source.reader)
        if not rejected:
            return DataError(
                f"{at} is empty: its reader {source.reader!r} found no document.{hint}"
            )
        return DataError(
            f"{at} has no usable document, {len(rejected)} rejected by its reader "
            f"{source.reader!r}{' or its rules' if source.rules else ''}; the first, "
            f"{rejected[0].where}: {rejected[0].reason}"
            f"{'' if 'reader =' in rejected[0].reason else hint}"
        )
    first, end = source.part
    if min(places) == max(places):
        found = "The one document" if len(places) == 1 else f"All {len(places)} documents"
        same = "" if len(places) == 1 else ", since they have the same text or prompt"
        lies = "lies" if len(places) == 1 else "lie"
        return DataError(
            f"{found} at {source.path} {lies} at {places[0]:.4f}{same}, outside the part from "
            f"{first:g} to {end:g} that source {source.name!r} takes, so no heldout_fraction "
            "divides this source; add documents to it, or leave heldout_fraction out and name "
            "held-out documents of the other sources under [[heldout]]."
        )
    return DataError(
        f"None of the {len(places)} documents at {source.path} lies in the part from {first:g} to "
        f"{end:g} that source {source.name!r} takes; their places lie from {min(places):.4f} to "
        f"{max(places):.4f}. Choose heldout_fraction (or part) between these, or add documents."
    )


def size_and_time(path: Path) -> tuple[int, int]:
    """Return what identifies an image file without reading it; a copy of it is another file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _segment_key(segment: Segment, of_file: Callable[[Path], object]) -> tuple[object, ...]:
    weight = () if segment.weight == 1 else (segment.weight,)
    if not isinstance(segment, Image):
        return segment.role, segment.text, *weight
    about = segment.role, *segment.regions, *weight
    match segment.source:
        case Path() as path:
            try:
                found = of_file(path)
            except OSError:
                return *about, "missing"
            return (*about, *found) if isinstance(found, tuple) else (*about, found)
        case bytes() as content:
            return *about, hashlib.sha256(content).hexdigest()
        case image:
            return *about, image.mode, image.size, hashlib.sha256(image.tobytes()).hexdigest()
