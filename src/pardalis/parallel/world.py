"""The processes of one run, as ``torchrun`` starts them.

Everything here does nothing in a process that is alone, so callers need not ask.
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
from pardalis.parallel.failures import Watch, open_watch

# A large checkpoint on a slow disk, written while the steps go on.
_SAVING_PATIENCE = timedelta(hours=1)

# NCCL aborts a process that waited too long. Gloo, which raises, is to be the first to tire.
_LONGER_ON_GPUS = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class World:
    """One process among ``size``; all of them call the methods below in the same order."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    watch: Watch | None = None
    control: Any = None  # process group for numbers of the host, which must not wait for a GPU
    saving: Any = None  # process group for what is written while the steps go on

    @property
    def is_first(self) -> bool:
        """True in the one process that writes files."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all processes, the same bits in each."""
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

        One sum of all of them at once, after the backward pass: an image tokenizer has few
        parameters for the work that its convolutions do, so there is little to gain by overlap.
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
        """Return whether the flag is up in any process."""
        return flag if self.size == 1 else self.means([float(flag)])[0] > 0

    def first_of(self, value: Any) -> Any:
        """Return the value of the first process that has one; None where none has."""
        if self.size == 1:
            return value
        from torch import distributed

        values = [None] * self.size
        distributed.all_gather_object(values, value, group=self.control)
        return next((some for some in values if some is not None), None)

    def tell(self, message: Any = None) -> Any:
        """Return what the first process says, in all of them; they may wait for hours."""
        return message if self.watch is None else self.watch.tell(message)

    def note_step(self, step: int) -> None:
        """Let the others know how many updates this process has done."""
        if self.watch is not None:
            self.watch.step = step


@contextmanager
def join(device: torch.device | str = "cpu", patience_minutes: float = 10.0) -> Iterator[World]:
    """Join the processes that ``torchrun`` started, for the length of the block.

    ``cuda`` becomes the process's own GPU. A process that nobody started so is alone. When the
    block raises, one process of all reports why, and the others end silently.

    Args:
        patience_minutes: that processes wait for each other, but for what the first one tells.

    Raises:
        ConfigError: a single GPU is named for several processes.
    """
    device, size = torch.device(device), int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=device)
        return
    from torch import distributed

    if device.type == "cuda":
        if device.index is not None:
            raise ConfigError(
                f"{size} processes cannot share {device}; give cuda, and each takes its own."
            )
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    patience = timedelta(minutes=patience_minutes)
    watch = open_watch()
    try:
        on_gpus = device.type == "cuda"
        distributed.init_process_group(
            "nccl" if on_gpus else "gloo",
            store=watch.store,
            rank=watch.rank,
            world_size=size,
            timeout=patience + _LONGER_ON_GPUS if on_gpus else patience,
        )
        control, saving = (
            distributed.new_group(backend="gloo", timeout=time)
            for time in (patience, _SAVING_PATIENCE)
        )
        yield World(watch.rank, size, device, watch, control, saving)
        distributed.barrier(control)  # who leaves early may take the connections of others down
    except BaseException as error:
        raise watch.last_word(error) from error.__cause__
    distributed.destroy_process_group()
    watch.close()
