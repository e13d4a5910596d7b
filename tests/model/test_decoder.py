"""The decoder's architecture, by facts that its paper and its size state."""

import dataclasses
import math

import pytest
import torch

from pardalis.errors import ConfigError
from pardalis.model import (
    PRESETS,
    Decoder,
    ModelConfig,
    chameleon_7b,
    chameleon_34b,
    count,
    document_mask,
    initialise,
    swiglu_width,
)
from pardalis.model.attention import HeadNorm, rotate, rotation_of


def build(config: ModelConfig, **changes) -> Decoder:
    return initialise(Decoder(dataclasses.replace(config, **changes)), seed=0).eval()


def test_chameleon_7b_has_its_parameters():
    counts = count(chameleon_7b())
    assert counts.without_qk_norm == 7_013_142_528
    assert counts.qk_norm_parameters == 524_288  # a scale and a shift for each head and layer


def test_chameleon_34b_has_its_parameters():
    counts = count(chameleon_34b())
    assert counts.without_qk_norm == 34_293_424_128
    assert counts.qk_norm_parameters == 48 * 2 * 128 * (64 + 8)


@pytest.mark.parametrize(("d_model", "width"), [(4096, 11008), (8192, 22016), (512, 1536)])
def test_swiglu_width(d_model, width):
    assert swiglu_width(d_model) == width


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_on_the_meta_device(name):
    counts = count(PRESETS[name](vocab_size=1000, context=64))
    assert counts.parameters > 2 * counts.embedding_parameters


def test_flops_of_7b():
    """43.69 GFLOP a token at 4,096 positions: 6 times the multiplied parameters plus attention."""
    assert count(chameleon_7b()).train_flops_per_token == pytest.approx(43.69e9, rel=1e-3)


@pytest.mark.parametrize("norm_placement", ["pre", "reordered"])
@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("qk_norm", ["layer_norm", "none"])
def test_causal(tiny_config, norm_placement, n_kv_heads, qk_norm):
    model = build(
        tiny_config, norm_placement=norm_placement, n_kv_heads=n_kv_heads, qk_norm=qk_norm
    )
    ids = torch.arange(10).view(1, 10)
    changed = ids.clone()
    changed[0, 6] = 30
    before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :6], after[:, :6], rtol=0, atol=0)
    assert (before[:, 6:] - after[:, 6:]).abs().amax(-1).min() > 1e-3


