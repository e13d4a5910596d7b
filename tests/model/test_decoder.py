"""The decoder's architecture against its paper and the published sizes."""

import dataclasses
import math

import pytest
import torch
from shapes import changed

from pardalis import config as configs
from pardalis.errors import ConfigError
from pardalis.model import (
    PRESETS,
    Decoder,
    ModelConfig,
    RoPEScaling,
    chameleon_7b,
    chameleon_34b,
    config_of,
    document_mask,
    initialise,
    model_costs,
    swiglu_width,
)
from pardalis.model.norms import HeadNorm
from pardalis.model.positions import rope_frequencies, rotate, rotation_of


def build(config: ModelConfig, **changes) -> Decoder:
    return initialise(Decoder(changed(config, **changes)), seed=0).eval()


def stream(config: ModelConfig) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """A residual stream of five positions, and their rotation."""
    x = torch.randn(1, 5, config.d_model, generator=torch.Generator().manual_seed(0))
    return x, rotation_of(torch.arange(5)[None], config.d_head, config.position.theta)


def test_chameleon_7b_has_its_parameters():
    counts = model_costs(chameleon_7b().sized(65_536, 4096))
    assert counts.without_qk_norm == 7_013_142_528
    assert counts.qk_norm_parameters == 16_384  # of 32 layers: scale and shift, 128 wide, q and k


def test_chameleon_34b_has_its_parameters():
    counts = model_costs(chameleon_34b().sized(65_536, 4096))
    assert counts.without_qk_norm == 34_293_424_128
    assert counts.qk_norm_parameters == 98_304  # of 48 layers, once for each of four groups


def test_qk_norm_per_head_has_more_parameters():
    shared = model_costs(chameleon_34b().sized(65_536, 4096))
    per_head = model_costs(changed(chameleon_34b().sized(65_536, 4096), qk_norm_groups=None))
    assert per_head.qk_norm_parameters == 48 * 2 * 128 * (64 + 8)
    assert per_head.without_qk_norm == shared.without_qk_norm


@pytest.mark.parametrize(("d_model", "width"), [(4096, 11008), (8192, 22016), (512, 1536)])
def test_swiglu_width(d_model, width):
    assert swiglu_width(d_model) == width


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_on_the_meta_device(name):
    counts = model_costs(PRESETS[name]().sized(vocab_size=1000, context=64))
    assert counts.parameters > 2 * counts.embedding_parameters


def test_flops_of_7b():
    """43.69 GFLOP a token at 4,096 positions: 6 times the multiplied parameters plus attention."""
    assert model_costs(chameleon_7b().sized(65_536, 4096)).train_flops_per_token == pytest.approx(
        43.69e9, rel=1e-3
    )


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


def test_a_document_in_a_packed_row_equals_the_document_by_itself(tiny_model):
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


def head_norm(weight: torch.Tensor, bias: torch.Tensor) -> HeadNorm:
    """QK-norm with a scale and a shift for each row of ``weight`` and ``bias``."""
    norm = HeadNorm(weight.shape[1], len(weight), 1e-5)
    with torch.no_grad():
        norm.weight.copy_(weight)
        norm.bias.copy_(bias)
    return norm


def test_qk_norm_bounds_scores():
    """With unit scale |score| <= sqrt(d_head), and 11.31 for Chameleon's heads of 128."""
    norm = head_norm(torch.ones(1, 128), torch.zeros(1, 128))
    q, k = torch.randn(2, 1, 3, 2, 128, generator=torch.Generator().manual_seed(0)) * 5
    scores = torch.einsum("btnh,bsnh->bnts", norm(q), norm(k)) / math.sqrt(128)
    assert scores.abs().max() <= 11.3138
    same = torch.einsum("btnh,btnh->btn", norm(q), norm(q)) / math.sqrt(128)
    torch.testing.assert_close(same, torch.full_like(same, 11.3137), rtol=1e-4, atol=0)


@pytest.mark.parametrize("qk_norm", ["layer_norm", "none"])
def test_attention_is_invariant_to_scale_and_shift_of_queries_with_qk_norm(tiny_config, qk_norm):
    """Only with QK-norm do queries of 3 q + 7 attend as q. Measured: 6.0e-6; without it, 3.8."""
    attention = build(tiny_config, qk_norm=qk_norm).trunk.blocks[0].attention
    x, rotation = stream(tiny_config)
    before = attention(x, rotation, None, None)
    raw = attention.q_proj.weight
    attention.q_proj = torch.nn.Linear(*raw.T.shape)
    with torch.no_grad():
        attention.q_proj.weight.copy_(3 * raw)
        attention.q_proj.bias.fill_(7)
    difference = (attention(x, rotation, None, None) - before).abs().max()
    assert difference < 3e-5 if qk_norm == "layer_norm" else difference > 1


def test_qk_norm_with_equal_heads_is_one_group_and_is_layer_norm():
    weight, bias = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 5, 4, 8, generator=torch.Generator().manual_seed(1))
    shared = torch.nn.functional.layer_norm(x, (8,), weight[0], bias[0], 1e-5)
    for n_groups in (1, 2, 4):
        norm = head_norm(weight.expand(n_groups, 8), bias.expand(n_groups, 8))
        torch.testing.assert_close(norm(x), shared, rtol=1e-5, atol=1e-6)


