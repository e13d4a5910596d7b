"""What a stage is: when it applies, what its result depends on, and what it does."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pardalis.data import (
    ONE_WORKER,
    WHOLE,
    Reading,
    Share,
    SourceConfig,
    Survey,
    Workers,
    empty_part,
    read_through,
)
from pardalis.digests import Digests
from pardalis.parallel import World
from pardalis.pipeline.builders import located
from pardalis.pipeline.paths import is_in_run
from pardalis.pipeline.recipe import Recipe

Inputs = dict[str, Any]

SOURCES = "sources"  # the input that holds the contents of a stage's sources
CONTENTS = ".contents"  # what was found in the sources, while parts of them are prepared
_MEMORY = ".digests.json"


@dataclass(slots=True)
class RunContext:
    """One process's view of a run: what is run, where, and by whom."""

    recipe: Recipe
    folder: Path
    world: World = field(default_factory=World)
    awaits_model: bool = False  # the model that the run starts from is trained first
    workers: Workers = ONE_WORKER  # that read through sources and encode documents
    part: Share | None = None  # of the preparation, while other processes make the others
    _surveys: dict[str, Survey] = field(default_factory=dict)
    _digests: Digests | None = None

    @property
    def digests(self) -> Digests:
        """The hashes of files that the run reads, which the run folder remembers."""
        if self._digests is None:
            self._digests = Digests(self.folder / _MEMORY)
        return self._digests

    def survey(self, source: SourceConfig) -> Survey:
        """Return the number of items and the hash of a source; see :meth:`surveys`."""
        return self.surveys([source])[0]

    def surveys(self, sources: Sequence[SourceConfig]) -> list[Survey]:
        """Return the number of items and the hash of each source, which is read once for it.

        Raises:
            DataError: there is nothing at the path of a source, or no document in its part, or
                in another part of the same documents.
        """
        if unread := [source for source in sources if source.name not in self._surveys]:
            self._read_through(unread)
        return [self._surveys[source.name] for source in sources]

    def _read_through(self, sources: Sequence[SourceConfig]) -> None:
        """Survey sources, and others that are parts of the same documents, in one reading each."""
        groups: list[list[SourceConfig]] = []
        for source in sources:
            if any(source in group for group in groups):
                continue
            others = (each for each in self.recipe.all_sources if each.name != source.name)
            groups.append([source, *(o for o in others if _documents(o) == _documents(source))])
        if self.part is not None:  # each part begins elsewhere
            first = self.part.among(len(groups)).start
            groups = groups[first:] + groups[:first]
        readings = [
            Reading(
                number,
                located(group[0], self.folder),
                tuple(source.part for source in group),
                None if self.part is None else self.folder / CONTENTS / group[0].name,
            )
            for number, group in enumerate(groups)
        ]
        with closing(read_through(readings, self.digests, self.workers)) as found:
            for reading, surveys in found:
                for part, content in zip(groups[reading.number], surveys, strict=True):
                    if part.part != WHOLE and content.n_items == content.n_rejections:
                        reading.forget()
                        raise empty_part(located(part, self.folder))
                    self._surveys[part.name] = content

    @property
    def has_read(self) -> bool:
        """Whether all sources of the recipe were read through."""
        return all(source.name in self._surveys for source in self.recipe.all_sources)

    def forget_built(self) -> None:
        """Read the sources in the run folder once more, which a stage has built."""
        for source in self.recipe.all_sources:
            if is_built(source):
                self._surveys.pop(source.name, None)

    def contents(self, sources: Iterable[SourceConfig]) -> Inputs:
        """Return what the documents of sources depend on: neither their paths nor their weights."""
        sources = list(sources)
        return {
            source.name: [source.reader, content.digest]
            for source, content in zip(sources, self.surveys(sources), strict=True)
        }


def _documents(source: SourceConfig) -> tuple[Any, ...]:
    """Return what documents a source is a part of."""
    return source.reader, source.path, source.options, source.rules


def is_built(source: SourceConfig) -> bool:
    """Whether the documents of a source are built by the run itself."""
    return is_in_run(source.path)


class Lack(NamedTuple):
    """What a stage cannot do without packages that are not installed."""

    message: str  # what is left out, why, and what to install: the end of a sentence
    is_all: bool  # whether the stage can do nothing, and is left out


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One step of a run.

    Attributes:
        name: what ``stages.json`` and the command line call it.
        run: does the work.
        inputs: everything that its result depends on, by name, besides the stages that it needs:
            configs and plain values. They are hashed to the identity of the stage and stored as
            the settings of a training run. Fields that are :func:`pardalis.config.not_deciding`
            are left out. A field that is added to a config, with a default that does what was done
            before, changes no stage that ran without it.
        sources: the sources whose documents it reads; their contents are an input too.
        outputs: files and folders without which its result is lost, relative to the run folder.
        incomplete: the first result besides, or within an output, that is lost; "" if none is.
        applies: whether a recipe has this stage.
        needs: names of the stages whose results it reads.
        steps: how far it goes. When this grows, the stage continues where it was.
        costly: outputs that are kept under another name when an input changes.
        is_shared: whether all processes run it, and not only the first.
        is_frozen: whether its finished result is kept when only its sources have changed, the
            stages that it needs, or ``since``.
        since: the version of Pardalis since which the same inputs give the same result. A run of
            an earlier one is made anew; any other upgrade leaves runs as they are.
        check: raises, before any stage runs, what the stage would raise after those before it. It
            may read what a run is given, and nothing that a stage writes.
        refresh: brings up to date what decides no result, when the stage itself is not run.
        lacks: what is missing on this machine for a stage that no other needs. The run goes on
            without it, and says so.
    """

    name: str
    run: Callable[[RunContext], None]
    inputs: Callable[[RunContext], Inputs]
    outputs: tuple[str, ...]
    applies: Callable[[Recipe], bool]
    needs: tuple[str, ...] = ()
    steps: Callable[[Recipe], int] = lambda recipe: 0
    costly: tuple[str, ...] = ()
    is_shared: bool = False
    sources: Callable[[Recipe], Sequence[SourceConfig]] = lambda recipe: ()
    is_frozen: Callable[[Recipe], bool] = lambda recipe: False
    since: str = "0.1.0"
    check: Callable[[RunContext], None] = lambda context: None
    refresh: Callable[[RunContext], None] = lambda context: None
    lacks: Callable[[], Lack | None] = lambda: None
    incomplete: Callable[[RunContext], str] = lambda context: ""

    def settings(self, context: RunContext) -> Inputs:
        """Return the inputs and the contents of the sources; raises DataError if one is missing."""
        contents = context.contents(self.sources(context.recipe))
        return self.inputs(context) | ({SOURCES: contents} if contents else {})
