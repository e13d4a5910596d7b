"""How long steps of training take on this machine: real steps of real tasks, for a second each."""

import time
from collections.abc import Callable, Sequence

import torch

from pardalis.batch import Batch
from pardalis.documents import Image
from pardalis.model import ModelShape, build, initialise, model_costs
from pardalis.parallel import Layout, Precision, World
from pardalis.tokens import Vocabulary
from pardalis.train import (
    DecoderTask,
    DecoderTrainConfig,
    ImageTokenizerTask,
    ImageTokenizerTrainConfig,
)
from pardalis.train.schedule import ConstantConfig
from pardalis.vq import ImageTokenizerConfig

_MEASURED_S = 0.8
_MOST_STEPS = 10
_LARGE = 10_000  # steps of a run that is never finished


def image_tokenizer_step_s(
    config: ImageTokenizerConfig, images: Sequence[Image], batch: int, device: torch.device
) -> float:
    """Return the seconds of a step of an image tokenizer on real images, which are decoded."""
    training = ImageTokenizerTrainConfig(batch_images=batch, precision=precision_on(device))
    task = ImageTokenizerTask(
        config, training, images, total_steps=_LARGE, world=World(device=device)
    )
    return _step_s(task.step, device)


def decoder_step_s(
    shape: ModelShape, vocabulary: Vocabulary, row_tokens: int, rows: int, device: torch.device
) -> float:
    """Return the seconds of a step of a decoder on random rows."""
    training = DecoderTrainConfig(
        batch_rows=rows,
        schedule=ConstantConfig(learning_rate=1e-4),
        precision=precision_on(device),
        statistics_every=0,
    )
    modalities = {name: ids for name, ids in vocabulary.modalities.items() if name != "text"}
    model = initialise(build(shape.sized(vocabulary.size, row_tokens)), 0)
    task = DecoderTask(
        model,
        _RandomRows(vocabulary.size, row_tokens, rows),
        training.objective.build(modalities, lambda: model),
        training,
        total_steps=_LARGE,
        modalities=modalities,
        layout=Layout.alone(device),
    )
    return _step_s(task.step, device)


def n_parameters(shape: ModelShape, vocabulary: Vocabulary, row_tokens: int) -> int:
    return model_costs(shape.sized(vocabulary.size, row_tokens)).parameters


def precision_on(device: torch.device) -> Precision:
    """Return what training computes in on a device: most CPUs are slow in 16 bits."""
    return "bfloat16" if device.type == "cuda" else "float32"


class _RandomRows:
    """A source of rows for which only time is spent."""

    def __init__(self, vocab_size: int, row_tokens: int, rows: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (rows, row_tokens)
        ids = torch.randint(0, vocab_size, shape, generator=generator)
        zeros = torch.zeros(shape, dtype=torch.int64)
        self._batch = Batch(
            ids=ids,
            targets=ids.roll(-1, 1),
            weights=torch.ones(shape),
            positions=torch.arange(row_tokens).expand(shape).contiguous(),
            documents=zeros,
        )

    def batch(self, step: int, rank: int = 0, size: int = 1) -> Batch:
        return self._batch


def _step_s(step: Callable[[int], object], device: torch.device) -> float:
    """Return the mean seconds of steps after the first, which allocates and decodes."""
    step(0)
    _wait(device)
    start, n_steps = time.perf_counter(), 0
    while n_steps < _MOST_STEPS and time.perf_counter() - start < _MEASURED_S:
        step(1 + n_steps)
        n_steps += 1
        _wait(device)
    return (time.perf_counter() - start) / n_steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
