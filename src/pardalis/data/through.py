"""Reading through sources to count and hash their documents, several of them side by side.

A source is read by one process, since its hash and the rules that compare documents go by their
order; so as many sources are read at a time as there are workers. Processes that prepare parts
divide the sources among themselves, too: each takes those that nobody has read or is reading.
"""

import json
import logging
import math
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pardalis.config import to_dict
from pardalis.data.ruled import FirstPass, key_of, remember, taken
from pardalis.data.rules import allow_classifier, allowed_classifiers
from pardalis.data.source import SourceConfig, Survey, survey_parts
from pardalis.data.split import Part
from pardalis.data.workers import ONE_WORKER, Workers, do_all
from pardalis.devices import n_processors
from pardalis.digests import Digests
from pardalis.documents import READERS
from pardalis.errors import BusyError
from pardalis.files import exclusive, output_folder, plain, read_json, write_once
from pardalis.progress import bar

logger = logging.getLogger(__name__)

_ALONE_S = 2.0  # after which what is left is given to workers; they take a second to start
_REPORT_EVERY_S = 10.0
_WAIT_S = 1.0  # before it is looked again whether other processes have read
_FOUND = "found.json"


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading through a source, for one or several parts of its documents.

    Attributes:
        place: folder in which processes that need the same keep what one of them has found; None:
            this process reads for itself.
    """

    number: int
    source: SourceConfig
    parts: tuple[Part, ...]
    place: Path | None = None

    @property
    def named(self) -> str:
        return f"source {self.source.name!r}"

    def found(self) -> list[Survey] | None:
        """Return what some process has found, or None."""
        if self.place is None:
            return None
        try:
            values = read_json(self.place / _FOUND)
            surveys = [Survey.from_dict(each) for each in values["found"]]
            is_this = values["read"] == self._read() and len(surveys) == len(self.parts)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return surveys if is_this else None

    def keep(self, surveys: Sequence[Survey]) -> None:
        """Keep what was found for other processes, unless these have no need of it any more."""
        if self.place is None:
            return
        values = {"read": self._read(), "found": [each._asdict() for each in surveys]}
        with suppress(FileNotFoundError):  # all is prepared meanwhile
            self.forget()
            write_once(self.place / _FOUND, json.dumps(values, indent=2) + "\n")

    def forget(self) -> None:
        """Let the next process read once more, since what was found is refused."""
        if self.place is not None:
            (self.place / _FOUND).unlink(missing_ok=True)

    def _read(self) -> Any:
        """Return what is read, without its content."""
        source, rules = self.source, [to_dict(rule) for rule in self.source.rules]
        return plain([source.reader, source.options, str(source.path), self.parts, rules])

    def is_free(self) -> bool:
        """Whether no other process is reading."""
        if self.place is None:
            return True
        try:
            with exclusive(output_folder(self.place)):
                return True
        except BusyError:
            return False


def read_through(
    readings: Sequence[Reading], digests: Digests, workers: Workers = ONE_WORKER
) -> Generator[tuple[Reading, list[Survey]], None, None]:
    """Survey sources, and yield what is found in each, as soon as it is; not in order.

    This process begins. What is left after two seconds is divided among workers, on this machine
    whatever the engine is.

    Args:
        digests: what identifies image files.

    Raises:
        PardalisError: as :func:`pardalis.data.survey`; or two workers died with the same source.
    """
    rest = {reading.number: reading for reading in readings}
    alone_until, awaited = time.monotonic() + _ALONE_S, 0
    while rest:
        if free := [reading for reading in rest.values() if reading.is_free()]:
            for found in _read_some(free, digests, workers, alone_until):
                if found.surveys is not None:
                    yield rest.pop(found.number), found.surveys
            continue
        if len(rest) != awaited:
            awaited = len(rest)
            logger.info("Waiting for other processes to read through %d sources.", awaited)
        time.sleep(_WAIT_S)


def _read_some(
    readings: Sequence[Reading], digests: Digests, workers: Workers, alone_until: float
) -> Iterator["_Found"]:
    jobs = workers.jobs if workers.engine == "processes" else None
    jobs = min(jobs or n_processors(), len(readings))
    reader, rest = _Reader(digests), deque(readings)
    while rest:
        is_last = len(rest) == 1 or jobs == 1
        try:
            found = reader.found(rest[0], math.inf if is_last else alone_until)
        except _LongError:
            break
        rest.popleft()
        yield found
    if not rest:
        return
    done = do_all(reader, iter(rest), len(rest), Workers(jobs=jobs))
    with bar("Reading through", len(rest), "sources") as advance, closing(done):
        for found in done:
            digests.add(found.digests)
            if found.first_pass is not None:
                remember(*found.first_pass)
            advance()
            yield found


@dataclass(frozen=True, slots=True)
class _Found:
    """What came of a reading, with what its process would remember of it."""

    number: int
    surveys: list[Survey] | None  # None: another process is reading
    digests: dict[str, list[Any]] = field(default_factory=dict)
    first_pass: tuple[str, FirstPass] | None = None


class _LongError(Exception):
    """Reading takes so long that it is left to workers."""


class _Reader:
    """Reads through sources; can be sent to another process, which then knows the same readers."""

    did = "read through"
    advice = "If memory is short, use fewer jobs, and divide that source; then run it again."
    device = torch.device("cpu")

    def __init__(self, digests: Digests) -> None:
        self._digests = digests
        self._readers, self._classifiers = dict(READERS), allowed_classifiers()

    def to(self, device: torch.device | str) -> "_Reader":
        READERS.update(self._readers)
        for each in self._classifiers:
            allow_classifier(each)
        return self

    def do(self, reading: Reading) -> _Found:
        """Read through a source in a process that will forget it."""
        found = self.found(reading)
        source = reading.source
        key = key_of(source.reader, source.options, source.path, source.rules)
        first_pass = taken(key)
        remembered = None if first_pass is None else (key, first_pass)
        return _Found(reading.number, found.surveys, self._digests.news(), remembered)

    def found(self, reading: Reading, until: float = math.inf) -> _Found:
        """Read through a source, unless another process has or does."""
        if reading.place is None:
            return _Found(reading.number, self._surveys(reading, until))
        try:
            with exclusive(output_folder(reading.place)):
                if (surveys := reading.found()) is None:
                    surveys = self._surveys(reading, until)
                    reading.keep(surveys)
        except BusyError:
            surveys = None
        return _Found(reading.number, surveys)

    def _surveys(self, reading: Reading, until: float) -> list[Survey]:
        """Survey a source; raises _LongError at a time of the monotonic clock."""
        n_read, last = 0, time.monotonic()

        def count() -> None:
            nonlocal n_read, last
            n_read += 1
            if (now := time.monotonic()) > until:
                raise _LongError
            if now - last > _REPORT_EVERY_S:
                last = now
                logger.info("Read through %d documents of %s.", n_read, reading.named)

        return survey_parts(reading.source, reading.parts, self._digests.of, count)
