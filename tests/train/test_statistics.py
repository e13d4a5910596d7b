"""Statistics against a straightforward implementation, and that they change nothing."""

import dataclasses
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import decoder_config
from torch import Tensor, nn

from pardalis.batch import Batch
from pardalis.model import PRESETS, Decoder, document_mask, initialise
from pardalis.parallel import Layout, ParallelConfig, parallelise
from pardalis.train.statistics import (
    gradient_norms,
    has_statistics,
    largest_scores,
    probe,
    update_ratios,
    weight_samples,
)

IMAGE_IDS = range(8, 20)
TOKENS = 24
PARTS = ("embedding", "attention", "feed_forward", "norms", "head")


def decoder(**options: object) -> Decoder:
    shape = {
        "vocab_size": 40,
        "context": TOKENS,
        "d_model": 16,
        "n_layers": 3,
        "n_heads": 4,
        "n_kv_heads": 2,
        "d_ff": 32,
        "init_std": 0.3,
    }
    return initialise(Decoder(decoder_config(**(shape | options))), seed=1)  # type: ignore[arg-type]


def rows(n_rows: int = 2, images: bool = True) -> Batch:
    """Return rows of two documents and some padding; the first row is measured."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(8 if images else 20, 40, (n_rows, TOKENS), generator=generator)
    places = torch.arange(TOKENS).expand(n_rows, -1)
    documents = torch.where(places < 10, 0, torch.where(places < 20, 1, -1))
    return Batch(
        ids=ids,
        targets=ids.roll(-1, 1),
        weights=(documents >= 0).float(),
        positions=places % 10,
        documents=documents,
    )


def probed(model: Decoder, batch: Batch, within_documents: bool = True) -> dict[str, float]:
    statistics = probe(
        model,
        batch,
        {"image": IMAGE_IDS},
        Layout.alone(),
        within_documents=within_documents,
    )
    return {name: value.item() for name, value in statistics.items()}


def all_at_once(model: Decoder, ids: Tensor, positions: Tensor | None, mask: Tensor) -> tuple:
    """Return each block's output and each layer's allowed absolute scores, without streaming."""
    outputs, scores = [], []
    hooks = [
        block.register_forward_hook(lambda block, args, output: outputs.append(output[0]))
        for block in model.trunk.blocks
    ]
    attend = F.scaled_dot_product_attention

    def noting(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
        repeated = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        of_all = (q @ repeated.transpose(-1, -2)).abs() / math.sqrt(q.shape[-1])
        scores.append(of_all.masked_fill(~mask, -1)[0])
        return attend(q, k, v, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "scaled_dot_product_attention", noting)
        model.eval().hidden(ids, positions, mask)
    for hook in hooks:
        hook.remove()
    return outputs, scores


@pytest.mark.parametrize("within_documents", [True, False])
@pytest.mark.parametrize("options", [{}, {"qk_norm": "none"}, {"norm_placement": "reordered"}])
def test_a_probe_equals_the_straightforward_implementation(
    options: dict, within_documents: bool
) -> None:
    model, batch = decoder(dropout=0.5, **options), rows()
    found = probed(model, batch, within_documents)

    ids, documents = batch.ids[:1], batch.documents[:1]
    mask = document_mask(documents if within_documents else torch.zeros_like(documents))
    positions = batch.positions[:1] if within_documents else None
    outputs, scores = all_at_once(model, ids, positions, mask)
    is_image = (ids[0] >= IMAGE_IDS.start) & (ids[0] < IMAGE_IDS.stop)
    is_real = documents[0] >= 0
    expected = {}
    for kind, chosen in (
        ("", is_real),
        ("_text", is_real & ~is_image),
        ("_image", is_real & is_image),
    ):
        expected[f"output_rms{kind}"] = outputs[-1][chosen].square().mean().sqrt()
        expected[f"attention_logit{kind}"] = torch.stack([s[:, chosen].max() for s in scores]).max()
    for i in range(3):
        expected[f"output_rms.{i:02d}"] = outputs[i][is_real].square().mean().sqrt()
        expected[f"attention_logit.{i:02d}"] = scores[i][:, is_real].max()
    assert set(found) == set(expected)
    # Measured: 1.2e-7 of each.
    assert found == pytest.approx({n: x.item() for n, x in expected.items()}, rel=1e-6)
    assert model.training is False  # as all_at_once left it


def test_a_modality_that_a_row_lacks_has_no_statistic() -> None:
    found = probed(decoder(), rows(images=False))
    assert math.isnan(found["output_rms_image"])
    assert math.isnan(found["attention_logit_image"])
    assert found["output_rms_text"] == found["output_rms"]
    assert found["attention_logit_text"] == found["attention_logit"]


@pytest.mark.parametrize("kind", ["none", "selective", "full"])
def test_a_probe_does_not_change_the_model(kind: str) -> None:
    """Training mode, random numbers, gradients, hooks and checkpointing stay."""
    model, batch = decoder(dropout=0.5), rows()
    expected = probed(model, batch)
    parallelise(model, Layout.alone(), ParallelConfig(activation_checkpointing=kind))  # type: ignore[arg-type]
    model.train()
    state = torch.get_rng_state()
    assert probed(model, batch) == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert not any(block._forward_hooks for block in model.trunk.blocks)


def test_a_probe_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a probe compiled")

    model, batch = decoder(), rows()
    expected = probed(model, batch)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=refuse))
    parallelise(model, Layout.alone(), ParallelConfig(compile=True))
    assert probed(model, batch) == expected


def test_other_rows_and_other_ranks_are_not_measured() -> None:
    model, more = decoder(), rows(5)
    first, last = more.rows(slice(0, 1)), more.rows(slice(-1, None))
    assert probed(model, more) == probed(model, first) != probed(model, last)
    elsewhere = dataclasses.replace(Layout.alone(), data_rank=1, data_size=2)
    found = probe(model, more, {"image": IMAGE_IDS}, elsewhere, within_documents=True)
    assert all(value.isnan() for value in found.values())


@settings(max_examples=30, deadline=None)
@given(
    heads=st.sampled_from([(1, 1), (4, 2), (3, 3), (4, 1)]),
    queries=st.integers(1, 7),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_largest_scores_equal_the_maximum_of_all_scores(
    heads: tuple[int, int], queries: int, causal: bool, seed: int
) -> None:
    n, k_heads = heads
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, n, queries, 6, generator=generator)
    k = torch.randn(2, k_heads, queries, 6, generator=generator)
    mask = torch.rand(2, 1, queries, queries, generator=generator) < 0.5
    mask |= torch.eye(queries, dtype=torch.bool)
    allowed = torch.ones(queries, queries, dtype=torch.bool).tril() if causal else mask
    scores = (q @ k.repeat_interleave(n // k_heads, 1).mT).abs() / math.sqrt(6)
    expected = scores.masked_fill(~allowed, 0).amax(-1)
    found = largest_scores(
        q, k, k, attn_mask=None if causal else mask, is_causal=causal, enable_gqa=n != k_heads
    )
    # Measured: 5e-7 of numbers near 1.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(
        2 * largest_scores(q, k, k, mask, scale=0.5), largest_scores(q, k, k, mask, scale=1.0)
    )


def test_scores_of_half_precision_are_multiplied_in_full() -> None:
    q = torch.full((1, 1, 1, 8), 257.0)  # no bfloat16 is near its square
    with torch.autocast("cpu", torch.bfloat16):
        found = largest_scores(q, q, q)
    assert found.item() == pytest.approx(8 * 257.0**2 / math.sqrt(8), rel=1e-6)


def filled_with_gradients(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return model


def part_of(name: str) -> str:
    if "norm" in name:
        return "norms"
    if ".attention." in name:
        return "attention"
    return "feed_forward" if "feed_forward" in name else name.split(".")[0]


def test_gradient_norms_of_parts_combine_to_the_total() -> None:
    model = filled_with_gradients(decoder())
    found = {name: value.item() for name, value in gradient_norms(model).items()}
    squares = dict.fromkeys(PARTS, 0.0)
    for name, parameter in model.named_parameters():
        squares[part_of(name)] += parameter.grad.square().sum().item()
    expected = {f"grad_norm.{part}": math.sqrt(square) for part, square in squares.items()}
    assert found == pytest.approx(expected, rel=1e-5)
    whole = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
    assert math.hypot(*found.values()) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_parameter_of_every_preset_has_a_part(preset: str) -> None:
    with torch.device("meta"):
        model = Decoder(PRESETS[preset]().sized(vocab_size=1024, context=64))
    for parameter in model.parameters():
        parameter.grad = parameter.detach()
    without = {"norms", "head"} if preset.startswith("cm3leon") else set()  # none, and tied
    assert set(gradient_norms(model)) == {f"grad_norm.{part}" for part in set(PARTS) - without}


@torch.no_grad()
def shake(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=1e-2)


def test_update_ratios_are_exact_where_the_sample_is_the_whole_parameter() -> None:
    model = decoder()
    before, sampled = (
        {n: p.detach().clone() for n, p in model.named_parameters()},
        weight_samples(model),
    )
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)), alpha=1e-2
            )
    found = {n: x.item() for n, x in update_ratios(model, sampled, Layout.alone()).items()}
    expected = {}
    for part in PARTS:
        pairs = [(p.detach(), before[n]) for n, p in model.named_parameters() if part_of(n) == part]
        moved = sum((after - then).square().sum() for after, then in pairs)
        size = sum(then.square().sum() for _, then in pairs)
        expected[f"update_ratio.{part}"] = (moved / size).sqrt().item()
    # Measured: equal.
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_sample_of_elements_approximates_a_parameter() -> None:
    model = decoder(d_model=64, d_ff=512, vocab_size=512)
    whole = {name: p.detach().clone() for name, p in model.named_parameters()}
    samples = weight_samples(model)
    assert max(sample.numel() for sample in samples.values()) <= 4096
    assert samples["head.weight"].numel() < 0.13 * model.head.weight.numel()
    shake(model)
    ratio = update_ratios(model, samples, Layout.alone())["update_ratio.head"].item()
    moved = (model.head.weight.detach() - whole["head.weight"]).norm()
    # Measured: 0.7 % off.
    assert ratio == pytest.approx((moved / whole["head.weight"].norm()).item(), rel=0.02)


def test_a_sample_includes_every_column() -> None:
    model = decoder(d_model=64, vocab_size=512)
    with torch.no_grad():
        model.head.weight.copy_(torch.arange(64.0).expand(512, 64))
    assert weight_samples(model)["head.weight"].unique().numel() == 64


def test_statistics_are_taken_at_the_last_step_of_each_line() -> None:
    assert [s for s in range(12) if has_statistics(s, 4)] == [3, 7, 11]
    assert not any(has_statistics(s, 0) for s in range(12))
