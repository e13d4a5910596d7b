"""Running stages: what is finished and unchanged is skipped, what was interrupted continues.

The *identity* of a stage is a hash of everything that decides its result: its inputs
(:attr:`pardalis.pipeline.stages.Stage.inputs`), and the identities and steps of the stages that it
needs.

    same identity, same steps     finished: skipped
    same identity, other steps    continues where it was
    other identity                runs anew; costly outputs are kept under their old identity

Of several processes that ``torchrun`` starts, the first decides, writes and runs. The others run
the shared stages with it, and wait for hours if necessary.
"""

import dataclasses
import fcntl
import json
import logging
import resource
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import pardalis
from pardalis import config as configs
from pardalis.devices import find_device
from pardalis.errors import BundleError, ConfigError, DataError
from pardalis.evaluate import require_packages
from pardalis.files import write_json, write_text
from pardalis.inputs import changes
from pardalis.parallel import World, join
from pardalis.pipeline.chain import Parent, parents_of, with_bundle
from pardalis.pipeline.recipe import Recipe
from pardalis.pipeline.stages import STAGES, RunContext, Stage, stages_of
from pardalis.pipeline.start import check_given

logger = logging.getLogger(__name__)

_RECORDS = "stages.json"


class StageMissingError(ConfigError):
    """A stage needs the result of another one, ``stage``, which is not finished."""

    def __init__(self, message: str, stage: str) -> None:
        super().__init__(message)
        self.stage = stage


@dataclasses.dataclass(slots=True)
class Record:
    """What ``stages.json`` says of one stage."""

    name: str
    identity: str
    steps: int
    inputs: dict[str, Any] = dataclasses.field(default_factory=dict)  # hashed in ``identity``
    seconds: float = 0.0  # over all attempts
    peak_rss_gib: float = 0.0  # peak of the process up to the end of the stage
    finished: str | None = None  # UTC, ISO 8601; None: begun and interrupted


def run(
    recipe: Recipe,
    folder: Path,
    only: Sequence[str] = (),
    device: torch.device | str = "cpu",
    *,
    with_parents: bool = False,
) -> list[Record]:
    """Run a recipe in a folder.

    Args:
        only: names of the stages to run; all of them when empty. The stages that these read must
            be finished.
        with_parents: first run the recipes that this one starts from, as far as their models.
            Without it they must be finished.

    Returns:
        The records of all stages that have run in the folder, in order.

    Raises:
        PardalisError: whatever a stage raises; what was finished before stays.
    """
    parents = parents_of(recipe, folder)
    with join(find_device(device), recipe.parallel.timeout_minutes) as world:
        for parent in parents:
            if with_parents:
                stages = [stage.name for stage in stages_of(parent.recipe)]
                until_model = stages[: stages.index("train") + 1]
                run_in_world(parent.recipe, parent.folder, world, until_model)
            else:
                _require_model(parent)
        return run_in_world(recipe, folder, world, only)


def _require_model(parent: Parent) -> None:
    """Raise ConfigError unless the model of a run that another one starts from is finished."""
    records = {record.name: record for record in read_records(parent.folder)}
    record = records.get("train")
    steps = parent.recipe.model_run.loop.steps
    if record and record.finished and record.steps == steps and parent.bundle.is_dir():
        return
    raise ConfigError(
        f"start_from needs the model of the recipe {parent.recipe.name!r}, and the run "
        f"{parent.folder} has not finished it; run that recipe first, or give `with_parents`."
    )


def run_in_world(
    recipe: Recipe, folder: Path, world: World, only: Sequence[str] = ()
) -> list[Record]:
    """Run a recipe as :func:`run` does, in processes that have joined already.

    The runs that it starts from must be finished.
    """
    recipe = with_bundle(recipe, folder)
    stages = stages_of(recipe)
    for name in recipe.extra:
        if name not in (known := [stage.name for stage in STAGES]):
            raise ConfigError(
                f"extra.{name} is of no stage; the stages are {', '.join(known)}. Import the "
                "module that adds it, or leave the table out."
            )
    if unknown := sorted(set(only) - {stage.name for stage in stages}):
        raise ConfigError(
            f"This recipe has no stage {unknown[0]!r}; it has "
            f"{', '.join(stage.name for stage in stages)}."
        )
    if any(stage.name == "report" and (not only or "report" in only) for stage in stages):
        require_packages()  # the report comes last: do not find out then
    check_given(recipe, folder)  # nothing runs, and nothing is moved aside, for a wrong bundle
    if not world.is_first:
        return _follow(recipe, folder, stages, world)
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder):
        records = _Run(RunContext(recipe, folder, world)).go(stages, only)
    world.broadcast(None)
    return records


