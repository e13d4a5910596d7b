"""What a rule is: it decides about one document, or about a document and those before it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

from pardalis.config import OneOf
from pardalis.data.split import WHOLE, Part, placed
from pardalis.documents import READERS, Document, reader_with


@dataclass(frozen=True, slots=True)
class Removal:
    """What a rule removes, and why, as a sentence."""

    reason: str
    images: tuple[int, ...] | None = None  # numbers among the document's; None: it as a whole


@runtime_checkable
class DocumentRule(Protocol):
    """A rule that looks at each document by itself: a pure function of it."""

    @property
    def kind(self) -> str: ...

    def removal(self, document: Document) -> Removal | None:
        """Return what is removed; None: nothing."""
        ...


@runtime_checkable
class Judge(Protocol):
    """One pass over a source."""

    def removal(self, document: Document) -> Removal | None:
        """Return what is removed of the next document; None: nothing."""
        ...


@runtime_checkable
class SourceRule(Protocol):
    """A rule that compares a document with others, or that costs too much to be asked twice.

    It is asked once for each document, in the order of the source, when the source is surveyed.
    """

    @property
    def kind(self) -> str: ...

    def begin(self) -> Judge:
        """Begin a pass over the source.

        Raises:
            ConfigError: what the rule needs is missing.
            DataError: there are no documents to compare with.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Others:
    """Documents that a source is compared with, such as held-out ones."""

    reader: Annotated[str, OneOf(READERS)]
    path: Path  # file or folder, relative to the recipe
    options: dict[str, Any] = field(default_factory=dict)  # of the reader, as of a source
    part: Part = WHOLE  # as of a source

    def __post_init__(self) -> None:
        reader_with(self.reader, self.options)

    def documents(self) -> Iterator[Document]:
        """Yield the readable documents; raises DataError if there is nothing at the path."""
        items = reader_with(self.reader, self.options)(self.path)
        if self.part == WHOLE:
            yield from (item for item in items if isinstance(item, Document))
            return
        first, end = self.part
        for place, item in placed(items):
            if isinstance(item, Document) and first <= place < end:
                yield item


def amount(number: int, singular: str, plural: str = "") -> str:
    """Return a number with its noun."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"