def test_a_document_in_a_row_is_as_if_alone(tiny_model):
    first, second = torch.arange(8, 13), torch.arange(20, 27)
    row = torch.cat([first, second])[None]
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    documents = torch.tensor([[0] * 5 + [1] * 7])
    packed = tiny_model(row, positions, document_mask(documents))
    torch.testing.assert_close(packed[:, :5], tiny_model(first[None]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(packed[:, 5:], tiny_model(second[None]), rtol=1e-4, atol=1e-5)


def test_document_mask():
    mask = document_mask(torch.tensor([[0, 0, 1, -1, -1]]))[0, 0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def test_qk_norm_is_blind_to_scale_and_shift_and_bounds_scores():
    """With unit scale |score| <= sqrt(d_head), and 11.31 for Chameleon's heads of 128."""
    norm = HeadNorm(2, 128, 1e-5)
    torch.nn.init.ones_(norm.weight)
    torch.nn.init.zeros_(norm.bias)
    q, k = torch.randn(2, 1, 3, 2, 128, generator=torch.Generator().manual_seed(0)) * 5
    torch.testing.assert_close(norm(q), norm(3 * q + 7), rtol=1e-3, atol=1e-4)
    scores = torch.einsum("btnh,bsnh->bnts", norm(q), norm(k)) / math.sqrt(128)
    assert scores.abs().max() <= 11.3138
    same = torch.einsum("btnh,btnh->btn", norm(q), norm(q)) / math.sqrt(128)
    torch.testing.assert_close(same, torch.full_like(same, 11.3137), rtol=1e-4, atol=0)


def test_head_norm_with_equal_heads_is_layer_norm():
    norm, shared = HeadNorm(3, 8, 1e-5), torch.nn.LayerNorm(8)
    weight, bias = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        norm.weight.copy_(weight.expand(3, 8))
        norm.bias.copy_(bias.expand(3, 8))
        shared.weight.copy_(weight)
        shared.bias.copy_(bias)
    x = torch.randn(2, 5, 3, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(norm(x), shared(x), rtol=1e-5, atol=1e-6)


def test_qk_norm_stands_before_rope():
    """With a scale that differs over a head's width, the order changes the result."""
    norm = HeadNorm(1, 8, 1e-5)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1.0, 9.0)[None])
        norm.bias.zero_()
    x = torch.randn(1, 4, 1, 8, generator=torch.Generator().manual_seed(0))
    rotation = rotation_of(torch.arange(4)[None], 8, 10_000.0)
    assert (rotate(norm(x), rotation) - norm(rotate(x, rotation))).abs().max() > 0.1


def test_rope_depends_on_distance_alone():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=generator)

    def score(at_q: int, at_k: int) -> float:
        turn = lambda x, at: rotate(x, rotation_of(torch.tensor([[at]]), 16, 10_000.0))  # noqa: E731
        return float((turn(q, at_q) * turn(k, at_k)).sum())

    assert score(3, 1) == pytest.approx(score(40, 38), abs=1e-4)
    assert abs(score(3, 1) - score(3, 2)) > 1e-2


def test_reordered_norms_at_zero_make_the_block_the_identity(tiny_config):
    model = build(tiny_config, norm_placement="reordered")
    block = model.trunk.blocks[0]
    torch.nn.init.zeros_(block.attention_norm.weight)
    torch.nn.init.zeros_(block.feed_forward_norm.weight)
    x = torch.randn(1, 5, tiny_config.d_model, generator=torch.Generator().manual_seed(0))
    rotation = rotation_of(torch.arange(5)[None], tiny_config.d_head, 10_000.0)
    assert torch.equal(block(x, rotation, None, None), x)


def test_dropout_acts_in_training_only(tiny_config):
    model = build(tiny_config, dropout=0.5)
    ids = torch.arange(6)[None]
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


def test_initial_values_depend_on_seed_and_name_alone(tiny_config):
    one, two, other = (initialise(Decoder(tiny_config), seed) for seed in (0, 0, 1))
    deeper = initialise(Decoder(dataclasses.replace(tiny_config, context=96)), 0)
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, two.get_parameter(name))
        assert torch.equal(parameter, deeper.get_parameter(name))
    assert not torch.equal(one.head.weight, other.head.weight)


def test_initial_spread(tiny_config):
    config = dataclasses.replace(tiny_config, init_std=0.02, d_model=128, d_ff=256)
    model = initialise(Decoder(config), seed=0)
    # A normal cut at 3 std keeps 0.9866 of its spread.
    assert float(model.head.weight.detach().std()) == pytest.approx(0.02 * 0.9866, rel=0.05)
    down = model.trunk.blocks[0].feed_forward.down_proj.weight
    assert float(down.detach().std()) == pytest.approx(
        0.02 * 0.9866 / 2, rel=0.05
    )  # / sqrt(2 * 2 layers)
    assert down.abs().max() <= 0.03
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == (0.0 if name.endswith("bias") else 1.0)).all(), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 3}, "^d_model .32. must be a multiple of twice n_heads .3."),
        ({"n_kv_heads": 3}, "^n_heads .4. must be a multiple of n_kv_heads .3."),
        ({"dropout": 1.0}, r"^dropout must lie in \[0, 1\), got 1.0"),
        ({"n_layers": 0}, "^n_layers must be at least 1, got 0"),
    ],
)
def test_refuses_shapes_that_cannot_be(tiny_config, changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(tiny_config, **changes)


def test_a_seed_gives_the_same_weights_wherever_they_lie(tiny_config):
    """Drawn on the CPU in single precision and then copied, whatever takes them."""
    one = initialise(Decoder(tiny_config), seed=1).state_dict()
    other = initialise(Decoder(tiny_config).double(), seed=1).state_dict()
    assert all(torch.equal(one[name].double(), other[name]) for name in one)
    with torch.device("meta"):
        nowhere = Decoder(tiny_config)
    assert all(parameter.is_meta for parameter in initialise(nowhere, seed=1).parameters())


def test_small_is_as_large_as_it_says():
    counts = count(PRESETS["small"](vocab_size=1000))
    assert counts.parameters - 2 * counts.embedding_parameters == 27_288_064
