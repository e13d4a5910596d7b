"""The table ``[evaluation]`` of a recipe: the tasks that measure its model, during training too."""

from dataclasses import dataclass
from pathlib import Path

from pardalis.config import check_at_least
from pardalis.errors import ConfigError
from pardalis.evaluate.tasks import TaskSet, load_tasks
from pardalis.evaluate.tasks.find import LoadedTask
from pardalis.pipeline.paths import RUN, in_run, is_in_run


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingEvaluationConfig:
    """Tasks that measure the model while it is trained."""

    every: int  # steps between evaluations; the last step has one too
    tasks: tuple[str, ...] = ()  # names of some of the tasks; (): all
    limit: int = 50  # the first items of each task only

    def __post_init__(self) -> None:
        check_at_least(self, every=1, limit=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """Tasks that measure the trained model."""

    tasks: tuple[str, ...] = ()  # names of tasks that come along
    files: tuple[Path, ...] = ()  # TOML files of other tasks
    # Where paths of data begin; may lie in {run}. Default, without ``tasks``: the folder of a file.
    data: Path | None = None
    limit: int | None = None  # the first items of each task only; default: as in the task
    shots: int | None = None  # few-shot examples before each item; default: as in the task
    seeds: int = 1  # how often a task is repeated that samples or draws examples
    training: TrainingEvaluationConfig | None = None  # default: nothing is measured then

    def __post_init__(self) -> None:
        check_at_least(self, limit=1, shots=0, seeds=1)
        if not (self.tasks or self.files):
            raise ConfigError(
                "evaluation names no task; set tasks or files, or leave the table out."
            )
        if odd := [name for name in self.tasks if name.endswith(".toml")]:
            raise ConfigError(
                f"tasks has {odd[0]!r}, but names no files; set it in evaluation.files."
            )
        if self.tasks:
            load_tasks(self.tasks, None)
        if self.tasks and self.data is None:
            raise ConfigError(
                "data is missing; set it to the folder where the files of tasks that "
                "come along are found."
            )

    @property
    def is_built(self) -> bool:
        """Whether the data of tasks are made by the run itself."""
        return self.data is not None and is_in_run(self.data)

    @property
    def is_of_corpus(self) -> bool:
        """Whether the data of tasks are in the corpus that the run builds."""
        return self.data is not None and self.data.parts[:2] == (RUN, "corpus")

    def load(self, run: Path) -> list[LoadedTask]:
        """Return the tasks, without their items; raises ConfigError."""
        return load_tasks([*self.tasks, *self.files], self._folder(run))

    def task_set(self, run: Path) -> TaskSet:
        """Return the tasks that measure the trained model, with their items.

        Raises:
            ConfigError: a task is wrong.
            DataError: a file or an image of a task is missing, or an item does not fit its task.
        """
        return TaskSet(
            [*self.tasks, *self.files],
            data=self._folder(run),
            limit=self.limit,
            shots=self.shots,
            seeds=self.seeds,
        )

    def training_set(self, run: Path) -> TaskSet:
        """Return the tasks that measure the model while it is trained; errors as above."""
        assert self.training is not None
        return TaskSet(
            self.chosen(run), data=self._folder(run), limit=self.training.limit, shots=self.shots
        )

    def chosen(self, run: Path) -> list[str | Path]:
        """Return the tasks that measure the model while it is trained; raises ConfigError."""
        given = (*self.tasks, *self.files)
        names = [each.task.name for each in self.load(run)]
        known = dict(zip(names, given, strict=True))
        wanted = self.training.tasks if self.training is not None else ()
        if unknown := [name for name in wanted if name not in known]:
            raise ConfigError(
                f"evaluation.training.tasks has {unknown[0]!r}, but the tasks of the evaluation "
                f"are {', '.join(known)}."
            )
        return [known[name] for name in wanted or known]

    def _folder(self, run: Path) -> Path | None:
        return None if self.data is None else in_run(self.data, run)