def test_groups_of_qk_norm_are_consecutive_heads():
    """Heads 0 and 1 have the first scale and shift, heads 2 and 3 the second."""
    weight, bias = torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 5, 4, 8, generator=torch.Generator().manual_seed(1))
    grouped = head_norm(weight, bias)(x)
    for heads, group in ((slice(0, 2), slice(0, 1)), (slice(2, 4), slice(1, 2))):
        alone = head_norm(weight[group], bias[group])(x[:, :, heads])
        assert torch.equal(grouped[:, :, heads], alone)


@pytest.mark.parametrize("first", ["norm", "rope"])
def test_qk_norm_is_applied_before_rope(tiny_config, first):
    """With a scale that differs over a head's width, the order decides: attention by hand.

    Measured: 3.6e-7, and 1.6 in the other order.
    """
    attention = build(tiny_config, n_kv_heads=4).trunk.blocks[0].attention
    for norm in (attention.q_norm, attention.k_norm):
        torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(0))
    x, rotation = stream(tiny_config)

    def prepared(projection, norm):
        heads = projection(x).unflatten(-1, (4, tiny_config.d_head))
        if first == "norm":
            return rotate(norm(heads), rotation)
        return norm(rotate(heads, rotation))

    q = prepared(attention.q_proj, attention.q_norm)
    k = prepared(attention.k_proj, attention.k_norm)
    scores = torch.einsum("btnh,bsnh->bnts", q, k) / math.sqrt(tiny_config.d_head)
    causal = torch.ones(x.shape[1], x.shape[1]).tril().bool()
    weights = scores.masked_fill(~causal, -math.inf).softmax(-1)
    v = attention.v_proj(x).unflatten(-1, (4, tiny_config.d_head))
    by_hand = attention.o_proj(torch.einsum("bnts,bsnh->btnh", weights, v).flatten(2))
    difference = (by_hand - attention(x, rotation, None, None)).abs().max()
    assert difference < 2e-6 if first == "norm" else difference > 1


def test_rope_depends_on_distance_only():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=generator)

    def score(at_q: int, at_k: int) -> float:
        turn = lambda x, at: rotate(x, rotation_of(torch.tensor([[at]]), 16, 10_000.0))  # noqa: E731
        return float((turn(q, at_q) * turn(k, at_k)).sum())

    assert score(3, 1) == pytest.approx(score(40, 38), abs=1e-4)
    assert abs(score(3, 1) - score(3, 2)) > 1e-2


SCALING = RoPEScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=100)


def test_scaled_rope_by_hand():
    """Wavelengths of 6.3, 62.8, 628 and 6283 in 100 positions: kept, blended, divided, divided."""
    torch.testing.assert_close(
        rope_frequencies(8, 10_000.0), torch.tensor([1.0, 0.1, 0.01, 0.001]), rtol=1e-6, atol=0
    )
    # 100 / 62.8319 = 1.59155 turns lie 0.197183 of the way from 1 to 4:
    # 0.802817 * 0.1 / 8 + 0.197183 * 0.1 = 0.0297535.
    expected = torch.tensor([1.0, 0.0297535, 0.00125, 0.000125])
    torch.testing.assert_close(rope_frequencies(8, 10_000.0, SCALING), expected, rtol=1e-6, atol=0)


def test_the_rotation_turns_by_scaled_frequencies():
    cos, sin = rotation_of(torch.tensor([[0, 1, 8]]), 8, 10_000.0, SCALING)
    angles = torch.tensor([1.0, 0.0297535, 0.00125, 0.000125]).repeat(2)
    for at, position in enumerate((0, 1, 8)):
        torch.testing.assert_close(cos[0, at, 0], (position * angles).cos(), rtol=0, atol=1e-6)
        signed = (position * angles).sin() * torch.tensor([-1.0, 1.0]).repeat_interleave(4)
        torch.testing.assert_close(sin[0, at, 0], signed, rtol=0, atol=1e-6)


def test_a_decoder_scales_its_rope(tiny_config):
    ids = torch.arange(40)[None]
    plain, scaled = (build(tiny_config, rope_scaling=scaling)(ids) for scaling in (None, SCALING))
    assert torch.equal(plain[:, 0], scaled[:, 0])  # at position 0 nothing turns
    assert (plain[:, 1:] - scaled[:, 1:]).abs().amax() > 1e-3


