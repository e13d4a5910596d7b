"""When a rank fails, one error message reports why, and the others exit silently."""

import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import failing
import pytest
import torch
from torch import distributed

from pardalis.errors import TrainingError
from pardalis.parallel import world
from pardalis.parallel.failures import RankMonitor, is_broken_connection
from pardalis.train import checkpoint

SCRIPT = Path(failing.__file__)
QUIETLY = {"OMP_NUM_THREADS": "1"}
LIBRARIES = "[W"  # prefix of PyTorch's own warnings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("failing")
    command = [sys.executable, str(SCRIPT), str(folder)]
    subprocess.run(command, env=os.environ | QUIETLY, check=True)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, dict[str, Any]]:
    return json.loads((folder / "found.json").read_text())


def stderr_of(rank: dict[str, Any]) -> str:
    lines = rank["stderr"].splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(LIBRARIES))


@pytest.mark.parametrize(
    ("case", "code", "rank", "sentence"),
    [
        ("error", 3, 1, "rank 1 of 3: Row 7 is damaged; mend it."),
        ("error of all", 3, 0, "No recipe."),
        ("error of the first", 3, 0, "No recipe."),
        ("sigterm", 75, 0, "Stopped at step 4 of 6; run the same command to resume."),
    ],
)
def test_one_rank_reports_and_the_others_exit_silently(
    found: dict[str, Any], case: str, code: int, rank: int, sentence: str
) -> None:
    reporting = found[case].pop(str(rank))
    assert stderr_of(reporting) == f"pardalis: {sentence}\n"
    assert reporting["code"] == code
    for other in found[case].values():
        assert (other["code"], stderr_of(other)) == (1, "")


def test_a_bug_has_one_traceback_with_its_rank(found: dict[str, Any]) -> None:
    ranks = found["bug"]
    assert stderr_of(ranks["1"]).count("Traceback") == 1
    assert stderr_of(ranks["1"]).endswith("ZeroDivisionError: a bug\nThis was rank 1 of 3.\n")
    assert [stderr_of(ranks[other]) for other in "02"] == ["", ""]
    assert [rank["code"] for rank in ranks.values()] == [1, 1, 1]


@pytest.mark.parametrize(
    ("case", "finding"),
    [
        ("killed", "rank 1 of 3, at step 4, ended without an error message; it was killed"),
        ("frozen", "rank 1 of 3, at step 4, has not responded for"),
        ("stuck", "rank 1 of 3, at step 4, has not finished its step after"),
    ],
)
def test_waiting_ranks_report_which_rank_is_missing(
    found: dict[str, Any], case: str, finding: str
) -> None:
    ranks = [found[case]["0"], found[case]["2"]]
    reports = [stderr_of(rank) for rank in ranks if stderr_of(rank)]
    assert len(reports) == 1
    assert reports[0].startswith(f"pardalis: {finding}")
    assert reports[0].endswith("The same command resumes from the last checkpoint.\n")
    assert sorted(rank["code"] for rank in ranks) == [1, 5]
    if case == "stuck":
        assert "it is at failing.py:" in reports[0]
        assert "(inject_failure)" in reports[0]


def test_a_run_without_failure_prints_nothing(found: dict[str, Any]) -> None:
    assert [(rank["code"], stderr_of(rank)) for rank in found["nothing"].values()] == [(0, "")] * 3


@pytest.mark.parametrize(
    ("case", "steps"), [("nothing", [4, 6]), ("sigterm", [2, 4]), ("error", [2])]
)
def test_remaining_checkpoints_are_complete(folder: Path, case: str, steps: list[int]) -> None:
    """Also when the run failed: a save in progress is finished."""
    kept = checkpoint.all_of(folder / case)
    assert [checkpoint.step_of(path) for path in kept] == steps
    for path in kept:
        state, _ = checkpoint.load(path)
        # The mean of equal states is the sum of the steps.
        assert state["state"].tolist() == [sum(range(checkpoint.step_of(path)))] * 2


def test_the_error_is_in_the_summary_of_torchrun(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", str(SCRIPT), str(tmp_path), "error"],
        env=os.environ | QUIETLY,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert done.stderr.count("pardalis: rank 1 of 2: Row 7 is damaged; mend it.") == 1
    cause = done.stderr[done.stderr.index("Root Cause") :]
    assert "rank 1 of 2: Row 7 is damaged; mend it." in cause
    assert "Traceback" not in done.stderr[: done.stderr.index("pardalis: rank 1")]


@pytest.mark.parametrize(
    ("error", "is_broken"),
    [
        (RuntimeError("[..gloo/transport/tcp/pair.cc:538] Connection closed by peer"), True),
        (RuntimeError("shape '[2]' is invalid for input of size 3"), False),
        (ValueError("gloo"), False),
    ],
)
def test_errors_of_connections_are_recognised(error: Exception, is_broken: bool) -> None:
    assert is_broken_connection(error) == is_broken


def test_the_reporting_rank_ignores_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as a rank is gone, torchrun sends SIGTERM to the ranks that report it."""
    handlers: dict[int, Any] = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monitor = Mock(RankMonitor, _reported_error=lambda error: TrainingError(f"{handlers}"))
    error = RankMonitor.final_error(monitor, RuntimeError("[gloo] Connection closed by peer"))
    assert handlers == {signal.SIGTERM: signal.SIG_IGN}
    assert str(error) == f"{handlers}"


def test_gloo_times_out_before_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL aborts the process, and with it the report of the stuck rank."""
    times: dict[str, timedelta] = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(world, "open_monitor", lambda: Mock(RankMonitor, store=None, rank=0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for name in ("init_process_group", "new_group"):
        monkeypatch.setattr(
            distributed,
            name,
            lambda backend, *, timeout, **_: times.setdefault(backend, timeout),
        )
    for name in ("barrier", "destroy_process_group"):
        monkeypatch.setattr(distributed, name, lambda *_: None)
    with world.join("cuda", timeout_minutes=3.0):
        pass
    assert times["gloo"] == timedelta(minutes=3)
    assert times["nccl"] > times["gloo"]
