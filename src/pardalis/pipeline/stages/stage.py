"""What a stage is: when it applies, what its result depends on, and what it does."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pardalis.data import (
    ONE_WORKER,
    WHOLE,
    SourceConfig,
    Survey,
    Workers,
    empty_part,
    survey_parts,
)
from pardalis.digests import Digests
from pardalis.parallel import World
from pardalis.pipeline.builders import located
from pardalis.pipeline.paths import is_in_run
from pardalis.pipeline.recipe import Recipe

Inputs = dict[str, Any]

SOURCES = "sources"  # the input that holds the contents of a stage's sources
_MEMORY = ".digests.json"


@dataclass(slots=True)
class RunContext:
    """One process's view of a run: what is run, where, and by whom."""

    recipe: Recipe
    folder: Path
    world: World = field(default_factory=World)
    awaits_model: bool = False  # the model that the run starts from is trained first
    workers: Workers = ONE_WORKER  # that encode documents
    _surveys: dict[str, Survey] = field(default_factory=dict)
    _digests: Digests | None = None

    @property
    def digests(self) -> Digests:
        """The hashes of files that the run reads, which the run folder remembers."""
        if self._digests is None:
            self._digests = Digests(self.folder / _MEMORY)
        return self._digests

    def survey(self, source: SourceConfig) -> Survey:
        """Return the number of items and the hash of a source, which is read once for it.

        Raises:
            DataError: there is nothing at the path of the source, or no document in its part, or
                in another part of the same documents.
        """
        if source.name not in self._surveys:
            self._survey_parts(source)
        return self._surveys[source.name]

    def remember_survey(self, source: SourceConfig, content: Survey) -> None:
        """Take what another process has found in a source, which is then not read here."""
        self._surveys[source.name] = content

    def _survey_parts(self, source: SourceConfig) -> None:
        """Survey all sources that are parts of the same documents, in one reading."""
        others = (each for each in self.recipe.all_sources if each.name != source.name)
        where = (source.reader, source.path, source.options, source.rules)
        parts = [
            source,
            *(o for o in others if (o.reader, o.path, o.options, o.rules) == where),
        ]
        there = located(source, self.folder)
        found = survey_parts(there, [each.part for each in parts], self.digests.of)
        for part, of_part in zip(parts, found, strict=True):
            if part.part != WHOLE and of_part.n_items == of_part.n_rejections:
                raise empty_part(located(part, self.folder))
            self._surveys[part.name] = of_part

    def forget_built(self) -> None:
        """Read the sources in the run folder once more, which a stage has built."""
        for source in self.recipe.all_sources:
            if is_built(source):
                self._surveys.pop(source.name, None)

    def contents(self, sources: Iterable[SourceConfig]) -> Inputs:
        """Return what the documents of sources depend on: neither their paths nor their weights."""
        return {source.name: [source.reader, self.survey(source).digest] for source in sources}


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