def test_rope_scaling_reads_back_and_may_be_left_out(tiny_config, tmp_path):
    path = tmp_path / "model.toml"
    for scaling in (None, SCALING):
        config = changed(tiny_config, rope_scaling=scaling)
        assert config_of(configs.to_dict(config)) == config
        path.write_text(configs.to_toml(config))
        assert configs.load(ModelConfig, path) == config
    assert "scaling" not in configs.to_dict(tiny_config)["position"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": 0.5}, "^factor must be at least 1, got 0.5"),
        ({"factor": math.nan}, "^factor must be at least 1, got nan"),
        (
            {"low_freq_factor": 0.0},
            r"^low_freq_factor \(0.0\) must lie above 0 and below high_freq",
        ),
        ({"low_freq_factor": 4.0}, r"must lie above 0 and below high_freq_factor \(4.0\)"),
        ({"high_freq_factor": 0.5}, r"must lie above 0 and below high_freq_factor \(0.5\)"),
        ({"original_context": 0}, "^original_context must be at least 1, got 0"),
    ],
)
def test_invalid_rope_scaling_is_refused(tiny_config, changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SCALING, **changes)
    values = configs.to_dict(changed(tiny_config, rope_scaling=SCALING))
    values["position"]["scaling"] |= changes
    with pytest.raises(ConfigError, match=r"^model\.position\.scaling\."):
        config_of(values)


@pytest.mark.parametrize("norm_placement", ["pre", "reordered"])
@pytest.mark.parametrize(
    "zeros",
    [
        ("attention_norm", "feed_forward_norm"),  # no linear has a bias, so a branch is 0 at 0
        ("attention.o_proj", "feed_forward.down_proj"),
    ],
)
def test_norms_or_output_projections_at_zero_make_a_block_the_identity(
    tiny_config, norm_placement, zeros
):
    block = build(tiny_config, norm_placement=norm_placement).trunk.blocks[0]
    x, rotation = stream(tiny_config)
    for name in zeros:
        assert not torch.equal(block(x, rotation, None, None), x)
        torch.nn.init.zeros_(block.get_submodule(name).weight)
    assert torch.equal(block(x, rotation, None, None), x)


@pytest.mark.parametrize(("norm_placement", "bounded"), [("pre", False), ("reordered", True)])
def test_reordered_norms_bound_what_a_branch_adds(tiny_config, norm_placement, bounded):
    """A thousandfold output projection shows in the stream only where no norm follows it."""
    block = build(tiny_config, norm_placement=norm_placement).trunk.blocks[0]
    x, rotation = stream(tiny_config)
    with torch.no_grad():
        before = block(x, rotation, None, None)
        block.attention.o_proj.weight.mul_(1000)
        block.feed_forward.down_proj.weight.mul_(1000)
        growth = block(x, rotation, None, None).norm() / before.norm()
    assert growth < 1.1 if bounded else growth > 100


@pytest.mark.parametrize("embedding_norm", [True, False])
def test_embedding_norm_is_invariant_to_the_scale_of_the_table(tiny_config, embedding_norm):
    model = build(tiny_config, norm_placement="reordered", embedding_norm=embedding_norm)
    ids = torch.arange(12)[None]
    before = model.hidden(ids)
    with torch.no_grad():
        model.embedding.weight.mul_(50)
    assert torch.allclose(model.hidden(ids), before, atol=0.05) == embedding_norm


def test_dropout_acts_in_training_only(tiny_config):
    model = build(tiny_config, dropout=0.5)
    ids = torch.arange(6)[None]
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


def test_initial_values_depend_on_seed_and_name_only(tiny_config):
    one, two, other = (initialise(Decoder(tiny_config), seed) for seed in (0, 0, 1))
    deeper = initialise(Decoder(changed(tiny_config, context=96)), 0)
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, two.get_parameter(name))
        assert torch.equal(parameter, deeper.get_parameter(name))
    assert not torch.equal(one.head.weight, other.head.weight)


def test_initial_spread(tiny_config):
    config = changed(tiny_config, init_std=0.02, d_model=128, d_ff=256)
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
        (
            {"n_heads": 3, "n_kv_heads": 3},
            r"d_model \(32\) must be a multiple of attention.n_heads \(3\), or",
        ),
        (
            {"n_kv_heads": 3},
            r"^model.attention.n_heads \(4\) must be a multiple of n_kv_heads \(3\)",
        ),
        ({"dropout": 1.0}, r"^model.dropout must lie in \[0, 1\), got 1.0"),
        ({"n_layers": 0}, r"^model.n_layers must be at least 1, got 0"),
        (
            {"qk_norm_groups": 4},
            r"^model.attention.qk_norm.groups \(4\) must divide n_kv_heads \(2\): groups",
        ),
        ({"qk_norm_groups": 0}, r"^model.attention.qk_norm.groups must be at least 1, got 0"),
    ],
)
def test_invalid_shapes_are_refused(tiny_config, changes, message):
    with pytest.raises(ConfigError, match=message):
        changed(tiny_config, **changes)


def test_initial_values_do_not_depend_on_device_and_dtype(tiny_config):
    """They are sampled on the CPU in single precision and then copied."""
    one = initialise(Decoder(tiny_config), seed=1).state_dict()
    other = initialise(Decoder(tiny_config).double(), seed=1).state_dict()
    assert all(torch.equal(one[name].double(), other[name]) for name in one)
    with torch.device("meta"):
        nowhere = Decoder(tiny_config)
    assert all(parameter.is_meta for parameter in initialise(nowhere, seed=1).parameters())


def test_the_size_of_small():
    counts = model_costs(PRESETS["small"]().sized(1000, context=1024))
    assert counts.parameters - 2 * counts.embedding_parameters == 27_288_064