def _follow(recipe: Recipe, folder: Path, stages: Sequence[Stage], world: World) -> list[Record]:
    """Run the stages that the first process announces, until it announces the end."""
    context = RunContext(recipe, folder, world)
    by_name = {stage.name: stage for stage in stages}
    while (name := world.broadcast()) is not None:
        by_name[name].run(context)
    return []


def read_records(folder: Path) -> list[Record]:
    """Return what ran in a folder; nothing when nothing did."""
    path = folder / _RECORDS
    if not path.is_file():
        return []
    try:
        return [Record(**values) for values in json.loads(path.read_text())]
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); delete it to check every stage anew."
        ) from error


class _Run:
    """One process's pass over the stages of a run."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.recipe, self.folder = context.recipe, context.folder
        self.records: dict[str, Record] = {}
        self.inputs: dict[str, dict[str, Any]] = {}
        self.identities: dict[str, str] = {}

    def go(self, stages: Sequence[Stage], only: Sequence[str]) -> list[Record]:
        self.records = {record.name: record for record in read_records(self.folder)}
        for stage in stages:
            if only and stage.name not in only:
                self._note_identity(stage)
                continue
            self._require(stage)
            self.identities[stage.name] = self._identity(stage)
            write_text(self.folder / "recipe.toml", configs.to_toml(self.recipe))
            self._run(stage)
        return list(self.records.values())

    def _identity(self, stage: Stage) -> str:
        """Hash what decides the result of a stage; raises DataError when a source is missing."""
        self.inputs[stage.name] = inputs = stage.settings(self.context)
        needs = [
            [n.name, self.identities[n.name], n.steps(self.recipe)] for n in self._needs(stage)
        ]
        return configs.fingerprint(pardalis.__version__, inputs, needs)

    def _needs(self, stage: Stage) -> list[Stage]:
        """Return the stages of this recipe that a stage needs."""
        return [need for need in stages_of(self.recipe) if need.name in stage.needs]

    def _note_identity(self, stage: Stage) -> None:
        """Find the identity of a stage that is not run; it has none while an input is missing."""
        try:
            self.identities[stage.name] = self._identity(stage)
        except (DataError, BundleError):
            self.identities[stage.name] = ""

    def _require(self, stage: Stage) -> None:
        for need in self._needs(stage):
            record = self.records.get(need.name)
            wanted = (self.identities[need.name], need.steps(self.recipe))
            if record and record.finished and (record.identity, record.steps) == wanted:
                continue
            raise StageMissingError(
                f"The stage {stage.name!r} needs {need.name!r}, which is not finished in "
                f"{self.folder} for this recipe and its data; run that stage first, or all stages.",
                need.name,
            )

    def _run(self, stage: Stage) -> None:
        identity, steps = self.identities[stage.name], stage.steps(self.recipe)
        record = self.records.get(stage.name)
        if record is not None and record.identity != identity:
            self._exchange(stage, record, identity)
            record = None
        whole = all((self.folder / output).exists() for output in stage.outputs)
        if record is not None and record.finished and record.steps == steps and whole:
            logger.info("%s: unchanged since %s, skipped.", stage.name, record.finished)
            return
        record = record or Record(stage.name, identity, steps)
        record.steps, record.finished, record.inputs = steps, None, self.inputs[stage.name]
        self.records[stage.name] = record
        self._write_records()
        logger.info("%s ...", stage.name)
        earlier, start = record.seconds, time.monotonic()
        try:
            if stage.is_shared:
                self.context.world.broadcast(stage.name)
            stage.run(self.context)
            record.finished = datetime.now(UTC).isoformat(timespec="seconds")
        finally:
            record.seconds = earlier + time.monotonic() - start
            record.peak_rss_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            self._write_records()
        logger.info("%s: done in %.0f s.", stage.name, record.seconds)

    def _exchange(self, stage: Stage, record: Record, new: str) -> None:
        """Keep costly outputs under the old identity, and restore those of the new identity."""
        found = changes(record.inputs, self.inputs[stage.name]) if record.inputs else ""
        reason = found or "a stage before it changed, or the version of Pardalis"
        logger.info("%s: runs anew, because %s.", stage.name, reason)
        for output in stage.costly:
            path = self.folder / output
            kept, restored = (
                path.with_name(f"{path.name}.{identity}") for identity in (record.identity, new)
            )
            if path.exists():
                shutil.rmtree(kept, ignore_errors=True)  # an older state of the same identity
                path.rename(kept)
                logger.info("%s is kept as %s.", path, kept.name)
            if restored.exists():
                restored.rename(path)
                logger.info("%s is restored from %s.", path, restored.name)

    def _write_records(self) -> None:
        ordered = [self.records[stage.name] for stage in STAGES if stage.name in self.records]
        write_json(self.folder / _RECORDS, [dataclasses.asdict(record) for record in ordered])


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder; the lock is released when its process ends."""
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"Another process is running in {folder}; wait for it, or choose another folder."
            ) from None
        yield
