"""Training of a language model on rows of tokens, for any objective.

All randomness (rows, dropout, noise) is a function of the step number, so no generator state is
saved.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from pardalis.batch import Batch
from pardalis.config import check_above, check_at_least, check_finite, not_deciding
from pardalis.data.prefetch import BatchSource, Prefetcher
from pardalis.errors import ConfigError, TrainingError
from pardalis.model import LanguageModel, auxiliary_losses, masks_as_tensors
from pardalis.objectives import OBJECTIVES, Loss, NextTokenConfig, Objective, ObjectiveConfig
from pardalis.parallel import Layout, Precision, clip_gradients, release, sum_over_replicas
from pardalis.seeds import derive
from pardalis.train.noise import check_has_embedding, noisy_embeddings
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
class DecoderTrainConfig:
    """Options of a run besides model and data."""

    batch_rows: int  # rows of one update, over all ranks
    schedule: ScheduleConfig
    optimizer: OptimizerConfig = field(default_factory=AdamWConfig)
    objective: Annotated[ObjectiveConfig, OBJECTIVES] = field(default_factory=NextTokenConfig)
    accumulation_steps: int = not_deciding(1)  # micro-batches of a batch
    grad_clip: float = 1.0  # largest global norm of the gradient; inf: no clipping
    qk_clip: float | None = None  # largest attention logit of a head; only without QK-norm
    statistics_every: int = not_deciding(50)  # updates between measurements of statistics; 0: none
    precision: Precision = "float32"  # matrix products and activations; parameters are float32
    # NEFTune (arXiv 2310.05914): uniform noise of at most alpha / sqrt(L D) on the embedding of
    # each token, for L tokens in its document and D numbers in a vector. The paper has 5 to 15.
    neftune_alpha: float | None = None
    seed: int = 0  # root seed of initial values, order of rows, dropout and noise

    def __post_init__(self) -> None:
        check_at_least(self, batch_rows=1, accumulation_steps=1, statistics_every=0)
        check_above(self, grad_clip=0, qk_clip=0, neftune_alpha=0)
        check_finite(self, "neftune_alpha")
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


class DecoderTask:
    """A language model as a task of the training loop.

    Args:
        model: a model with its weights, parallelised over the layout.
        batches: rows for training, ``config.batch_rows`` in a batch over all ranks.
        objective: what the model is trained for, which ``config.objective`` describes.
        total_steps: length of the run, for the schedule.
        modalities: token ids of each modality, by name, for the statistics of activations.
        heldout: rows for evaluation, which uses batches 0 to ``heldout_batches`` - 1.
        layout: this rank's place in the device mesh; default: a single process on the CPU.

    Raises:
        ConfigError: the rows of a batch cannot be divided among ranks and accumulation steps, or a
            frozen model of the objective shares parameters with the model.
    """

    def __init__(
        self,
        model: LanguageModel,
        batches: BatchSource,
        objective: Objective,
        config: DecoderTrainConfig,
        *,
        total_steps: int,
        modalities: Mapping[str, range] | None = None,
        heldout: BatchSource | None = None,
        heldout_batches: int = 0,
        layout: Layout | None = None,
    ) -> None:
        self.layout = layout or Layout.alone()
        check_training(config, total_steps, self.layout.data_size, objective.rows_together)
        self.device = self.layout.device
        self.model = model.to(self.device)
        self.objective = objective
        for other in objective.frozen:
            _freeze(other.to(self.device), model)
        self.config = config
        self.modalities = modalities or {}
        self.total_steps = total_steps
        self.heldout = heldout
        self.heldout_batches = heldout_batches
        self._share = self.layout.data_rank, self.layout.data_size
        self._rows = Prefetcher(batches, self.device, *self._share)
        self._skipped: tuple[int, ...] = ()
        self.optimizer = Optimizer(self.model, config.optimizer, config.schedule.learning_rate)
        if config.neftune_alpha is not None:
            check_has_embedding(model)
        self._clip: QKClip | None = None
        if config.qk_clip is not None:
            self._clip = QKClip(self.model, config.qk_clip, self.layout)

    def step(self, step: int) -> dict[str, float | Tensor]:
        """Do one update on one batch, in ``accumulation_steps`` micro-batches.

        The total of each micro-batch is divided by the count of the whole batch, so the gradient
        does not depend on the number of micro-batches.
        """
        batch = self._rows.batch(batch_of(step, self._skipped))
        counts = torch.stack([self.objective.count(batch), batch.weights.sum()])
        count, tokens = self.layout.sum(counts)
        # On a GPU this check would be a host synchronisation; the loss is NaN there.
        if self.device.type == "cpu" and count == 0:
            raise TrainingError(
                f"The batch of step {step} has no target to learn from; check the weights in the "
                "prepared data."
            )
        rate = learning_rate(self.config.schedule, step, self.total_steps)
        self.optimizer.set_learning_rate(rate)
        self.model.train()
        self.optimizer.zero_grad()
        with self._clip.recording() if self._clip else nullcontext():
            loss = self._backward(batch, step, count).over_ranks(self.layout)
        statistics = self._update(batch, has_statistics(step, self.config.statistics_every))
        return {
            **self.objective.metrics(loss),
            **statistics,
            "learning_rate": rate,
            "tokens": tokens,
        }

    def _backward(self, batch: Batch, step: int, count: Tensor) -> Loss:
        """Accumulate the gradients of a batch; return this rank's loss."""
        losses = []
        for part, rows in enumerate(_parts(batch, self.config.accumulation_steps)):
            is_last = part == self.config.accumulation_steps - 1
            sum_over_replicas(self.model, in_next_backward=is_last)
            seed = derive(self.config.seed, "dropout", step, part, self.layout.data_rank)
            with _dropout_seed(seed, self.device), self._noise(rows, step, part):
                loss = self._loss(rows)
            # FSDP averages gradients over the data-parallel ranks, hence the factor.
            torch.autograd.backward(loss.total * self.layout.data_size / count)
            losses.append(loss.detach())
            self._release_frozen()
        return reduce(add, losses)

    def _update(self, batch: Batch, measures: bool) -> dict[str, Tensor]:
        """Clip the gradient, update the weights, apply QK-clip; return the statistics."""
        statistics = gradient_norms(self.model) if measures else {}
        statistics["grad_norm"] = clip_gradients(self.model.parameters(), self.config.grad_clip)
        before = weight_samples(self.model) if measures else {}
        self.optimizer.step()
        if measures:
            statistics |= update_ratios(self.model, before, self.layout)
            within = self.objective.within_documents
            statistics |= probe(
                self.model, batch, self.modalities, self.layout, within_documents=within
            )
        if self._clip:
            statistics["clipped_heads"] = self._clip.clip()
        return statistics

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the metrics of the objective on held-out rows."""
        if self.heldout is None or self.heldout_batches == 0:
            return {}
        self.model.eval()
        losses = []
        for index in range(self.heldout_batches):
            batch = self.heldout.batch(index, *self._share).to(self.device)
            losses += [self._loss(rows) for rows in _parts(batch, self.config.accumulation_steps)]
        release(self.model)
        self._release_frozen()
        metrics = self.objective.metrics(reduce(add, losses).over_ranks(self.layout))
        numbers = {f"heldout_{name}": value.item() for name, value in metrics.items()}
        return {name: value for name, value in numbers.items() if not math.isnan(value)}

    def positions(self, batch: int) -> range:
        first = batch * self.config.batch_rows
        return range(first, first + self.config.batch_rows)

    def skip(self, batches: Sequence[int]) -> None:
        self._skipped = tuple(batches)

    def state_dict(self) -> dict[str, Any]:
        """Return the state; frozen parameters are left out."""
        frozen = {n for n, p in self.model.named_parameters() if not p.requires_grad}
        model = {n: t for n, t in self.model.state_dict().items() if n not in frozen}
        return {"model": model, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        frozen = {n for n, p in self.model.named_parameters() if not p.requires_grad}
        missing, unexpected = self.model.load_state_dict(state["model"], strict=not frozen)
        if unexpected or (odd := sorted({*missing} - frozen)):
            raise ValueError(f"the state lacks or adds {', '.join(unexpected or odd)}")
        self.optimizer.load_state_dict(state["optimizer"])

    def _loss(self, batch: Batch) -> Loss:
        with (
            self.layout.autocast(self.config.precision),
            masks_as_tensors() if self._clip else nullcontext(),  # QK-clip records calls
            auxiliary_losses() as auxiliary,
        ):
            loss = self.objective(self.model, batch)
        return loss.with_auxiliary(auxiliary)

    def _noise(self, rows: Batch, step: int, part: int) -> AbstractContextManager[None]:
        """Return the context of a forward pass with noise on the embeddings, if there is any."""
        alpha = self.config.neftune_alpha
        if alpha is None:
            return nullcontext()
        # The first row of a micro-batch among those of the batch, over all ranks.
        first = self.layout.data_rank * self.config.batch_rows // self.layout.data_size
        first += part * len(rows.ids)
        seeds = [derive(self.config.seed, "noise", step, first + n) for n in range(len(rows.ids))]
        return noisy_embeddings(self.model, rows, alpha, seeds)

    def _release_frozen(self) -> None:
        for other in self.objective.frozen:
            release(other)


def check_training(
    config: DecoderTrainConfig, total_steps: int, data_size: int, together: int = 1
) -> None:
    """Raise ConfigError if the schedule does not fit the steps, or the batch the ranks.

    Args:
        data_size: ranks that read different rows.
        together: rows that belong together, of the objective.
    """
    learning_rate(config.schedule, 0, total_steps)
    _check_rows(config, data_size, together)


def _check_rows(config: DecoderTrainConfig, data_size: int, together: int) -> None:
    """Raise ConfigError unless micro-batches are of equally many rows, with groups left whole."""
    if not config.batch_rows % (data_size * config.accumulation_steps * together):
        return
    groups = f" times the {together} rows that belong together" if together > 1 else ""
    raise ConfigError(
        f"batch_rows ({config.batch_rows}) must be a multiple of the {data_size} ranks that read "
        f"different rows times accumulation_steps ({config.accumulation_steps}){groups}."
    )


def _freeze(other: nn.Module, model: nn.Module) -> None:
    """Make sure that training does not change a model; raises ConfigError if it has to."""
    trained = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter in other.parameters():
        if name := trained.get(id(parameter)):
            raise ConfigError(
                f"A frozen model of the objective shares {name} with the model that is trained; "
                "give the objective a copy."
            )
    other.requires_grad_(False).eval()


def _parts(batch: Batch, n_parts: int) -> Iterator[Batch]:
    """Split a batch into micro-batches of equally many rows.

    Raises:
        TrainingError: the number of rows is not a multiple of that of micro-batches.
    """
    size, rest = divmod(len(batch.ids), n_parts)
    if rest or not size:
        raise TrainingError(
            f"A batch has {len(batch.ids)} rows on this rank, which cannot be divided into "
            f"accumulation_steps = {n_parts}; let the batch source return as many as it is asked "
            "for."
        )
    for start in range(0, len(batch.ids), size):
        yield batch.rows(slice(start, start + size))


@contextmanager
def _dropout_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed PyTorch's global generator, which dropout uses, and restore its state afterwards."""
    devices = [device] if device.type != "cpu" else []
    kind = device.type if devices else "cuda"
    with torch.random.fork_rng(devices, device_type=kind):
        torch.random.manual_seed(seed)
        yield
