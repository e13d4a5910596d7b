"""Running stages: what is finished and unchanged is skipped, what was interrupted continues.

The *identity* of a stage is a hash of everything that decides its result: its inputs
(:attr:`pardalis.pipeline.stages.Stage.inputs`), the version of Pardalis that last changed what it
makes of them (:attr:`~pardalis.pipeline.stages.Stage.since`), and the identities and steps of the
stages that it needs.

    same identity, same steps     finished: skipped
    same identity, other steps    continues where it was
    other identity                runs anew; costly outputs are kept under their old identity
    frozen, same own settings     finished: kept, with the identity that it has

Before anything runs, all stages are decided upon in the same way, and each one that will run is
asked for mistakes in the recipe (:attr:`pardalis.pipeline.stages.Stage.check`). :func:`dry_run`
ends there.

Of several processes that ``torchrun`` starts, the first decides, writes and runs. The others run
the shared stages with it, and wait for hours if necessary.
"""

import dataclasses
import logging
import os
import re
import resource
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

import pardalis
from pardalis import config as configs
from pardalis.data import ONE_WORKER, Workers
from pardalis.devices import find_device
from pardalis.errors import BundleError, ConfigError, DataError, PardalisError
from pardalis.files import LOCK, exclusive, output_folder, read_json, remove, write_json, write_text
from pardalis.inputs import changes
from pardalis.parallel import World, join
from pardalis.pipeline.builders import located
from pardalis.pipeline.chain import Parent, parents_of, with_bundle
from pardalis.pipeline.recipe import Recipe
from pardalis.pipeline.stages import STAGES, RunContext, Stage, stages_of
from pardalis.pipeline.stages.stage import SOURCES, is_built
from pardalis.pipeline.start import check_given
from pardalis.train import checkpoint
from pardalis.train.metrics import is_number
from pardalis.train.settings import check_steps

logger = logging.getLogger(__name__)

_RECORDS = "stages.json"
_IDENTITY = re.compile("[0-9a-f]{0,64}")  # a hash, and part of the name of a folder
_DONE = {"keep": "kept", "skip": "skipped"}


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
    version: str = ""  # of Pardalis
    since: str = ""  # Stage.since, hashed in ``identity``; "" in early records: the version
    needs: list[list[Any]] = dataclasses.field(default_factory=list)  # name, identity, steps
    seconds: float = 0.0  # over all attempts
    peak_rss_gib: float = 0.0  # peak of the process up to the end of the stage
    finished: str | None = None  # UTC, ISO 8601; None: begun and interrupted


Action = Literal["run", "resume", "keep", "skip", "omit"]


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """What happens to a stage of a recipe, and why."""

    recipe: str
    stage: str
    # keep: it is frozen; skip: it is finished and nothing has changed; omit: packages are missing
    action: Action
    reason: str

    @property
    def is_run(self) -> bool:
        return self.action in ("run", "resume")


def run(
    recipe: Recipe,
    folder: Path,
    only: Sequence[str] = (),
    device: torch.device | str = "cpu",
    *,
    with_parents: bool = False,
    workers: Workers = ONE_WORKER,
) -> list[Record]:
    """Run a recipe in a folder.

    Args:
        only: names of the stages to run; all of them when empty. The stages that these read must
            be finished.
        with_parents: first run the recipes that this one starts from, as far as their models.
            Without it they must be finished.
        workers: what reads through sources and encodes documents, which decides no result.

    Returns:
        The records of all stages that have run in the folder, in order.

    Raises:
        PardalisError: whatever a stage raises; what was finished before stays.
    """
    parents = parents_of(recipe, folder)
    with join(find_device(device), recipe.parallel.timeout_minutes) as world:
        if not with_parents:
            for parent in parents:
                _require_model(parent)
        elif parents:
            if world.is_first:  # a mistake here is found before a parent runs for days
                _foresee_chain(recipe, folder, parents, world, only, workers, saves=True)
            for parent in parents:
                run_in_world(
                    parent.recipe, parent.folder, world, _until_model(parent), workers=workers
                )
        return run_in_world(recipe, folder, world, only, workers=workers)


