"""Two processes of torchrun train like one process with the whole batch."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import torch

from pardalis.errors import ConfigError
from pardalis.parallel import World, join
from pardalis.train import read_metrics

SCRIPT = Path(ranks.__file__)


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", str(SCRIPT), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("variant", ranks.VARIANTS)
def test_losses_equal_those_of_one_process(together, variant):
    """Measured: equal to 1e-5 of each number, restarts and evaluation too.

    Means of logits, where numbers near 1 cancel, are up to 5e-6 apart.
    """
    torch.set_num_threads(1)
    found = json.loads((together / "found.json").read_text())[variant]
    expected = ranks.losses(variant, World())
    assert len(found) == len(expected) == ranks.STEPS + 1
    for theirs, ours in zip(found, expected, strict=True):
        assert set(theirs) == set(ours)
        for name, value in ours.items():
            if math.isnan(value):
                assert math.isnan(theirs[name])
            else:
                assert theirs[name] == pytest.approx(value, rel=1e-4, abs=2e-5), name
    if variant == "ema":
        assert sum(line.get("restarted_codes", 0) for line in found) > 0


def test_a_run_of_two_processes_resumes_in_one(together, tmp_path):
    """Measured: the same loss to the last bit."""
    torch.set_num_threads(1)
    assert [line["step"] for line in read_metrics(together / "run" / "metrics.jsonl")] == [2, 4]
    resumed = ranks.train_part(together / "run", ranks.STEPS, World())
    whole = ranks.train_part(tmp_path, ranks.STEPS, World())
    assert resumed["step"] == ranks.STEPS
    assert resumed["loss"] == pytest.approx(whole["loss"], rel=1e-4)


def test_collective_operations(together):
    facts = json.loads((together / "found.json").read_text())["facts"]
    facts.pop("evaluated")
    assert facts == {"ranks": [0.0, 1.0], "any": True, "message": "go"}


def test_there_may_be_fewer_held_out_images_than_processes(together):
    torch.set_num_threads(1)
    found = json.loads((together / "found.json").read_text())["facts"]["evaluated"]
    assert found == pytest.approx(ranks.one_held_out(World()))


def test_a_single_process_broadcasts_to_itself():
    world = World()
    tensor = torch.ones(2)
    assert world.is_first
    assert world.sum(tensor) is tensor
    assert world.gather(tensor) is tensor
    assert world.means([3.0]) == [3.0]
    assert (world.any(True), world.any(False), world.broadcast("a")) == (True, False, "a")


def test_processes_cannot_share_a_gpu(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(ConfigError, match="2 processes cannot share cuda:1; give cuda"),
        join("cuda:1"),
    ):
        pass
