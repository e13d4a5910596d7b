"""Prefetching: the rows of the next step are built while a GPU computes the present one."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pardalis.batch import Batch


@runtime_checkable
class BatchSource(Protocol):
    """What a loader does: a step and a rank in, its rows out."""

    def batch(self, step: int, rank: int = 0, size: int = 1) -> Batch:
        """Return a rank's share of the rows of a step, always the same ones."""
        ...


class Prefetcher:
    """A rank's batches on its device.

    For a GPU a thread builds the next one ahead, in pinned memory, from which it is copied without
    waiting. An error of a step is raised when that step is asked. The thread ends with
    :meth:`close`, or with the process. On a CPU rows are built when they are asked: four rows of
    256 take 0.07 ms, and to hand over to a thread on busy cores took 1 to 9 ms.

    Args:
        source: where rows come from; asked for one step at a time.
        device: where batches go.
        rank: whose share is taken, of ``size`` ranks.
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
        """Return the batch of a step, at once if the step before it was asked last."""
        if self._thread is None:
            return self._source.batch(step, self._rank, self._size)
        expected, self._next = self._next, None
        if expected is None or expected[0] != step:
            expected = (step, self._thread.submit(self._build, step))
        rows = expected[1].result()
        self._next = (step + 1, self._thread.submit(self._build, step + 1))
        return _each(rows, lambda tensor: tensor.to(self._device, non_blocking=True))

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown()

    def _build(self, step: int) -> Batch:
        rows = self._source.batch(step, self._rank, self._size)
        return _each(rows, Tensor.pin_memory) if self._device.type == "cuda" else rows


def _each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    return Batch(**{field.name: change(getattr(batch, field.name)) for field in fields(batch)})
