"""Prefetching: the batches of the loader, built ahead, and its errors when they are due."""

import dataclasses
import threading

import pytest
import torch

from pardalis.batch import Batch, Soft
from pardalis.data import Loader, Prefetcher
from pardalis.errors import DataError


@pytest.fixture
def loader(write_shards) -> Loader:
    shards = write_shards([[0, *range(10, 11 + i % 9), 2] for i in range(50)], 12)
    return Loader({"a": shards}, {"a": 1.0}, 12, 6, 0, 1)


@pytest.fixture
def gpu(monkeypatch) -> list[torch.Tensor]:
    """Let "cuda" be a device whose memory is the CPU's; return what is pinned for it."""
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, non_blocking: self)
    return pinned


class Recorder:
    """A loader that records the requested steps and fails at one of them."""

    def __init__(self, loader: Loader, fails_at: int = -1) -> None:
        self.loader, self.fails_at = loader, fails_at
        self.asked: list[tuple[int, int, int]] = []
        self.threads: set[threading.Thread] = set()

    def batch(self, step: int, rank: int = 0, size: int = 1) -> Batch:
        self.asked.append((step, rank, size))
        self.threads.add(threading.current_thread())
        if step == self.fails_at:
            raise DataError(f"The rows of step {step} are gone.")
        return self.loader.batch(step, rank, size)


class Whole:
    """A loader of batches with every kind of tensor."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def batch(self, step: int, rank: int = 0, size: int = 1) -> Batch:
        rows = self.loader.batch(step, rank, size)
        soft = Soft(rows.ids[:, :1], torch.zeros(len(rows.ids), 1, 3))
        advantages = torch.ones(len(rows.ids))
        return dataclasses.replace(rows, soft=soft, extra={"advantages": advantages})


def assert_equal(first: Batch, second: Batch) -> None:
    for name in ("ids", "targets", "weights", "positions", "documents"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def finish(prefetcher: Prefetcher) -> None:
    """Wait for the batch that is built ahead."""
    assert prefetcher._thread is not None
    prefetcher._thread.shutdown()


@pytest.mark.parametrize("steps", [range(5), (0, 1, 7, 8, 3, 3, 4), (9, 0)])
@pytest.mark.parametrize(("rank", "size"), [(0, 1), (2, 3)])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_are_those_of_the_loader_in_any_order(gpu, loader, device, steps, rank, size):
    prefetcher = Prefetcher(loader, device, rank, size)
    for step in steps:
        assert_equal(prefetcher.batch(step), loader.batch(step, rank, size))


def test_for_a_gpu_each_step_is_built_once_and_ahead(gpu, loader):
    recorder = Recorder(loader)
    prefetcher = Prefetcher(recorder, "cuda", rank=1, size=2)
    for step in range(4):
        prefetcher.batch(step)
    finish(prefetcher)
    assert recorder.asked == [(step, 1, 2) for step in range(5)]
    assert len(recorder.threads) == 1
    assert threading.current_thread() not in recorder.threads


def test_on_a_cpu_there_is_no_thread(loader):
    recorder = Recorder(loader)
    prefetcher = Prefetcher(recorder)
    for step in range(3):
        prefetcher.batch(step)
    assert recorder.asked == [(step, 0, 1) for step in range(3)]
    assert recorder.threads == {threading.current_thread()}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_error_is_raised_at_its_step(gpu, loader, device):
    prefetcher = Prefetcher(Recorder(loader, fails_at=2), device)
    prefetcher.batch(0)
    prefetcher.batch(1)  # the thread meets the error while this step is computed
    with pytest.raises(DataError, match=r"^The rows of step 2 are gone\.$"):
        prefetcher.batch(2)
    assert_equal(prefetcher.batch(3), loader.batch(3))  # another step is not affected


def test_batches_go_to_the_device(loader):
    batch = Prefetcher(Whole(loader), torch.device("meta")).batch(0)
    assert batch.ids.device.type == batch.soft.values.device.type == "meta"
    assert batch.extra["advantages"].device.type == "meta"


def test_rows_for_a_gpu_are_pinned_first(gpu, loader):
    prefetcher = Prefetcher(Whole(loader), "cuda")
    prefetcher.batch(0)
    finish(prefetcher)
    assert len(gpu) == 2 * 8  # this step and the next


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_reads_the_weights_is_built_when_it_is_due(gpu, loader, device):
    recorder = Recorder(loader)
    recorder.reads_weights = True
    prefetcher = Prefetcher(recorder, device)
    for step in range(3):
        assert recorder.asked == [(earlier, 0, 1) for earlier in range(step)]
        assert_equal(prefetcher.batch(step), loader.batch(step))
    assert recorder.threads == {threading.current_thread()}