def dry_run(
    recipe: Recipe,
    folder: Path,
    only: Sequence[str] = (),
    device: torch.device | str = "cpu",
    *,
    with_parents: bool = False,
    workers: Workers = ONE_WORKER,
) -> list[Decision]:
    """Return what :func:`run` would do with each stage, and write nothing.

    Raises:
        PardalisError: what :func:`run` would raise before it runs a stage.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    world = World(size=size, device=find_device(device))
    parents = parents_of(recipe, folder)
    if not with_parents:
        for parent in parents:
            _require_model(parent)
        parents = []
    return _foresee_chain(recipe, folder, parents, world, only, workers, saves=False)


def _foresee_chain(
    recipe: Recipe,
    folder: Path,
    parents: Sequence[Parent],
    world: World,
    only: Sequence[str],
    workers: Workers,
    saves: bool,
) -> list[Decision]:
    """Decide upon the stages of a run, after those of the parents that are run before it."""
    decisions: list[Decision] = []
    awaits = False
    for parent in parents:
        until = _until_model(parent)
        decisions += _foresee(parent.recipe, parent.folder, world, until, workers, awaits, saves)
        awaits = decisions[-1].is_run  # its last stage trains the model
    return decisions + _foresee(recipe, folder, world, only, workers, awaits, saves)


def _foresee(
    recipe: Recipe,
    folder: Path,
    world: World,
    only: Sequence[str],
    workers: Workers,
    awaits: bool,
    saves: bool,
) -> list[Decision]:
    recipe = with_bundle(recipe, folder)
    stages = _checked_stages(recipe, folder, only, awaits)
    context = RunContext(recipe, folder, world, awaits_model=awaits, workers=workers)
    try:
        return _Run(context, stages, only).foresee()
    finally:
        if saves:
            context.digests.save()


def _until_model(parent: Parent) -> list[str]:
    stages = [stage.name for stage in stages_of(parent.recipe)]
    return stages[: stages.index("train") + 1]


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


def decide(context: RunContext, only: Sequence[str]) -> list[Decision]:
    """Return what a run would do with some of its stages; writes nothing.

    Raises:
        PardalisError: what :func:`run` would raise before it runs a stage.
    """
    stages = _checked_stages(context.recipe, context.folder, only)
    return _Run(context, stages, only).foresee()


def run_in_world(
    recipe: Recipe,
    folder: Path,
    world: World,
    only: Sequence[str] = (),
    *,
    workers: Workers = ONE_WORKER,
) -> list[Record]:
    """Run a recipe as :func:`run` does, in processes that have joined already.

    The runs that it starts from must be finished.
    """
    recipe = with_bundle(recipe, folder)
    stages = _checked_stages(recipe, folder, only)
    if not world.is_first:
        return _follow(recipe, folder, stages, world)
    output_folder(folder)
    with exclusive(folder):
        context = RunContext(recipe, folder, world, workers=workers)
        try:
            records = _Run(context, stages, only).go()
        finally:
            context.digests.save()
    world.broadcast(None)
    return records


def _checked_stages(
    recipe: Recipe, folder: Path, only: Sequence[str], awaits_model: bool = False
) -> list[Stage]:
    """Return the stages of a recipe; raises what can be found before they are decided upon."""
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
    _check_folder(folder, stages)
    if not awaits_model:
        check_given(recipe, folder)  # nothing runs or is moved aside for a wrong bundle
    return stages


def _check_folder(folder: Path, stages: Sequence[Stage]) -> None:
    """Raise ConfigError if a run in the folder would replace files that are not of a run."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; a run needs a folder, so choose another name.")
    outputs = (Path(output).parts[0] for stage in stages for output in stage.outputs)
    names = dict.fromkeys(["recipe.toml", *outputs])
    found = [name for name in names if (folder / name).exists()]
    # Looked for last: a run writes its lock first, maybe now in another process.
    if found and not any((folder / name).exists() for name in (_RECORDS, LOCK)):
        raise ConfigError(
            f"{folder} holds {' and '.join(found)} that no run wrote, and a run would replace "
            "them; choose another folder for the run."
        )


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
        return [_record(values) for values in read_json(path)]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); delete it to check every stage anew."
        ) from error


