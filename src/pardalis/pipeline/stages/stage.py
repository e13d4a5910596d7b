"""What a stage is: when it applies, what its result depends on, and what it does."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pardalis import config as configs
from pardalis.data import SourceConfig, Survey, survey
from pardalis.parallel import World
from pardalis.pipeline.builders import located
from pardalis.pipeline.recipe import Recipe

Inputs = dict[str, Any]


@dataclass(slots=True)
class RunContext:
    """One process's view of a run: what is run, where, and by whom."""

    recipe: Recipe
    folder: Path
    world: World = field(default_factory=World)
    _surveys: dict[str, Survey] = field(default_factory=dict)

    def survey(self, source: SourceConfig) -> Survey:
        """Return the number of items and the hash of a source, which is read once for it.

        Raises:
            DataError: there is nothing at the path of the source.
        """
        if source.name not in self._surveys:
            self._surveys[source.name] = survey(located(source, self.folder))
        return self._surveys[source.name]

    def contents(self, sources: Iterable[SourceConfig]) -> Inputs:
        """Return what the documents of sources depend on: neither their paths nor their weights."""
        return {source.name: [source.reader, self.survey(source).digest] for source in sources}


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One step of a run.

    Attributes:
        name: what ``stages.json`` and the command line call it.
        run: does the work.
        inputs: everything that its result depends on, by name, besides the stages that it needs:
            configs, plain values and contents of sources. They are hashed to the identity of the
            stage and stored as the settings of a training run. Fields that are
            :func:`pardalis.config.not_deciding` are left out.
        outputs: files and folders that it writes, relative to the run folder.
        applies: whether a recipe has this stage.
        needs: names of the stages whose results it reads.
        steps: how far it goes. When this grows, the stage continues where it was.
        costly: outputs that are kept under another name when an input changes.
        is_shared: whether all processes run it, and not only the first.
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

    def settings(self, context: RunContext) -> Inputs:
        """Return the inputs as plain values, without what decides no result."""
        plain: Inputs = configs.deciding(self.inputs(context))
        return plain
