"""Pre-training of the decoder: packed rows in, next-token losses, one AdamW update per step.

The step number decides everything that is drawn (rows, dropout), so no generator is ever saved.
"""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pardalis.data.batch import Batch
from pardalis.errors import ConfigError, TrainingError
from pardalis.model import Decoder
from pardalis.objectives import Losses, NextTokenConfig, next_token_losses, no_losses
from pardalis.seeds import derive
from pardalis.train.optimizer import AdamWConfig, adamw, load_optimizer_state, set_learning_rate
from pardalis.train.schedule import ScheduleConfig, learning_rate


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """What decides the numbers of a pre-training run, besides model and data."""

    batch_rows: int  # rows of one update
    schedule: ScheduleConfig
    optimizer: AdamWConfig = field(default_factory=AdamWConfig)
    objective: NextTokenConfig = field(default_factory=NextTokenConfig)
    accumulation_steps: int = 1  # parts of a batch that go through the model one after the other
    grad_clip: float = 1.0  # largest norm of the whole gradient; inf: never clipped
    seed: int = 0  # root of initial values, order of rows and dropout

    def __post_init__(self) -> None:
        for name in ("batch_rows", "accumulation_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.batch_rows % self.accumulation_steps:
            raise ConfigError(
                f"batch_rows ({self.batch_rows}) must be a multiple of accumulation_steps "
                f"({self.accumulation_steps})."
            )
        if not self.grad_clip > 0:
            raise ConfigError(f"grad_clip must be above 0, got {self.grad_clip}.")

    @property
    def init_seed(self) -> int:
        """Seed of a new model's initial values, for :func:`pardalis.model.initialise`."""
        return derive(self.seed, "init")

    @property
    def data_seed(self) -> int:
        """Seed of the order of rows, for the loader."""
        return derive(self.seed, "data")


@runtime_checkable
class BatchSource(Protocol):
    """What training asks of a loader."""

    def batch(self, step: int) -> Batch:
        """Return the rows of a step, always the same ones."""
        ...


class PretrainTask:
    """The decoder as a task of the training loop.

    Args:
        model: with its initial values, or those of a bundle; moved to the device.
        loader: its batches have ``config.batch_rows`` rows.
        total_steps: of the run, for the schedule.
        image_ids: the vocabulary's range of image ids, for losses by modality.
        heldout_loader: batches 0 to ``heldout_batches`` - 1 of it are evaluated.
    """

    def __init__(
        self,
        model: Decoder,
        loader: BatchSource,
        config: PretrainConfig,
        image_ids: range,
        *,
        total_steps: int,
        heldout_loader: BatchSource | None = None,
        heldout_batches: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        learning_rate(config.schedule, 0, total_steps)  # refuses a schedule that does not fit
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.loader = loader
        self.config = config
        self.image_ids = image_ids
        self.total_steps = total_steps
        self.heldout_loader = heldout_loader
        self.heldout_batches = heldout_batches
        self.optimizer = adamw(self.model, config.optimizer)

    def step(self, step: int) -> dict[str, float | Tensor]:
        """Do one update from one batch, in ``accumulation_steps`` parts.

        Each part's loss sum is divided by the number of targets of the whole batch, so the gradient
        is that of the batch, however many parts it has.
        """
        batch = self.loader.batch(step)
        tokens = float(batch.weights.sum())
        if tokens == 0:
            raise TrainingError(
                f"The batch of step {step} has no target to learn from; look at the weights in the "
                "prepared data."
            )
        rate = learning_rate(self.config.schedule, step, self.total_steps)
        set_learning_rate(self.optimizer, rate)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        sums = no_losses(self.device)
        for part, rows in enumerate(_parts(batch, self.config.accumulation_steps)):
            with _dropout_seed(derive(self.config.seed, "dropout", step, part), self.device):
                losses = self._losses(rows)
            torch.autograd.backward(losses.total / tokens)
            sums = _add(sums, losses)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        return {
            **_means(sums),
            "z_loss": self.config.objective.z_loss * sums.z / sums.count,
            "grad_norm": norm.detach(),
            "learning_rate": rate,
            "tokens": tokens,
        }

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the cross-entropies per held-out target, without dropout."""
        if self.heldout_loader is None or self.heldout_batches == 0:
            return {}
        self.model.eval()
        sums = no_losses(self.device)
        for index in range(self.heldout_batches):
            sums = _add(sums, self._losses(self.heldout_loader.batch(index)))
        means = {f"heldout_{name}": value.item() for name, value in _means(sums).items()}
        return {name: value for name, value in means.items() if not math.isnan(value)}

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        load_optimizer_state(self.optimizer, state["optimizer"])

    def _losses(self, batch: Batch) -> Losses:
        batch = batch.to(self.device)
        return next_token_losses(self.model, batch, self.image_ids, self.config.objective)


def _parts(batch: Batch, n_parts: int) -> Iterator[Batch]:
    """Cut a batch into parts of equally many rows."""
    names = [f.name for f in dataclasses.fields(batch)]
    cut = [getattr(batch, name).tensor_split(n_parts) for name in names]
    for tensors in zip(*cut, strict=True):
        yield Batch(**dict(zip(names, tensors, strict=True)))


def _add(sums: Losses, losses: Losses) -> Losses:
    pairs = ((getattr(sums, f.name), getattr(losses, f.name)) for f in dataclasses.fields(Losses))
    return Losses(*(total + value.detach() for total, value in pairs))


def _means(sums: Losses) -> dict[str, Tensor]:
    """Return cross-entropies per target; NaN for a modality that the batch does not have."""
    return {
        "loss": (sums.text + sums.image) / sums.count,
        "loss_text": sums.text / sums.text_count,
        "loss_image": sums.image / sums.image_count,
    }


@contextmanager
def _dropout_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed PyTorch's global generator, from which dropout draws, and put its state back after."""
    devices = [device] if device.type != "cpu" else []
    kind = device.type if devices else "cuda"
    with torch.random.fork_rng(devices, device_type=kind):
        torch.random.manual_seed(seed)
        yield