def _record(values: Any) -> Record:
    """Return the record of plain values; raises ValueError or TypeError."""
    if missing := {"name", "identity", "steps"} - dict(values).keys():
        raise ValueError(f"a record has no {min(missing)}")
    for name, value in values.items():
        match name, value:
            case ("name" | "version" | "since" | "finished", str()) | ("finished", None):
                pass
            case "identity", str() if _IDENTITY.fullmatch(value):
                pass
            case ("steps", int()) | ("seconds" | "peak_rss_gib", float()) if is_number(value):
                pass
            case ("inputs", dict()) | ("needs", list()) if name == "inputs" or _are_needs(value):
                pass
            case _:
                raise ValueError(f"{name} is {configs.shown(value)}")
    return Record(**values)


def _are_needs(values: list[Any]) -> bool:
    return all(
        isinstance(each, list) and [type(part) for part in each] == [str, str, int]
        for each in values
    )


class _Run:
    """One process's passes over the stages of a run.

    Args:
        stages: those of the recipe.
        only: names of the stages to run; all of them when empty.
    """

    def __init__(self, context: RunContext, stages: Sequence[Stage], only: Sequence[str]) -> None:
        self.context, self.stages, self.only = context, stages, only
        self.recipe, self.folder = context.recipe, context.folder
        self.records = {record.name: record for record in read_records(self.folder)}
        # Of the current pass:
        self.inputs: dict[str, dict[str, Any]] = {}
        self.identities: dict[str, str] = {}
        self.decisions: dict[str, Decision] = {}
        self.awaits = False  # whether inputs of a stage are made first

    def foresee(self) -> list[Decision]:
        """Decide upon all stages, and check those that will run; writes nothing."""
        decisions = [decision for _, decision in self._decide_all()]
        mistakes: list[ConfigError] = []
        for stage in self.stages:
            if stage.name in self.decisions and self.decisions[stage.name].is_run:
                try:
                    stage.check(self.context)
                except ConfigError as error:  # there may be more: all are told at once
                    mistakes.append(error)
                except PardalisError:
                    if not mistakes:  # else it may be due to the first
                        raise
                    break
        if len(mistakes) == 1:
            raise mistakes[0]
        if mistakes:
            raise ConfigError(" ".join(dict.fromkeys(map(str, mistakes)))) from mistakes[0]
        return decisions

    def go(self) -> list[Record]:
        self.foresee()
        awaits = self.awaits
        for stage, decision in self._decide_all():
            write_text(self.folder / "recipe.toml", configs.to_toml(self.recipe))
            self._run(stage, decision)
            if awaits and decision.is_run:  # what it has made is checked as if it had been there
                rest = _Run(self.context, self.stages, self.only)
                rest.foresee()
                awaits = rest.awaits
        return list(self.records.values())

    def _decide_all(self) -> Iterator[tuple[Stage, Decision]]:
        """Yield each stage with its decision, which follows from the state at that moment."""
        self.inputs, self.identities, self.decisions = {}, {}, {}
        for stage in self.stages:
            if self.only and stage.name not in self.only:
                self._note_identity(stage)
                continue
            self._require(stage)
            action, reason = self._with_lack(stage, *self._decide(stage))
            decision = Decision(self.recipe.name, stage.name, action, reason)
            self.decisions[stage.name] = decision
            yield stage, decision

    def _decide(self, stage: Stage) -> tuple[Action, str]:
        """Return what to do with a stage.

        Raises:
            DataError: a source is missing.
            ConfigError: a training is to have fewer steps than it has.
        """
        record, steps = self.records.get(stage.name), stage.steps(self.recipe)
        if self._is_kept(stage):
            assert record is not None
            return "keep", f"frozen since {record.finished}, whatever its sources are now"
        if reason := self._awaited(stage):
            self.awaits = True
            self.identities[stage.name] = ""
            return "run", reason
        identity = self.identities[stage.name] = self._identity(stage)
        if record is None:
            return "run", "it has not run yet"
        found = any(self._kept(output, identity).exists() for output in stage.costly)
        begun = found or any((self.folder / output).exists() for output in stage.costly)
        again: Action = "resume" if begun else "run"
        if record.identity != identity:
            return "resume" if found else "run", self._why(stage, record)
        for path in (self.folder / output for output in stage.costly):
            if checkpoint.newest(path) is not None:
                check_steps(path, record.steps, steps)
        if not record.finished:
            return again, "it did not finish"
        if lost := self._lost(stage):
            return again, lost
        if record.steps != steps:
            return again, f"steps were {record.steps} and are {steps}"
        return "skip", f"unchanged since {record.finished}"

    def _lost(self, stage: Stage) -> str:
        """Return what is wrong with the results of a finished stage; "" if all are there."""
        for output in stage.outputs:
            if not (self.folder / output).exists():
                return f"{output} is missing"
        name = stage.incomplete(self.context)
        return f"{name} is missing or incomplete" if name else ""

    def _with_lack(self, stage: Stage, action: Action, reason: str) -> tuple[Action, str]:
        """Return a decision as it is without the packages that are not installed.

        Raises:
            ConfigError: the stage can do nothing, and it was asked for.
        """
        lack = stage.lacks() if action in ("run", "resume") else None
        if lack is None:
            return action, reason
        if not lack.is_all:
            return action, f"{reason}; {lack.message}"
        if stage.name in self.only:
            raise ConfigError(f"The stage {stage.name!r} cannot run: {lack.message}.")
        return "omit", lack.message

    def _is_kept(self, stage: Stage) -> bool:
        """Whether a frozen stage is finished with its own settings; it keeps its identity then."""
        record = self.records.get(stage.name)
        if record is None or not record.finished or not stage.is_frozen(self.recipe):
            return False
        before = {name: value for name, value in record.inputs.items() if name != SOURCES}
        if (
            record.steps != stage.steps(self.recipe)
            or self._lost(stage)
            or changes(before, stage.inputs(self.context))
        ):
            return False
        self.inputs[stage.name] = record.inputs
        self.identities[stage.name] = record.identity
        return True

    def _awaited(self, stage: Stage) -> str:
        """Return what has to be made first, if the inputs of a stage are not there yet.

        Raises:
            DataError: a source is missing that nothing makes.
        """
        sources = stage.sources(self.recipe)
        built = [located(each, self.folder).path for each in sources if is_built(each)]
        builders = [
            each.name
            for each in self.stages
            if each.name in self.decisions
            and self.decisions[each.name].is_run
            and not each.sources(self.recipe)
        ]
        if self.context.awaits_model:
            reason = "the model that it starts from is trained first"
        elif builders and not all(path.exists() for path in built):
            reason = f"its sources are built by the stage {builders[0]!r} first"
        else:
            return ""
        self.context.surveys([each for each in sources if not is_built(each)])  # raises if missing
        return reason

    def _identity(self, stage: Stage) -> str:
        """Hash what decides the result of a stage; raises DataError when a source is missing.

        A stage whose inputs have only got fields with their defaults keeps the identity it has.
        """
        inputs, needs = stage.settings(self.context), self._need_states(stage)
        self.inputs[stage.name] = configs.deciding(inputs)
        record = self.records.get(stage.name)
        made = record and (record.since or record.version, record.needs)
        if record and made == (stage.since, needs) and not changes(record.inputs, inputs):
            return record.identity
        return configs.fingerprint(stage.since, self.inputs[stage.name], needs)

    def _need_states(self, stage: Stage) -> list[list[Any]]:
        return [
            [need.name, self.identities[need.name], need.steps(self.recipe)]
            for need in self._needs(stage)
        ]

    def _why(self, stage: Stage, record: Record) -> str:
        """Return why the identity of a stage is another one."""
        found = changes(record.inputs, stage.settings(self.context)) if record.version else ""
        reasons = [found] if found else []
        if record.since not in ("", stage.since):
            reasons.append(f"Pardalis {stage.since} changed what it makes of the same inputs")
        before = {name: state for name, *state in record.needs}
        for name, *state in self._need_states(stage) if record.needs else ():
            if before.get(name) != state:
                reasons.append(f"the stage {name!r} before it changed")
        return "; ".join(reasons) or "a stage before it changed, or the version of Pardalis"

    def _needs(self, stage: Stage) -> list[Stage]:
        """Return the stages of this recipe that a stage needs."""
        return [need for need in self.stages if need.name in stage.needs]

    def _note_identity(self, stage: Stage) -> None:
        """Find the identity of a stage that is not run; it has none while an input is missing."""
        try:
            if not self._is_kept(stage):
                self.identities[stage.name] = self._identity(stage)
        except (DataError, BundleError):
            self.identities[stage.name] = ""

    def _require(self, stage: Stage) -> None:
        for need in self._needs(stage):
            if need.name in self.decisions:  # it runs before, in this pass
                continue
            record = self.records.get(need.name)
            wanted = (self.identities[need.name], need.steps(self.recipe))
            if record and record.finished and (record.identity, record.steps) == wanted:
                continue
            raise StageMissingError(
                f"The stage {stage.name!r} needs {need.name!r}, which is not finished in "
                f"{self.folder} for this recipe and its data; run that stage first, or all stages.",
                need.name,
            )

    def _run(self, stage: Stage, decision: Decision) -> None:
        if decision.action == "omit":
            logger.warning(
                "%s: %s. With them the same command makes it, and trains nothing again.",
                stage.name,
                decision.reason,
            )
            return
        if not decision.is_run:
            logger.info("%s: %s, %s.", stage.name, decision.reason, _DONE[decision.action])
            stage.refresh(self.context)
            return
        if lack := stage.lacks():
            logger.warning("%s: %s.", stage.name, lack.message)
        identity, steps = self.identities[stage.name], stage.steps(self.recipe)
        record = self.records.get(stage.name)
        if record is not None and record.identity != identity:
            logger.info("%s: runs anew, because %s.", stage.name, decision.reason)
            self._keep(stage, record.identity)
            record = None
        record = record or Record(stage.name, identity, steps)
        record.steps, record.finished, record.inputs = steps, None, self.inputs[stage.name]
        record.version, record.since = pardalis.__version__, stage.since
        record.needs = self._need_states(stage)
        self.records[stage.name] = record
        # Before anything is restored: who is killed between them must not keep it as the old one.
        self._write_records()
        self._restore(stage, identity)
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

    def _keep(self, stage: Stage, old: str) -> None:
        """Move costly outputs aside, under their identity."""
        for output in stage.costly:
            path, kept = self.folder / output, self._kept(output, old)
            if path.exists():
                remove(kept)  # an older state of the same identity
                path.rename(kept)
                logger.info("%s is kept as %s.", path, kept.name)

    def _restore(self, stage: Stage, identity: str) -> None:
        """Move costly outputs of an identity back, unless they are there."""
        for output in stage.costly:
            path, kept = self.folder / output, self._kept(output, identity)
            if kept.exists() and not path.exists():
                kept.rename(path)
                logger.info("%s is restored from %s.", path, kept.name)

    def _kept(self, output: str, identity: str) -> Path:
        path = self.folder / output
        return path.with_name(f"{path.name}.{identity}")

    def _write_records(self) -> None:
        ordered = [self.records[stage.name] for stage in STAGES if stage.name in self.records]
        write_json(self.folder / _RECORDS, [dataclasses.asdict(record) for record in ordered])
