"""Pre-training of the decoder on packed rows with the next-token objective.

All randomness (rows, dropout) is a function of the step number, so no generator state is saved.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pardalis.batch import Batch
from pardalis.config import check_above, check_at_least, not_deciding
from pardalis.data.prefetch import BatchSource, Prefetcher
from pardalis.errors import ConfigError, TrainingError
from pardalis.model import LanguageModel, attention_mask, document_mask
from pardalis.objectives import Losses, NextTokenConfig, next_token_losses, zero_losses
from pardalis.parallel import Layout, Precision, clip_gradients, release, sum_over_replicas
from pardalis.seeds import derive
from pardalis.train.optimizer import AdamWConfig, Optimizer, OptimizerConfig
from pardalis.train.qk_clip import QKClip
from pardalis.train.schedule import ScheduleConfig, learning_rate
from pardalis.train.skipping import batch_of
from pardalis.train.statistics import (
    gradient_norms,
    has_statistics,
    probe,
    update_ratios,
    weight_samples,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """Options of a pre-training run besides model and data."""

    batch_rows: int  # rows of one update, over all ranks
    schedule: ScheduleConfig
    optimizer: OptimizerConfig = field(default_factory=AdamWConfig)
    objective: NextTokenConfig = field(default_factory=NextTokenConfig)
    accumulation_steps: int = not_deciding(1)  # micro-batches of a batch
    grad_clip: float = 1.0  # largest global norm of the gradient; inf: no clipping
    qk_clip: float | None = None  # largest attention logit of a head; only without QK-norm
    statistics_every: int = not_deciding(50)  # updates between measurements of statistics; 0: none
    precision: Precision = "float32"  # matrix products and activations; parameters are float32
    seed: int = 0  # root seed of initial values, order of rows and dropout

    def __post_init__(self) -> None:
        check_at_least(self, batch_rows=1, accumulation_steps=1, statistics_every=0)
        check_above(self, grad_clip=0, qk_clip=0)
        if self.batch_rows % self.accumulation_steps:
            raise ConfigError(
                f"batch_rows ({self.batch_rows}) must be a multiple of accumulation_steps "
                f"({self.accumulation_steps})."
            )

    @property
    def init_seed(self) -> int:
        """Seed of the initial values of a new model, for :func:`pardalis.model.initialise`."""
        return derive(self.seed, "init")

    @property
    def data_seed(self) -> int:
        """Seed of the order of rows, for the loader."""
        return derive(self.seed, "data")


class PretrainTask:
    """The decoder as a task of the training loop.

    Args:
        model: a decoder with its weights, parallelised over the layout.
        loader: rows for training, in batches of ``config.batch_rows`` rows over all ranks.
        total_steps: length of the run, for the schedule.
        image_ids: the image token ids, for losses by modality.
        heldout_loader: rows for evaluation, which uses its batches 0 to ``heldout_batches`` - 1.
        layout: this rank's place in the device mesh; default: a single process on the CPU.

    Raises:
        ConfigError: the rows of a batch cannot be divided among ranks and accumulation steps.
    """

    def __init__(
        self,
        model: LanguageModel,
        loader: BatchSource,
        config: PretrainConfig,
        image_ids: range,
        *,
        total_steps: int,
        heldout_loader: BatchSource | None = None,
        heldout_batches: int = 0,
        layout: Layout | None = None,
    ) -> None:
        learning_rate(config.schedule, 0, total_steps)  # raises if the schedule does not fit
        self.layout = layout or Layout.alone()
        if config.batch_rows % (self.layout.data_size * config.accumulation_steps):
            raise ConfigError(
                f"batch_rows ({config.batch_rows}) must be a multiple of the "
                f"{self.layout.data_size} ranks that read different rows times accumulation_steps "
                f"({config.accumulation_steps})."
            )
        self.device = self.layout.device
        self.model = model.to(self.device)
        self.config = config
        self.image_ids = image_ids
        self.total_steps = total_steps
        self.heldout_loader = heldout_loader
        self.heldout_batches = heldout_batches
        self._share = self.layout.data_rank, self.layout.data_size
        self._rows = Prefetcher(loader, self.device, *self._share)
        self._skipped: tuple[int, ...] = ()
        self.optimizer = Optimizer(self.model, config.optimizer, config.schedule.learning_rate)
        self._clip: QKClip | None = None
        if config.qk_clip is not None:
            self._clip = QKClip(self.model, config.qk_clip, self.layout)

    def step(self, step: int) -> dict[str, float | Tensor]:
        """Do one update on one batch, in ``accumulation_steps`` micro-batches.

        The loss sum of each micro-batch is divided by the number of targets of the whole batch, so
        the gradient does not depend on the number of micro-batches.
        """
        batch = self._rows.batch(batch_of(step, self._skipped))
        tokens = self.layout.sum(batch.weights.sum())
        # On a GPU this check would be a host synchronisation; the loss is NaN there.
        if self.device.type == "cpu" and tokens == 0:
            raise TrainingError(
                f"The batch of step {step} has no target to learn from; check the weights in the "
                "prepared data."
            )
        rate = learning_rate(self.config.schedule, step, self.total_steps)
        self.optimizer.set_learning_rate(rate)
        self.model.train()
        self.optimizer.zero_grad()
        with self._clip.recording() if self._clip else nullcontext():
            sums = self._over_ranks(self._backward(batch, step, tokens))
        statistics = self._update(batch, has_statistics(step, self.config.statistics_every))
        return {
            **_means(sums),
            "z_loss": self.config.objective.z_loss * sums.z / sums.count,
            "lse_text": sums.text_lse / sums.text_count,
            "lse_image": sums.image_lse / sums.image_count,
            "grad_norm_text": sums.text_gradient.sqrt() / tokens,
            "grad_norm_image": sums.image_gradient.sqrt() / tokens,
            **statistics,
            "learning_rate": rate,
            "tokens": tokens,
        }

    def _backward(self, batch: Batch, step: int, tokens: Tensor) -> Losses:
        """Accumulate the gradients of a batch; return the sums of this rank's losses."""
        sums = zero_losses(self.device)
        for part, rows in enumerate(_parts(batch, self.config.accumulation_steps)):
            is_last = part == self.config.accumulation_steps - 1
            sum_over_replicas(self.model, in_next_backward=is_last)
            seed = derive(self.config.seed, "dropout", step, part, self.layout.data_rank)
            with _dropout_seed(seed, self.device):
                losses = self._losses(rows)
            # FSDP averages gradients over the data-parallel ranks, hence the factor.
            torch.autograd.backward(losses.total * self.layout.data_size / tokens)
            sums = _add(sums, losses)
        return sums

    def _update(self, batch: Batch, measures: bool) -> dict[str, Tensor]:
        """Clip the gradient, update the weights, apply QK-clip; return the statistics."""
        statistics = gradient_norms(self.model) if measures else {}
        statistics["grad_norm"] = clip_gradients(self.model.parameters(), self.config.grad_clip)
        before = weight_samples(self.model) if measures else {}
        self.optimizer.step()
        if measures:
            statistics |= update_ratios(self.model, before, self.layout)
            within = self.config.objective.document_mask
            statistics |= probe(
                self.model, batch, self.image_ids, self.layout, within_documents=within
            )
        if self._clip:
            statistics["clipped_heads"] = self._clip.clip()
        return statistics

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the mean cross-entropies of held-out targets."""
        if self.heldout_loader is None or self.heldout_batches == 0:
            return {}
        self.model.eval()
        sums = zero_losses(self.device)
        for index in range(self.heldout_batches):
            batch = self.heldout_loader.batch(index, *self._share).to(self.device)
            for rows in _parts(batch, self.config.accumulation_steps):
                sums = _add(sums, self._losses(rows))
        release(self.model)
        means = _means(self._over_ranks(sums))
        numbers = {f"heldout_{name}": value.item() for name, value in means.items()}
        return {name: value for name, value in numbers.items() if not math.isnan(value)}

    def positions(self, batch: int) -> range:
        first = batch * self.config.batch_rows
        return range(first, first + self.config.batch_rows)

    def skip(self, batches: Sequence[int]) -> None:
        self._skipped = tuple(batches)

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _losses(self, batch: Batch) -> Losses:
        mask_of = document_mask if self._clip else attention_mask  # QK-clip records its calls
        with self.layout.autocast(self.config.precision):
            return next_token_losses(
                self.model, batch, self.image_ids, self.config.objective, mask_of
            )

    def _over_ranks(self, sums: Losses) -> Losses:
        return Losses(*self.layout.sum(torch.stack(_values(sums))))


def _parts(batch: Batch, n_parts: int) -> Iterator[Batch]:
    """Split a batch into micro-batches of equally many rows."""
    size = len(batch.ids) // n_parts
    for start in range(0, len(batch.ids), size):
        yield batch.map(lambda tensor, start=start: tensor[start : start + size])


def _values(losses: Losses) -> list[Tensor]:
    return [getattr(losses, field.name) for field in dataclasses.fields(losses)]


def _add(sums: Losses, losses: Losses) -> Losses:
    pairs = zip(_values(sums), _values(losses), strict=True)
    return Losses(*(total + value.detach() for total, value in pairs))


def _means(sums: Losses) -> dict[str, Tensor]:
    """Return mean cross-entropies; NaN for a modality that the batch does not have."""
    return {
        "loss": (sums.text + sums.image) / sums.count,
        "loss_text": sums.text / sums.text_count,
        "loss_image": sums.image / sums.image_count,
    }


@contextmanager
def _dropout_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed PyTorch's global generator, which dropout uses, and restore its state afterwards."""
    devices = [device] if device.type != "cpu" else []
    kind = device.type if devices else "cuda"
    with torch.random.fork_rng(devices, device_type=kind):
        torch.random.manual_seed(seed)
        yield
