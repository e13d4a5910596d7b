"""Prefetching: the rows of the next step are built while a GPU computes the current one."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pardalis.batch import Batch


@runtime_checkable
class BatchSource(Protocol):
    """A loader, as training uses it."""

    def batch(self, step: int, rank: int = 0, size: int = 1) -> Batch:
        """Return a rank's share of the rows of a step: a pure function of the arguments."""
        ...


class Prefetcher:
    """A rank's batches on its device.

    For a GPU, a thread builds the next batch ahead in pinned memory, from which it is copied
    asynchronously. An error of a step is raised when that step is requested. On a CPU rows are
    built on request: four rows of 256 take 0.07 ms, and a hand-over between threads on busy cores
    took 1 to 9 ms.

    Args:
        source: the loader of rows; it is called for one step at a time.
        device: the device of the batches.
        rank: the rank, of ``size`` ranks, whose share is returned.
    """

    def __init__(
        self, source: BatchSource, device: torch.device | str = "cpu", rank: int = 0, size: int = 1
    ) -> None:
        self._source = source
        self._device = torch.device(device)
        self._rank, self._size = rank, size
        self._thread: ThreadPoolExecutor | None = None
        if self._device.type != "cpu":
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._next: tuple[int, Future[Batch]] | None = None

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, without delay if the step before it was requested last."""
        if self._thread is None:
            return self._source.batch(step, self._rank, self._size)
        expected, self._next = self._next, None
        if expected is None or expected[0] != step:
            expected = (step, self._thread.submit(self._build, step))
        rows = expected[1].result()
        self._next = (step + 1, self._thread.submit(self._build, step + 1))
        return rows.map(lambda tensor: tensor.to(self._device, non_blocking=True))

    def _build(self, step: int) -> Batch:
        rows = self._source.batch(step, self._rank, self._size)
        return rows.map(Tensor.pin_memory) if self._device.type == "cuda" else rows
