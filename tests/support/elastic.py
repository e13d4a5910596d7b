"""Runs of a sharded decoder that go on with other ranks than they began with.

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
    """A decoder's task whose loss is lost at one batch, if that is not left out."""

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
    """Train to a step, as one rank of as many as there are."""
    torch.set_num_threads(1)
    config = LoopConfig(steps=steps, save_every=2, report_every=1, **options)
    with join() as world:
        hook(world)
        shares = ParallelConfig(**parallel)
        made = sharded.task(sharded.Case(parallel, SHAPE), layout_of(world, shares), shares)
        train(Poisoned(made) if poisoned else made, folder, config, world=world)


def at_write_of_second(world: World, do: Callable[[], None]) -> None:
    """Let something happen to rank 1 when it begins to write the second checkpoint."""
    found, seen = FileSystemWriter.write_data, []

    def write_data(self: Any, *arguments: Any) -> Any:
        seen.append(self)
        if world.rank == 1 and len(seen) == 2:
            do()
        return found(self, *arguments)

    FileSystemWriter.write_data = write_data


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def main(folder: Path) -> None:
    def go(name: str, size: int, *arguments: Any, **options: Any) -> list[int]:
        work = partial(part, folder / name, *arguments, **options)
        return forked.together(work, size, folder / name / "said")

    alone, shard, tensor = {}, {"shard": 2}, {"tensor": 2}
    codes = {"whole": go("whole", 1, STEPS, alone)}
    codes["2"] = go("2", 2, CUT, shard)
    for name in ("2 to 1", "2 to 4"):
        shutil.copytree(folder / "2", folder / name)
    codes["2 to 1"] = go("2 to 1", 1, STEPS, alone)
    codes["2 to 4"] = go("2 to 4", 4, STEPS, tensor)
    codes["1"] = go("1 to 2", 1, CUT, alone)
    codes["1 to 2"] = go("1 to 2", 2, STEPS, tensor)
    codes["killed"] = go("killed", 2, STEPS, shard, partial(at_write_of_second, do=kill))
    kept = sorted(path.name for path in (folder / "killed" / "checkpoints").glob("step-*"))
    codes["after"] = go("killed", 2, STEPS, shard)
    codes["full"] = go("full", 2, STEPS, shard, partial(at_write_of_second, do=fill_disk))
    said = [(folder / "full" / "said" / f"{rank}.txt").read_text() for rank in range(2)]
    codes["full after"] = go("full", 1, STEPS, alone)
    codes["poisoned"] = go("poisoned", 2, STEPS, shard, poisoned=True, on_divergence="roll_back")
    found = {"codes": codes, "kept": kept, "said": said}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
