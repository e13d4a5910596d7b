"""QK-clip: the logits of every head are clipped to the threshold; nothing else changes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapes import decoder_config

from pardalis.errors import ConfigError
from pardalis.model import Decoder, attention_mask, initialise
from pardalis.parallel import Layout, ParallelConfig, World, parallelise
from pardalis.train.qk_clip import QKClip, shared_factors
from pardalis.train.statistics import AttentionCall, observed_blocks

TOKENS = 12


def decoder(n_kv_heads: int = 4, **options: object) -> Decoder:
    config = decoder_config(
        vocab_size=40, context=TOKENS, d_model=16, n_layers=2, n_heads=4, n_kv_heads=n_kv_heads,
        d_ff=32, init_std=0.5, **({"qk_norm": "none"} | options),
    )  # fmt: skip
    return initialise(Decoder(config), seed=1)


def run(model: Decoder, rows: slice = slice(None)) -> torch.Tensor:
    ids = torch.randint(0, 40, (3, TOKENS), generator=torch.Generator().manual_seed(0))
    documents = (torch.arange(TOKENS).expand(3, -1) >= 5).long()
    return model.hidden(ids[rows], None, attention_mask(documents[rows]))


def logits_of(model: Decoder) -> torch.Tensor:
    """Return the largest logit of each layer and head."""
    largest = torch.zeros(2, 4)

    def observe(layer: int, output: torch.Tensor, attention: list[AttentionCall]) -> None:
        for call in attention:
            largest[layer] = torch.maximum(largest[layer], call().amax((0, 2)))

    with torch.no_grad(), observed_blocks(model, observe):
        run(model)
    return largest


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
def test_heads_above_the_threshold_are_clipped_and_others_unchanged(n_kv_heads: int) -> None:
    model = decoder(n_kv_heads)
    before = logits_of(model)[0]
    threshold = before.median().item()
    clip = QKClip(model, threshold, Layout.alone())
    with clip.recording():
        run(model)
    n_clipped = clip.clip()
    # The second layer reads what the first one writes, which is no longer the same.
    torch.testing.assert_close(logits_of(model)[0], before.clamp(max=threshold))
    assert n_clipped > 0
    assert (before > threshold).sum() == 2


def test_heads_below_the_threshold_are_unchanged() -> None:
    model = decoder()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    clip = QKClip(model, 1e4, Layout.alone())
    with clip.recording():
        run(model)
    assert clip.clip() == 0
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_only_queries_and_keys_of_clipped_heads_are_scaled() -> None:
    model = decoder()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    logits = logits_of(model)
    threshold = logits.flatten().topk(2).values.mean().item()  # between the largest two
    layer, head = divmod(int(logits.argmax()), 4)
    clip = QKClip(model, threshold, Layout.alone())
    with clip.recording():
        run(model)
    assert clip.clip() == 1
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    attention = f"trunk.blocks.{layer}.attention"
    assert changed == {f"{attention}.q_proj.weight", f"{attention}.k_proj.weight"}
    factor = math.sqrt(threshold / logits.max())
    for name in changed:
        expected = torch.ones(16, 1)
        expected[4 * head : 4 * head + 4] = factor
        torch.testing.assert_close(dict(model.named_parameters())[name], before[name] * expected)


def test_logits_are_maxima_over_the_parts_of_one_step() -> None:
    whole, parted = decoder(), decoder()
    clips = [QKClip(model, 0.5, Layout.alone()) for model in (whole, parted)]
    for _ in range(2):  # a second step, whose logits are smaller
        with clips[0].recording():
            run(whole)
        for rows in (slice(0, 1), slice(1, 3)):
            with clips[1].recording():
                run(parted, rows)
        assert clips[0].clip() > 0
        clips[1].clip()
    for name, parameter in whole.named_parameters():
        # Measured: equal.
        torch.testing.assert_close(
            parameter, dict(parted.named_parameters())[name], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_gradients_of_a_checkpointed_model_are_those_of_a_plain_one(kind: str) -> None:
    """Recording logits must not change what is stored for the backward pass."""
    gradients = []
    for checkpointing in ("none", kind):
        model = decoder()
        config = ParallelConfig(activation_checkpointing=checkpointing)  # type: ignore[arg-type]
        parallelise(model, Layout.alone(), config)
        clip = QKClip(model, 0.5, Layout.alone())
        with clip.recording():
            loss = run(model).square().sum()
        loss.backward()
        assert clip.clip() > 0
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@given(st.lists(st.floats(1e-4, 1.0), min_size=4, max_size=4), st.sampled_from([1, 2, 4]))
def test_shared_factors_multiply_to_the_factor_of_each_head(
    heads: list[float], queries_of_key: int
) -> None:
    factors = torch.tensor(heads)
    queries, keys = shared_factors(factors, queries_of_key)
    # Measured: 1.2e-7.
    torch.testing.assert_close(
        queries * keys.repeat_interleave(queries_of_key), factors, rtol=1e-6, atol=0
    )
    if queries_of_key == 1:
        torch.testing.assert_close(queries, keys)


def test_a_model_with_qk_norm_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^training.qk_clip needs a model without QK-norm.* 'layer_norm';"
    ):
        QKClip(decoder(qk_norm="layer_norm"), 100.0, Layout.alone())


def test_heads_that_are_split_among_ranks_are_refused() -> None:
    split = Layout(World(), tensor_size=2)
    with pytest.raises(ConfigError, match=r"^qk_clip scales whole heads and tensor = 2 splits"):
        QKClip(decoder(), 100.0, split)


def test_attention_without_recorded_logits_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """For example when it is compiled: it must not silently stay unclipped."""
    model = decoder()
    clip = QKClip(model, 100.0, Layout.alone())
    for block in model.trunk.blocks:
        block.attention.forward = lambda x, *rest: x
    with pytest.raises(ConfigError, match=r"^qk_clip sees no attention scores"), clip.recording():
        run(model)
