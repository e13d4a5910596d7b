"""A checkpoint written during training has the state at the call."""

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from pardalis.errors import TrainingError
from pardalis.parallel import World
from pardalis.train import checkpoint

WRITE = FileSystemWriter.write_data


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Writing waits for this event."""
    event = threading.Event()

    def write_data(self: Any, *arguments: Any) -> Any:
        assert event.wait(60)
        return WRITE(self, *arguments)

    monkeypatch.setattr(FileSystemWriter, "write_data", write_data)
    return event


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    def write_data(self: Any, *arguments: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FileSystemWriter, "write_data", write_data)


def test_the_written_state_is_that_of_the_call(tmp_path: Path, held: threading.Event) -> None:
    tensor, window = torch.zeros(5), [{"loss": 1.0}]
    with checkpoint.Saver(tmp_path, World()) as saver:
        saver.save(1, {"x": tensor, "view": tensor[1:3]}, {"window": window})
        assert checkpoint.newest(tmp_path) is None  # not before it is complete
        tensor += 1
        window.append({"loss": 2.0})
        held.set()
    state, notes = checkpoint.load(tmp_path / "checkpoints/step-00000001")
    assert (state["x"].tolist(), state["view"].tolist()) == ([0.0] * 5, [0.0] * 2)
    assert notes == {"window": [{"loss": 1.0}]}


def test_one_save_is_in_flight_and_old_ones_go_when_it_is_done(
    tmp_path: Path, held: threading.Event
) -> None:
    held.set()
    with checkpoint.Saver(tmp_path, World(), keep=2) as saver:
        for step in (1, 2, 3):
            saver.save(step, {"x": torch.full((3,), float(step))}, {})
        saver.wait()
        held.clear()
        saver.save(4, {"x": torch.zeros(3)}, {})
        names = [path.name for path in checkpoint.all_of(tmp_path)]
        assert names == ["step-00000002", "step-00000003"]
        held.set()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000003", "step-00000004"]


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("ask", ["check", "wait", "save", "leave"])
def test_an_error_is_raised_at_the_next_call(tmp_path: Path, ask: str) -> None:
    message = "step 7 could not be written to .*: the disk is full.*No checkpoint is before it"
    with (
        pytest.raises(TrainingError, match=message),
        checkpoint.Saver(tmp_path, World()) as saver,
    ):
        saver.save(7, {"x": torch.zeros(3)}, {})
        if ask == "check":
            while True:
                saver.check()
        elif ask == "wait":
            saver.wait()
        elif ask == "save":
            saver.save(8, {}, {})
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_when_a_run_fails_its_last_save_is_finished(tmp_path: Path, held: threading.Event) -> None:
    with pytest.raises(ZeroDivisionError), checkpoint.Saver(tmp_path, World()) as saver:
        saver.save(1, {"x": torch.zeros(3)}, {})
        threading.Timer(0.2, held.set).start()
        raise ZeroDivisionError
    assert checkpoint.newest(tmp_path) is not None


def test_tensors_are_loaded_with_the_dtype_and_device_of_the_template(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, 1, {"a": torch.arange(3.0), "b": [torch.ones(2)]}, {})
    like = {"a": torch.zeros(3, requires_grad=True), "c": torch.zeros(1)}
    state, _ = checkpoint.load(folder, like)
    assert (state["a"].tolist(), state["a"].requires_grad) == ([0.0, 1.0, 2.0], False)
    assert state["b"][0].tolist() == [1.0, 1.0]
    assert like["a"].tolist() == [0.0] * 3  # a load that fails half-way leaves them as they were
    with pytest.raises(ValueError, match=r"state/a has shape \[3\] there and \[4\] here"):
        checkpoint.load(folder, {"a": torch.zeros(4)})


def test_a_part_is_read_in_place_and_nothing_else(tmp_path: Path) -> None:
    folder = checkpoint.save(
        tmp_path, 1, {"model": {"w": torch.arange(3.0)}, "o": torch.ones(9)}, {}
    )
    part = {"model": {"w": torch.zeros(3)}}
    checkpoint.load_part(folder, part)
    assert part["model"]["w"].tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(ValueError, match="state/model/v is missing there"):
        checkpoint.load_part(folder, {"model": {"v": torch.zeros(3)}})
    with pytest.raises(ValueError, match=r"state/model/w has shape \[3\] there"):
        checkpoint.load_part(folder, {"model": {"w": torch.zeros(2)}})


def test_the_thread_is_on_the_gpu_of_its_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new thread has the first GPU, where writers of all ranks would open contexts."""
    current, during = [], []

    @contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        current.append(chosen)
        yield
        current.clear()

    def write_data(self: Any, *arguments: Any) -> Any:
        during.extend(current)
        return WRITE(self, *arguments)

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(FileSystemWriter, "write_data", write_data)
    with checkpoint.Saver(tmp_path, World(device=torch.device("cuda", 3))) as saver:
        saver.save(1, {"x": torch.zeros(5)}, {})
    assert during == [torch.device("cuda", 3)]
