"""The processes of one run, as ``torchrun`` starts them.

In a single process every collective is the identity, so callers need no special case.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from pardalis.errors import ConfigError
from pardalis.parallel.failures import RankMonitor, open_monitor

# A large checkpoint on a slow disk, written while training continues.
_SAVING_TIMEOUT = timedelta(hours=1)

# NCCL aborts a process at its timeout and gloo raises, so gloo's has to come first.
_NCCL_EXTRA = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class World:
    """One process among ``size``; all of them call the methods below in the same order."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    monitor: RankMonitor | None = None
    control: Any = None  # process group for host values, which must not wait for a GPU
    saving: Any = None  # process group for checkpoints that are written while training continues

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all processes, bit-identical in each."""
        if self.size == 1:
            return tensor
        from torch import distributed

        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean over all processes."""
        return self.sum(tensor) / self.size

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, of equal shape, joined along the first axis."""
        if self.size == 1:
            return tensor
        from torch import distributed

        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        distributed.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its mean over all processes.

        One reduction of all gradients after the backward pass: an image tokenizer has few
        parameters for the work of its convolutions, so overlap would gain little.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not gradients:
            return
        flat = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        means = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view(gradient.shape))

    def means(self, values: Sequence[float]) -> list[float]:
        """Return the mean of each number over all processes."""
        if self.size == 1 or not values:
            return list(values)
        from torch import distributed

        sums = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(sums, group=self.control)
        return (sums / self.size).tolist()

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return flag if self.size == 1 else self.means([float(flag)])[0] > 0

    def first_value(self, value: Any) -> Any:
        """Return the first value, in the order of ranks, that is not None; else None."""
        if self.size == 1:
            return value
        from torch import distributed

        values = [None] * self.size
        distributed.all_gather_object(values, value, group=self.control)
        return next((some for some in values if some is not None), None)

    def broadcast(self, message: Any = None) -> Any:
        """Return the message of the first process in all of them, without a timeout."""
        return message if self.monitor is None else self.monitor.broadcast(message)

    def record_step(self, step: int) -> None:
        """Record how many updates this process has done, for failure reports."""
        if self.monitor is not None:
            self.monitor.step = step


@contextmanager
def join(device: torch.device | str = "cpu", timeout_minutes: float = 10.0) -> Iterator[World]:
    """Join the processes that ``torchrun`` started, for the length of the block.

    ``cuda`` becomes the process's own GPU. Without ``torchrun`` the process is alone. When the
    block raises, exactly one process reports the error and the others exit silently.

    Args:
        timeout_minutes: longest wait of processes for each other; :meth:`World.broadcast` has none.

    Raises:
        ConfigError: one GPU is named for several processes.
    """
    device, size = torch.device(device), int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=device)
        return
    from torch import distributed

    if device.type == "cuda":
        if device.index is not None:
            raise ConfigError(
                f"{size} processes cannot share {device}; give cuda, and each takes its own GPU."
            )
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    timeout = timedelta(minutes=timeout_minutes)
    monitor = open_monitor()
    try:
        on_gpus = device.type == "cuda"
        distributed.init_process_group(
            "nccl" if on_gpus else "gloo",
            store=monitor.store,
            rank=monitor.rank,
            world_size=size,
            timeout=timeout + _NCCL_EXTRA if on_gpus else timeout,
        )
        control, saving = (
            distributed.new_group(backend="gloo", timeout=time)
            for time in (timeout, _SAVING_TIMEOUT)
        )
        yield World(monitor.rank, size, device, monitor, control, saving)
        distributed.barrier(control)  # an early exit may close the connections of others
    except BaseException as error:
        raise monitor.final_error(error) from error.__cause__
    distributed.destroy_process_group()
    monitor.close()
