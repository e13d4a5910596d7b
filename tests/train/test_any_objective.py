"""The decoder's task trains any objective, with auxiliary losses, from any source of batches."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from own_objectives import PolicyGradient, PreferenceConfig
from shapes import decoder_config
from torch import Tensor

from pardalis.batch import Batch
from pardalis.config import from_dict
from pardalis.errors import ConfigError, TrainingError
from pardalis.model import Decoder, add_auxiliary_loss, document_mask, initialise
from pardalis.objectives import OBJECTIVES, NextTokenConfig, Objective
from pardalis.parallel import Layout, ParallelConfig, parallelise
from pardalis.seeds import derive
from pardalis.train.decoder_task import BatchSource, DecoderTask, DecoderTrainConfig
from pardalis.train.loop import LoopConfig, train
from pardalis.train.schedule import ConstantConfig

ROWS, TOKENS = 4, 12
MODALITIES = {"image": range(8, 20)}


class Rows:
    """Random rows of two documents, with different numbers of targets, and an advantage each."""

    def batch(self, step: int, rank: int = 0, size: int = 1) -> Batch:
        generator = torch.Generator().manual_seed(derive(0, "rows", step))
        ids = torch.randint(8, 40, (ROWS, TOKENS), generator=generator)
        places = torch.arange(TOKENS).expand(ids.shape)
        return Batch(
            ids=ids,
            targets=ids.roll(-1, 1),
            weights=(torch.arange(ROWS)[:, None] * 2 <= places).float(),
            positions=places % (TOKENS // 2),
            documents=(places >= TOKENS // 2).long(),
            extra={"advantages": torch.linspace(-1, 2, ROWS)},
        )


def decoder(seed: int = 3, **options: object) -> Decoder:
    shape = {
        "vocab_size": 40, "context": TOKENS, "d_model": 16, "n_layers": 2, "n_heads": 2,
        "n_kv_heads": 1, "d_ff": 32, "init_std": 0.3,
    }  # fmt: skip
    return initialise(Decoder(decoder_config(**shape | options)), seed)


def task_of(
    objective: Objective,
    model: Decoder | None = None,
    batches: BatchSource | None = None,
    **options: object,
) -> DecoderTask:
    config = DecoderTrainConfig(
        batch_rows=ROWS,
        schedule=ConstantConfig(learning_rate=1e-2),
        grad_clip=math.inf,
        **options,  # type: ignore[arg-type]
    )
    return DecoderTask(
        model or decoder(),
        batches or Rows(),
        objective,
        config,
        total_steps=4,
        heldout=Rows(),
        heldout_batches=1,
    )


def preference(dropout: float = 0.0, **options: object) -> DecoderTask:
    objective = PreferenceConfig(beta=1.0).build(MODALITIES, lambda: decoder(seed=4))
    return task_of(objective, decoder(dropout=dropout), **options)


def gradients(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for _, p in sorted(model.named_parameters())])


def log_probs(model: Decoder, batch: Batch) -> Tensor:
    """The log-probability of every target, from full logits."""
    mask = document_mask(batch.documents)
    logits = model.head(model.hidden(batch.ids, batch.positions, mask))
    return -F.cross_entropy(logits.mT, batch.targets, reduction="none") * batch.weights


# ── an objective with a frozen model ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("parts", [1, 2])
def test_preferences_are_learnt_as_written_by_hand(parts: int) -> None:
    task, batch = preference(accumulation_steps=parts), Rows().batch(0)
    model, reference = decoder(), decoder(seed=4)
    gained = (log_probs(model, batch) - log_probs(reference, batch).detach()).sum(1)
    loss = -F.logsigmoid(gained[::2] - gained[1::2]).mean()
    loss.backward()
    metrics = task.step(0)
    assert metrics["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["accuracy"] == (gained[::2] > gained[1::2]).float().mean()
    assert metrics["tokens"] == batch.weights.sum()
    # Measured: 3.1e-6 where the largest gradient is 4.5.
    torch.testing.assert_close(gradients(task.model), gradients(model), rtol=0, atol=1e-5)


def test_a_frozen_model_is_not_changed_and_not_stored() -> None:
    task = preference(statistics_every=1)
    [reference] = task.objective.frozen
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    for step in range(2):
        task.step(step)
    assert all(torch.equal(before[name], value) for name, value in reference.state_dict().items())
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert not reference.training
    stored = task.state_dict()
    assert list(stored["model"]) == list(task.model.state_dict())
    assert set(stored["optimizer"]) == {name for name, _ in task.model.named_parameters()}


def test_a_run_with_a_frozen_model_resumes_exactly(tmp_path: Path) -> None:
    config = LoopConfig(steps=4, save_every=2, report_every=1)
    whole = preference(dropout=0.3)
    train(whole, tmp_path / "whole", config)
    train(preference(dropout=0.3), tmp_path / "cut", dataclasses.replace(config, steps=2))
    resumed = preference(dropout=0.3)
    train(resumed, tmp_path / "cut", config)
    for (name, a), b in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    start = decoder().state_dict()
    assert not any(
        torch.equal(value, start[name]) for name, value in whole.model.state_dict().items()
    )


def test_qk_clip_measures_the_trained_model_alone() -> None:
    def clipped(trained: float, frozen: float) -> float:
        model, reference = (decoder(qk_norm="none", init_std=std) for std in (trained, frozen))
        objective = PreferenceConfig().build(MODALITIES, lambda: reference)
        return float(task_of(objective, model, qk_clip=1.0).step(0)["clipped_heads"])

    assert clipped(trained=0.05, frozen=2.0) == 0
    assert clipped(trained=2.0, frozen=0.05) > 0


def test_evaluation_reports_the_metrics_of_the_objective() -> None:
    found = preference(dropout=0.5).evaluate()
    batch, model, reference = Rows().batch(0), decoder(), decoder(seed=4)
    with torch.no_grad():
        gained = (log_probs(model, batch) - log_probs(reference, batch)).sum(1)
    margins = gained[::2] - gained[1::2]
    assert found == pytest.approx(
        {
            "heldout_loss": float(-F.logsigmoid(margins).mean()),
            "heldout_margin": float(margins.mean()),
            "heldout_accuracy": float((margins > 0).float().mean()),
        },
        rel=1e-4,
    )


def test_pairs_are_not_cut() -> None:
    with pytest.raises(
        ConfigError, match=r"batch_rows \(4\) .* \(4\) times the 2 rows that belong"
    ):
        preference(accumulation_steps=4)


def test_a_model_cannot_be_its_own_reference() -> None:
    model = decoder()
    objective = PreferenceConfig().build(MODALITIES, lambda: model)
    with pytest.raises(
        ConfigError, match=r"shares embedding\.weight with the model that is trained"
    ):
        task_of(objective, model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_another_objective_is_a_line_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"batch_rows": 2, "schedule": {"learning_rate": 1e-3}}
    assert from_dict(DecoderTrainConfig, values).objective == NextTokenConfig()
    named = values | {"objective": {"kind": "preference", "beta": 0.5}}
    with pytest.raises(ConfigError, match=r"objective\.kind must be one of 'next_token'"):
        from_dict(DecoderTrainConfig, named)
    monkeypatch.setitem(OBJECTIVES, "preference", PreferenceConfig)
    assert from_dict(DecoderTrainConfig, named).objective == PreferenceConfig(beta=0.5)


# ── batches that are not read from files ─────────────────────────────────────────────────────────


class Rollouts:
    """Greedy continuations of the model in training."""

    reads_weights = True

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self.n_rows = ROWS
        self.seen: list[Tensor] = []

    def batch(self, step: int, rank: int = 0, size: int = 1) -> Batch:
        self.model.eval()
        self.seen.append(self.model.head.weight.detach().clone())
        rows = Rows().batch(step).rows(slice(self.n_rows))
        with torch.no_grad():
            hidden = self.model.hidden(rows.ids, rows.positions, document_mask(rows.documents))
            return dataclasses.replace(rows, targets=self.model.head(hidden).argmax(-1))


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_rollouts_of_the_model_in_training(parts: int) -> None:
    model = decoder()
    rollouts = Rollouts(model)
    task = task_of(PolicyGradient(), model, rollouts, accumulation_steps=parts)
    weights, other = [], decoder()
    for step in range(3):
        weights.append(model.head.weight.detach().clone())
        other.load_state_dict(model.state_dict())
        task.step(step)
        assert torch.equal(rollouts.seen[step], weights[step])
        batch = Rollouts(other).batch(step)
        other.zero_grad()
        total = -(log_probs(other, batch) * batch.extra["advantages"][:, None]).sum()
        (total / batch.weights.sum()).backward()
        torch.testing.assert_close(gradients(model), gradients(other), rtol=0, atol=1e-5)
    assert not torch.equal(weights[0], weights[2])


def test_a_source_that_returns_other_rows_is_named() -> None:
    rollouts = Rollouts(decoder())
    rollouts.n_rows = 3
    task = task_of(PolicyGradient(), batches=rollouts, accumulation_steps=2)
    with pytest.raises(TrainingError, match=r"has 3 rows on this rank, .* accumulation_steps = 2;"):
        task.step(0)


# ── auxiliary losses ─────────────────────────────────────────────────────────────────────────────


def balanced(model: Decoder) -> Decoder:
    """Let each block add the mean square of its feed-forward layer to the loss."""
    for block in model.trunk.blocks:
        block.feed_forward.register_forward_hook(
            lambda module, args, output: add_auxiliary_loss("balance", output.square().mean())
        )
    return model


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("parts", [1, 2])
def test_an_auxiliary_loss_is_learnt_as_written_by_hand(checkpointing: str, parts: int) -> None:
    model = decoder()
    parallelise(model, Layout.alone(), ParallelConfig(activation_checkpointing=checkpointing))
    task = task_of(NextTokenConfig().build(MODALITIES), balanced(model), accumulation_steps=parts)
    plain, outputs, batch = decoder(), [], Rows().batch(0)
    for block in plain.trunk.blocks:
        block.feed_forward.register_forward_hook(lambda m, args, output: outputs.append(output))
    objective, count = NextTokenConfig().build(MODALITIES), batch.weights.sum()
    balance = torch.zeros(())
    for start in range(0, ROWS, ROWS // parts):
        outputs.clear()
        loss = objective(plain, batch.rows(slice(start, start + ROWS // parts)))
        value = sum(output.square().mean() for output in outputs)
        (loss.total / count + value * loss.count / count).backward()
        balance += value.detach() * loss.count / count
    metrics = task.step(0)
    assert metrics["balance"].item() == pytest.approx(balance.item(), rel=1e-5)
    torch.testing.assert_close(gradients(model), gradients(plain), rtol=0, atol=1e-6)
    without = decoder()
    (objective(without, batch).total / count).backward()
    assert (gradients(without) - gradients(plain)).abs().max() > 1e-2


def test_an_evaluation_has_no_auxiliary_loss() -> None:
    task = task_of(NextTokenConfig().build(MODALITIES), balanced(decoder()))
    plain = task_of(NextTokenConfig().build(MODALITIES))
    assert task.evaluate() == plain.evaluate()
