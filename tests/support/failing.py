"""Failures of ranks, and what each rank writes to stderr.

python tests/support/failing.py FOLDER                              all cases
torchrun --nproc-per-node 2 tests/support/failing.py FOLDER error   one case
"""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import forked
import torch

from pardalis.errors import DataError
from pardalis.parallel import World, join
from pardalis.train import LoopConfig, train

CONFIG = LoopConfig(steps=6, save_every=2, report_every=2)


class Counting:
    """A task with a state of 2 numbers and a failure of rank 1 at a step."""

    def __init__(self, world: World, case: str) -> None:
        self.world, self.case = world, case
        self.state = torch.zeros(2)

    def step(self, step: int) -> dict[str, Any]:
        if self.world.rank == 1 and step == 3:
            inject_failure(self.case)
        self.state = self.world.sum(self.state + step) / self.world.size
        return {"loss": self.state.mean()}

    def evaluate(self) -> dict[str, float]:
        return {}

    def positions(self, batch: int) -> range:
        return range(batch, batch + 1)

    def skip(self, batches: Any) -> None:
        raise AssertionError

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state["state"]


def inject_failure(case: str) -> None:
    if case == "error":
        raise DataError("Row 7 is damaged; mend it.")
    if case == "bug":
        raise ZeroDivisionError("a bug")
    if case == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if case == "frozen":
        os.kill(os.getpid(), signal.SIGSTOP)
    if case == "stuck":
        time.sleep(60)
    if case == "sigterm":
        os.kill(os.getpid(), signal.SIGTERM)


# Timeout in seconds: short where it ends the case.
CASES = {
    "nothing": 60.0,
    "error": 60.0,
    "error of all": 60.0,
    "error of the first": 60.0,
    "bug": 60.0,
    "killed": 60.0,
    "sigterm": 60.0,
    "frozen": 8.0,
    "stuck": 8.0,
}
SILENT = (("frozen", 1), ("stuck", 1))
RANKS = 3


def part(case: str, folder: Path) -> None:
    """Run one rank of a case."""
    torch.set_num_threads(1)
    with join(timeout_minutes=CASES[case] / 60) as world:
        world.broadcast("begin")
        if case == "error of the first" and world.is_first:
            raise DataError("No recipe.")
        if case == "error of all":
            raise DataError("No recipe.")
        world.broadcast("continue")
        train(Counting(world, case), folder / case, CONFIG, world=world)


def main(folder: Path) -> None:
    """Run all cases at once; write each rank's exit code and stderr to a file."""
    server, ports = forked.begin_stores(len(CASES))
    ranks = {
        (case, rank): forked.begin(
            partial(part, case, folder), rank, RANKS, port, folder / f"{case} {rank}.txt"
        )
        for case, port in zip(CASES, ports, strict=True)
        for rank in range(RANKS)
    }
    found: dict[str, Any] = {}
    for (case, rank), child in sorted(ranks.items(), key=lambda item: item[0] in SILENT):
        if (case, rank) in SILENT:  # the others have ended
            os.kill(child, signal.SIGKILL)
        code = forked.end(child)
        stderr = (folder / f"{case} {rank}.txt").read_text()
        found.setdefault(case, {})[rank] = {"code": code, "stderr": stderr}
    forked.stop(server)
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        raise SystemExit(forked.run(partial(part, sys.argv[2], Path(sys.argv[1]))))
    main(Path(sys.argv[1]))
