"""Resuming with another number of ranks, and after failures while a checkpoint is written."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import elastic
import pytest
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from pardalis.train import checkpoint, read_metrics
from pardalis.train.skipping import read_skips

STEPS, CUT = elastic.STEPS, elastic.CUT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    command = [sys.executable, elastic.__file__, str(folder)]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "found.json").read_text())


def losses(run: Path) -> list[float]:
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return [line["loss"] for line in lines]


@pytest.mark.parametrize("name", ["2 to 1", "2 to 4", "1 to 2", "killed", "full"])
def test_a_run_resumed_on_other_ranks_has_the_losses_of_an_uninterrupted_run(
    folder: Path, name: str
) -> None:
    """Measured: equal to 1.3e-7 of each, one rounding of float32."""
    assert losses(folder / name) == pytest.approx(losses(folder / "whole"), rel=2e-6)


def test_exit_codes(found: dict[str, Any]) -> None:
    codes = found["codes"]
    assert codes["killed"] == [5, -9]  # the surviving rank reports the missing one
    assert sorted(codes["full"]) == [1, 5]  # one rank reports the error
    whole = {name: ranks for name, ranks in codes.items() if name not in ("killed", "full")}
    assert all(code == 0 for ranks in whole.values() for code in ranks)


def test_a_rank_killed_during_a_write_loses_only_the_unfinished_checkpoint(
    found: dict[str, Any],
) -> None:
    assert found["kept"] == ["step-00000002"]


def test_a_disk_that_is_full_for_one_rank_gives_one_error_message(found: dict[str, Any]) -> None:
    stderr = "".join(found["stderr"])
    assert stderr.count("\n") == 1
    assert "The checkpoint of step 4 could not be written to" in stderr
    assert "the disk is full; free space on it, then run the same command again." in stderr
    assert "step-00000002 before it is intact" in stderr


def test_every_element_is_written_once_by_the_rank_that_holds_it(folder: Path) -> None:
    newest = checkpoint.newest(folder / "2")
    assert newest is not None
    about = FileSystemReader(newest).read_metadata()
    for key, entry in about.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            written = sum(chunk.sizes.numel() for chunk in entry.chunks)
            assert written == entry.size.numel(), key
    in_files: dict[str, int] = {}
    for place in about.storage_data.values():
        in_files[place.relative_path] = in_files.get(place.relative_path, 0) + place.length
    assert in_files == {path.name: path.stat().st_size for path in newest.glob("*.distcp")}
    assert len(in_files) == 2
    assert max(in_files.values()) < 1.5 * min(in_files.values())


def test_ranks_roll_back_together(folder: Path) -> None:
    (skip,) = read_skips(folder / "poisoned")
    assert (skip.rollback, skip.step, skip.batch) == (1, 3, 3)
    assert (skip.first_position, skip.last_position) == (24, 31)
    found, whole = losses(folder / "poisoned"), losses(folder / "whole")
    assert found[:3] == pytest.approx(whole[:3], rel=2e-6)
    assert found[3] != pytest.approx(whole[3], rel=1e-3)  # a batch of other rows
    stderr = (folder / "poisoned" / "stderr" / "0.txt").read_text()
    assert "Rolling back to step 2 and skipping the rows at positions 24 to 31." in stderr
    assert (folder / "poisoned" / "stderr" / "1.txt").read_text() == ""
