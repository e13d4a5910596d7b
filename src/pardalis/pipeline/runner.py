"""Running stages: what is finished and unchanged is skipped, what was interrupted goes on."""

import dataclasses
import fcntl
import json
import logging
import os
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pardalis
from pardalis import config as configs
from pardalis.errors import ConfigError, DataError
from pardalis.files import write_json, write_text
from pardalis.pipeline.recipe import Recipe
from pardalis.pipeline.stages import STAGES, Stage, stages_of

logger = logging.getLogger(__name__)

_RECORDS = "stages.json"


@dataclasses.dataclass(slots=True)
class Record:
    """What ``stages.json`` says of one stage."""

    name: str
    identity: str  # hash of what decides its result, that of its inputs included
    extent: str  # hash of what decides how far it goes
    seconds: float = 0.0  # over all attempts
    peak_rss_gib: float = 0.0  # of the process, up to the stage's end
    finished: str | None = None  # UTC, ISO 8601; None: interrupted


def run(
    recipe: Recipe, folder: Path, only: Sequence[str] = (), device: str = "cpu"
) -> list[Record]:
    """Run a recipe in a folder.

    Args:
        only: names of the stages to run; all of them when empty. Earlier stages must be finished.

    Returns:
        The records of all stages that have run, in order.

    Raises:
        PardalisError: whatever a stage raises; what it had finished stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        write_text(folder / "recipe.toml", configs.to_toml(recipe))
        records = {record.name: record for record in read_records(folder)}
        identities = _identities(recipe)
        for stage in stages_of(recipe):
            if only and stage.name not in only:
                continue
            _require(stage, records, identities, folder)
            _run_stage(stage, recipe, folder, records, identities[stage.name], device)
    return list(records.values())


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


def _identities(recipe: Recipe) -> dict[str, str]:
    """Hash each stage's settings together with the hashes of the stages that it reads."""
    identities: dict[str, str] = {}
    stages = stages_of(recipe)
    for stage in stages:
        # How far a stage went matters to those that read it.
        inputs = [identities[s.name] + _extent(s, recipe) for s in stages if s.name in stage.needs]
        identities[stage.name] = configs.fingerprint(
            pardalis.__version__, *stage.identity(recipe), *inputs
        )
    return identities


def _extent(stage: Stage, recipe: Recipe) -> str:
    return configs.fingerprint(*stage.extent(recipe))


def _require(
    stage: Stage, records: dict[str, Record], identities: dict[str, str], folder: Path
) -> None:
    for need in STAGES:
        if need.name not in stage.needs or need.name not in identities:
            continue
        record = records.get(need.name)
        if record is None or record.finished is None or record.identity != identities[need.name]:
            raise ConfigError(
                f"The stage {stage.name!r} needs {need.name!r}, which has not been run in {folder} "
                f"with this recipe; run 'pardalis {need.command}' first, or 'pardalis run' for all."
            )


def _run_stage(
    stage: Stage,
    recipe: Recipe,
    folder: Path,
    records: dict[str, Record],
    identity: str,
    device: str,
) -> None:
    before, extent = records.get(stage.name), _extent(stage, recipe)
    if before is not None and before.identity != identity:
        _put_aside(folder / stage.outputs[0], before.identity)
        before = None
    whole = all((folder / output).exists() for output in stage.outputs)
    if before is not None and before.finished and before.extent == extent and whole:
        logger.info("%s: unchanged since %s, skipped.", stage.name, before.finished)
        return
    record = before or Record(stage.name, identity, extent)
    record.extent, record.finished = extent, None
    records[stage.name] = record
    earlier, start = record.seconds, time.monotonic()
    _write(folder, records)
    logger.info("%s ...", stage.name)
    try:
        stage.run(recipe, folder, device)
        record.finished = datetime.now(UTC).isoformat(timespec="seconds")
    finally:
        record.seconds = earlier + time.monotonic() - start
        record.peak_rss_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        _write(folder, records)
    logger.info("%s: done in %.0f s.", stage.name, record.seconds)


def _write(folder: Path, records: dict[str, Record]) -> None:
    ordered = [records[stage.name] for stage in STAGES if stage.name in records]
    write_json(folder / _RECORDS, [dataclasses.asdict(record) for record in ordered])


def _put_aside(path: Path, identity: str) -> None:
    """Keep the result of another recipe under another name: it may have cost hours."""
    if path.exists():
        aside = path.with_name(f"{path.name}.{identity}")
        logger.info("The recipe changed: %s is kept as %s.", path, aside.name)
        os.rename(path, aside)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep two processes from running in one folder; a lock dies with its process."""
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"Another process is running in {folder}; wait for it, or choose another --out."
            ) from None
        yield
