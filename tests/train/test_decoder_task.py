"""Training a decoder: exact accumulation and resuming, clipping, metrics."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from shapes import decoder_config
from torch import Tensor

from pardalis.batch import Batch
from pardalis.config import deciding
from pardalis.data import Loader, Shards, ShardWriter
from pardalis.errors import ConfigError, TrainingError
from pardalis.model import Decoder, initialise
from pardalis.objectives import NextTokenConfig
from pardalis.seeds import derive
from pardalis.tokens import Encoded
from pardalis.train.decoder_task import BatchSource, DecoderTask, DecoderTrainConfig
from pardalis.train.loop import LoopConfig, train
from pardalis.train.metrics import read_metrics
from pardalis.train.optimizer import AdamWConfig
from pardalis.train.schedule import ConstantConfig, WarmupCosineConfig

MODALITIES = {"image": range(8, 20)}
ROWS, TOKENS = 4, 16


class Rows:
    """Random rows of two documents each; the rows have different numbers of targets."""

    def __init__(self, seed: int = 0, n_rows: int = ROWS) -> None:
        self.seed, self.n_rows = seed, n_rows

    def batch(self, step: int, rank: int = 0, size: int = 1) -> Batch:
        generator = torch.Generator().manual_seed(derive(self.seed, "rows", step))
        shape = (self.n_rows, TOKENS)
        ids = torch.randint(8, 40, shape, generator=generator)
        positions = torch.arange(TOKENS).expand(shape) % (TOKENS // 2)
        learnt = torch.arange(self.n_rows)[:, None] * 4 <= torch.arange(TOKENS)[None, :]
        return Batch(
            ids=ids,
            targets=ids.roll(-1, 1),
            weights=learnt.float(),
            positions=positions,
            documents=(torch.arange(TOKENS).expand(shape) >= TOKENS // 2).long(),
        )


def decoder(dropout: float = 0.0) -> Decoder:
    config = decoder_config(
        vocab_size=40,
        context=TOKENS,
        d_model=16,
        n_layers=2,
        n_heads=2,
        n_kv_heads=1,
        d_ff=32,
        dropout=dropout,
    )
    return initialise(Decoder(config), seed=3)


def task_with(
    dropout: float = 0.0,
    loader: BatchSource | None = None,
    modalities: Mapping[str, range] = MODALITIES,
    **options: object,
) -> DecoderTask:
    options = {
        "batch_rows": ROWS,
        "schedule": WarmupCosineConfig(learning_rate=1e-2, warmup_steps=2),
        **options,
    }
    config = DecoderTrainConfig(**options)  # type: ignore[arg-type]
    return DecoderTask(
        decoder(dropout),
        loader or Rows(),
        config.objective.build(modalities),
        config,
        total_steps=9,
        modalities=modalities,
        heldout=Rows(seed=1),
        heldout_batches=2,
    )


def gradient_of(task: DecoderTask) -> Tensor:
    """Run a step and return its gradient."""
    task.step(0)
    return torch.cat([p.grad.flatten() for _, p in sorted(task.model.named_parameters())])


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulating_gives_the_gradient_of_the_whole_batch(parts: int) -> None:
    whole = gradient_of(task_with(grad_clip=math.inf))
    parted = gradient_of(task_with(grad_clip=math.inf, accumulation_steps=parts))
    # Measured: 1.5e-8 where the largest gradient is 0.18; a mean of means is off by 5e-2 and more.
    torch.testing.assert_close(parted, whole, rtol=0, atol=1e-7)


def test_the_gradient_is_that_of_the_mean_over_targets() -> None:
    task = task_with(grad_clip=math.inf)
    model, batch = decoder(), Rows().batch(0)
    loss = NextTokenConfig().build(MODALITIES)(model, batch)
    (loss.total / loss.count).backward()
    expected = torch.cat([p.grad.flatten() for _, p in sorted(model.named_parameters())])
    # Measured: equal.
    torch.testing.assert_close(gradient_of(task), expected, rtol=0, atol=1e-7)


def test_clipping_scales_the_whole_gradient_to_the_norm() -> None:
    free, clipped = task_with(grad_clip=math.inf), task_with(grad_clip=0.01)
    whole, scaled = gradient_of(free), gradient_of(clipped)
    assert whole.norm() > 0.1
    assert scaled.norm().item() == pytest.approx(0.01, rel=1e-3)
    # Measured: 1.5e-8.
    torch.testing.assert_close(scaled / scaled.norm(), whole / whole.norm(), rtol=0, atol=1e-7)
    before_clipping = float(task_with(grad_clip=0.01).step(0)["grad_norm"])
    assert before_clipping == pytest.approx(whole.norm().item())


def test_metrics_are_means_over_targets_and_by_modality() -> None:
    task = task_with()
    batch = Rows().batch(0)
    loss = task.objective(decoder(), batch)
    means = loss.means()
    metrics = {name: float(value) for name, value in task.step(0).items()}
    assert metrics["tokens"] == loss.count == batch.weights.sum()
    for name in ("loss_text", "loss_image", "lse_text", "lse_image"):
        assert metrics[name] == pytest.approx(float(means[name]))
    mean = (loss.total / loss.count).item()
    assert metrics["loss"] + metrics["z_loss"] == pytest.approx(mean)
    assert metrics["learning_rate"] == pytest.approx(1e-2 / 3)


def test_training_memorises_a_batch() -> None:
    task = task_with(schedule=ConstantConfig(learning_rate=1e-2))
    losses = [float(task.step(0)["loss"]) for _ in range(9)]
    assert losses[-1] < losses[0] - 0.5


def test_evaluating_has_no_dropout_and_changes_nothing() -> None:
    task, quiet = task_with(dropout=0.5), task_with(dropout=0.0)
    assert task.evaluate() == quiet.evaluate()
    assert set(task.evaluate()) == {"heldout_loss", "heldout_loss_text", "heldout_loss_image"}
    other = task_with(dropout=0.5)
    assert task.step(0) == other.step(0)


def test_evaluating_takes_no_more_rows_at_once_than_training() -> None:
    whole, parted = task_with(), task_with(accumulation_steps=4)
    rows = []
    parted.model.trunk.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    assert parted.evaluate() == pytest.approx(whole.evaluate(), rel=1e-6)
    assert rows == [1] * 2 * ROWS


def test_without_held_out_rows_there_are_no_held_out_metrics() -> None:
    task = task_with()
    task.heldout_batches = 0
    assert task.evaluate() == {}


def test_dropout_depends_on_seed_and_step_only_and_leaves_the_global_generator() -> None:
    task = task_with(dropout=0.5)
    before = torch.get_rng_state()
    first = task.step(0)["loss"]
    assert torch.equal(torch.get_rng_state(), before)
    assert task_with(dropout=0.5).step(0)["loss"] == first
    assert task_with(dropout=0.5, seed=1).step(0)["loss"] != first
    assert task_with(dropout=0.0).step(0)["loss"] != first


def real_loader(folder: Path) -> Loader:
    """Two sources of random documents, packed into rows; an epoch is shorter than the run."""
    folder.mkdir()
    for source in ("a", "b"):
        (folder / source).mkdir()
        draw = np.random.default_rng(len(source))
        writer = ShardWriter(folder / source, vocab_size=40, tokens_per_shard=100)
        for i in range(12):
            ids = draw.integers(8, 40, draw.integers(3, TOKENS))
            writer.add(f"{source}{i}", Encoded.of(ids))
        writer.finish(TOKENS, codec="none")
    sources = {source: Shards.open(folder / source) for source in ("a", "b")}
    weights = {"a": 0.75, "b": 0.25}
    return Loader(sources, weights, row_tokens=TOKENS, batch_rows=ROWS, seed=0, pad_id=1)


def lines_of(folder: Path) -> list[dict]:
    timings = {"time_s", "steps_per_second", "tokens_per_second"}
    lines = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in timings} for line in lines]


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path, stop: int) -> None:
    config = LoopConfig(steps=9, save_every=3, report_every=2, evaluate_every=4)
    loader = real_loader(tmp_path / "shards")

    def fresh() -> DecoderTask:
        return task_with(dropout=0.3, loader=loader, accumulation_steps=2)

    whole = fresh()
    train(whole, tmp_path / "whole", config)
    cut = fresh()
    original, cut_step = cut.step, stop

    def step(number: int) -> dict:
        if number == cut_step:
            raise ConnectionError("the machine went away")
        return original(number)

    cut.step = step  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        train(cut, tmp_path / "cut", config)
    resumed = fresh()
    torch.rand(stop)  # the state of the global generator is nothing to a run
    train(resumed, tmp_path / "cut", config)
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")
    for (name, a), b in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_a_batch_without_targets_names_its_step() -> None:
    batch = dataclasses.replace(Rows().batch(0), weights=torch.zeros(ROWS, TOKENS))
    task = task_with(loader=type("Empty", (), {"batch": lambda self, *share: batch})())
    with pytest.raises(TrainingError, match="step 4 has no target to learn from"):
        task.step(4)


def test_a_batch_of_one_modality_reports_the_other_as_absent(tmp_path: Path) -> None:
    task = task_with(modalities={"image": range(0)})
    result = train(task, tmp_path, LoopConfig(steps=9))
    assert "loss_image" not in result
    assert result["loss_text"] == pytest.approx(result["loss"])


def test_seeds_of_a_run_differ_by_purpose() -> None:
    config = task_with().config
    assert len({config.seed, config.init_seed, config.data_seed}) == 3


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_rows": 0}, "batch_rows"),
        ({"accumulation_steps": 3}, r"batch_rows \(4\)"),
        ({"grad_clip": 0.0}, "grad_clip"),
    ],
)
def test_a_wrong_field_is_named(options: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{named} must"):
        task_with(**options)


def test_a_schedule_longer_than_the_run_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="do not fit into 9 steps"):
        task_with(schedule=WarmupCosineConfig(learning_rate=1.0, warmup_steps=10))


@pytest.mark.parametrize(
    ("changes", "decides"),
    [
        ({"accumulation_steps": 2}, False),
        ({"statistics_every": 7}, False),
        ({"objective": NextTokenConfig(loss_chunk=8)}, False),
        ({"optimizer": AdamWConfig(fused=False)}, False),
        ({"objective": NextTokenConfig(z_loss=0.0)}, True),
        ({"optimizer": AdamWConfig(eps=1e-5)}, True),
        ({"batch_rows": 8}, True),
        ({"precision": "bfloat16"}, True),
        ({"qk_clip": 9.0}, True),
        ({"seed": 1}, True),
    ],
)
def test_settings_that_change_the_results_of_a_run(changes, decides) -> None:
    options = {"batch_rows": 4, "schedule": WarmupCosineConfig(learning_rate=1e-3)}
    before, after = DecoderTrainConfig(**options), DecoderTrainConfig(**options | changes)
    assert (deciding(before) != deciding(after)) == decides
