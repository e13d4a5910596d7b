"""Runs of a sharded decoder that resume with another number of ranks.

python tests/support/elastic.py FOLDER
"""

import errno
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import forked
import sharded
import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from pardalis.parallel import ParallelConfig, World, join, layout_of
from pardalis.train import LoopConfig, train
from pardalis.train.skipping import batch_of

STEPS, CUT = sharded.STEPS, 2
SHAPE = {"n_kv_heads": 2}
POISONED = 3  # batch

Hook = Callable[[World], None]


class Poisoned:
    """A decoder's task whose loss is NaN at one batch unless it is skipped."""

    def __init__(self, task: Any) -> None:
        self.task, self.skipped = task, ()

    def step(self, step: int) -> dict[str, float | Tensor]:
        measured = self.task.step(step)
        if batch_of(step, self.skipped) == POISONED:
            measured["loss"] = torch.tensor(math.nan)
        return measured

    def skip(self, batches: Sequence[int]) -> None:
        self.skipped = tuple(batches)
        self.task.skip(batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)


def part(
    folder: Path,
    steps: int,
    parallel: dict[str, Any],
    hook: Hook = lambda world: None,
    poisoned: bool = False,
    **options: Any,
) -> None:
    """Train to a step as one rank."""
    torch.set_num_threads(1)
    config = LoopConfig(steps=steps, save_every=2, report_every=1, **options)
    with join() as world:
        hook(world)
        shares = ParallelConfig(**parallel)
        made = sharded.task(sharded.Case(parallel, SHAPE), layout_of(world, shares), shares)
        train(Poisoned(made) if poisoned else made, folder, config, world=world)


def fail_at_second_write(world: World, fail: Callable[[], None]) -> None:
    """Make rank 1 fail when it begins to write the second checkpoint."""
    original, writers = FileSystemWriter.write_data, []

    def write_data(self: Any, *arguments: Any) -> Any:
        writers.append(self)
        if world.rank == 1 and len(writers) == 2:
            fail()
        return original(self, *arguments)

    FileSystemWriter.write_data = write_data


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def main(folder: Path) -> None:
    def run(name: str, size: int, *arguments: Any, **options: Any) -> list[int]:
        work = partial(part, folder / name, *arguments, **options)
        return forked.together(work, size, folder / name / "stderr")

    single, shard, tensor = {}, {"shard": 2}, {"tensor": 2}
    codes = {"whole": run("whole", 1, STEPS, single)}
    codes["2"] = run("2", 2, CUT, shard)
    for name in ("2 to 1", "2 to 4"):
        shutil.copytree(folder / "2", folder / name)
    codes["2 to 1"] = run("2 to 1", 1, STEPS, single)
    codes["2 to 4"] = run("2 to 4", 4, STEPS, tensor)
    codes["1"] = run("1 to 2", 1, CUT, single)
    codes["1 to 2"] = run("1 to 2", 2, STEPS, tensor)
    codes["killed"] = run("killed", 2, STEPS, shard, partial(fail_at_second_write, fail=kill))
    kept = sorted(path.name for path in (folder / "killed" / "checkpoints").glob("step-*"))
    codes["after"] = run("killed", 2, STEPS, shard)
    codes["full"] = run("full", 2, STEPS, shard, partial(fail_at_second_write, fail=fill_disk))
    stderr = [(folder / "full" / "stderr" / f"{rank}.txt").read_text() for rank in range(2)]
    codes["full after"] = run("full", 1, STEPS, single)
    codes["poisoned"] = run("poisoned", 2, STEPS, shard, poisoned=True, on_divergence="roll_back")
    found = {"codes": codes, "kept": kept, "stderr": stderr}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
