"""Options of the decoder do what their formulas say. Parity with other libraries is in parity/."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from shapes import changed, decoder_config
from torch import Tensor

from pardalis.batch import Soft
from pardalis.errors import ConfigError
from pardalis.model import (
    PRESETS,
    AttentionConfig,
    Decoder,
    EmbeddingConfig,
    LayerNormConfig,
    LearnedPositionsConfig,
    MLPConfig,
    QKRMSNormConfig,
    ResidualConfig,
    document_mask,
    initialise,
)
from pardalis.model.attention import Attention
from pardalis.model.masks import attend

CONFIG = decoder_config(
    vocab_size=50, context=16, d_model=16, n_layers=2, n_heads=2, d_ff=24, init_std=0.2
)


def decoder(**options) -> Decoder:
    model = Decoder(replace(CONFIG, **options))
    initialise(model, 0)
    return model.eval()


def ids(rows: int = 2, length: int = 10) -> Tensor:
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(3))


# ── residual stream ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("placement", ["pre", "reordered", "post"])
def test_a_block_is_its_formula(placement):
    residual = ResidualConfig(placement=placement, skip=0.9, branch=0.3)
    block = decoder(residual=residual).trunk.blocks[0]
    x = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0))

    def added(x, norm, f):
        if placement == "pre":
            return 0.9 * x + 0.3 * f(norm(x))
        if placement == "reordered":
            return 0.9 * x + 0.3 * norm(f(x))
        return norm(0.9 * x + 0.3 * f(x))

    after = added(x, block.attention_norm, lambda y: block.attention(y, None))
    after = added(after, block.feed_forward_norm, block.feed_forward)
    torch.testing.assert_close(block(x, None, None, None), after)


def test_post_norms_have_no_norm_behind_the_last_block():
    names = {
        name for name, _ in decoder(residual=ResidualConfig(placement="post")).named_parameters()
    }
    assert "trunk.norm.weight" not in names


def test_coefficients_of_one_are_exactly_the_plain_sum():
    plain, named = decoder(), decoder(residual=ResidualConfig(skip=1.0, branch=1.0))
    assert torch.equal(plain(ids()), named(ids()))
    assert not torch.equal(plain(ids()), decoder(residual=ResidualConfig(branch=0.9))(ids()))


# ── embedding, positions, norms ──────────────────────────────────────────────────────────────────


def test_embeddings_are_scaled_before_their_norm():
    model = decoder(embedding=EmbeddingConfig(scale=3.0))
    assert torch.equal(model.embed(ids()), model.embedding(ids()) * 3.0)
    normed = decoder(embedding=EmbeddingConfig(scale=3.0, norm=True)).embed(ids())
    torch.testing.assert_close(normed.square().mean(-1), torch.ones(2, 10), atol=1e-3, rtol=0)


def test_learned_positions_are_added_and_the_last_serves_beyond_the_table():
    model = decoder(position=LearnedPositionsConfig(), n_layers=1)
    assert model.trunk.rotation is None
    table = model.position_embedding
    assert torch.equal(table(torch.tensor([[15, 16, 40]]))[0, 2], table.weight[15])
    shifted = torch.arange(10)[None] + 3
    assert not torch.allclose(model(ids(1)), model.head(model.hidden(ids(1), shifted)))


def test_a_norm_without_parameters_has_none():
    for parameters, kinds in (
        ("none", set()),
        ("scale", {"weight"}),
        ("scale_and_shift", {"weight", "bias"}),
    ):
        model = decoder(norm=LayerNormConfig(parameters=parameters))
        found = {n.rsplit(".", 1)[1] for n, _ in model.named_parameters() if "attention_norm" in n}
        assert found == kinds
        assert model(ids()).isfinite().all()


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_two_matrix_feed_forward(activation, bias):
    layer = decoder(feed_forward=MLPConfig(width=24, activation=activation, bias=bias))
    mlp = layer.trunk.blocks[0].feed_forward
    functions = {
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "relu": F.relu,
    }
    x = torch.randn(1, 3, 16)
    hidden = functions[activation](x @ mlp.up_proj.weight.T + (mlp.up_proj.bias if bias else 0))
    expected = hidden @ mlp.down_proj.weight.T + (mlp.down_proj.bias if bias else 0)
    torch.testing.assert_close(mlp(x), expected)
    assert (mlp.up_proj.bias is not None) == bias


@pytest.mark.parametrize("bias", ["none", "qkv", "all"])
def test_biases_of_attention(bias):
    attention = decoder(attention=AttentionConfig(n_heads=2, bias=bias)).trunk.blocks[0].attention
    assert (attention.q_proj.bias is not None) == (bias != "none")
    assert (attention.o_proj.bias is not None) == (bias == "all")


def test_norms_over_all_heads_cannot_be_split_among_ranks():
    config = replace(
        CONFIG, attention=AttentionConfig(n_heads=2, qk_norm=QKRMSNormConfig(over="heads"))
    )
    config.check_tensor(1)
    with pytest.raises(ConfigError, match=r"qk_norm is over all heads; set tensor = 1"):
        config.check_tensor(2)


# ── soft inputs, masks, memory ───────────────────────────────────────────────────────────────────


def test_soft_inputs_replace_the_embeddings_of_their_positions():
    model, tokens = decoder(), ids()
    values = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    places = torch.tensor([[4, 0, -1], [9, -1, -1]])
    embedded = model.embed(tokens, Soft(places, values))
    expected = model.embedding(tokens).clone()
    expected[0, 4], expected[0, 0], expected[1, 9] = values[0, 0], values[0, 1], values[1, 0]
    assert torch.equal(embedded, expected)
    model.hidden(tokens, soft=Soft(places, values)).square().sum().backward()
    used = values.grad.abs().sum(-1) > 0
    assert used.tolist() == [[True, True, False], [True, False, False]]
    # What the token there was no longer matters.
    other = tokens.clone()
    other[0, 4] = (other[0, 4] + 1) % 50
    assert torch.equal(
        model.hidden(tokens, soft=Soft(places, values)),
        model.hidden(other, soft=Soft(places, values)),
    )


def test_a_mask_may_be_boolean_additive_or_named():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 7, 8, generator=generator) for _ in range(3))
    allowed = document_mask(torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, -1]]))
    additive = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)
    torch.testing.assert_close(attend(q, k, v, allowed), attend(q, k, v, additive))
    biased = attend(q, k, v, additive + 0.5 * torch.arange(7.0))
    assert not torch.allclose(biased, attend(q, k, v, allowed))
    torch.testing.assert_close(attend(q, k, v, "causal"), attend(q, k, v, None))
    scores = (q @ k.mT / 8**0.5).softmax(-1)
    torch.testing.assert_close(attend(q, k, v, "full"), scores @ v)


def test_attention_to_a_memory_makes_keys_and_values_from_it():
    attention = Attention(CONFIG, d_memory=6)
    torch.manual_seed(0)
    for name, parameter in attention.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm.weight" in name else 0.0)
    x, memory = torch.randn(1, 4, 16), torch.randn(1, 9, 6)
    q = attention.q_norm(attention.q_proj(x).unflatten(-1, (2, 8))).transpose(1, 2)
    k = attention.k_norm(attention.k_proj(memory).unflatten(-1, (2, 8))).transpose(1, 2)
    v = attention.v_proj(memory).unflatten(-1, (2, 8)).transpose(1, 2)
    mixed = ((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(-2)
    found = attention(x, None, "full", memory=memory)
    torch.testing.assert_close(found, attention.o_proj(mixed))


def test_a_decoder_refuses_a_memory():
    with pytest.raises(ValueError, match="takes no memory"):
        decoder().hidden(ids(), memory=torch.zeros(1, 1, 1))


def test_a_head_may_have_a_width_of_its_own():
    model = decoder(attention=AttentionConfig(n_heads=3, n_kv_heads=1, d_head=10))
    attention = model.trunk.blocks[0].attention
    assert attention.q_proj.weight.shape == (30, 16)
    assert attention.o_proj.weight.shape == (16, 30)
    assert [layer.d_head for layer in model.cache_spec()] == [10, 10]
    assert changed(CONFIG, d_model=16).d_head == 8


# ── CM3Leon ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("preset", "n_layers", "d_model", "millions"),
    [("350m", 24, 1024, 372.3), ("760m", 24, 1536, 784.9), ("7b", 32, 4096, 6723.5)],
)
def test_the_sizes_of_cm3leon(preset, n_layers, d_model, millions):
    """With its 8,192 codes and 56,320 text tokens, and a context of 4,096."""
    shape = PRESETS[f"cm3leon_{preset}"]()
    assert (shape.n_layers, shape.d_model, shape.dropout) == (n_layers, d_model, 0)
    vocab_size = 8 + 8192 + 56_320 + 8
    with torch.device("meta"):
        model = Decoder(shape.sized(vocab_size, context=4096))
    parameters = dict(model.named_parameters())
    assert not [name for name in parameters if name.endswith("bias") or "norm" in name]
    n_parameters = sum(parameter.numel() for parameter in parameters.values())
    assert n_parameters == 12 * n_layers * d_model**2 + (vocab_size + 4096) * d_model
    assert n_parameters / 1e6 == pytest.approx(millions, abs=0.1)


def test_the_initial_values_of_cm3leon():
    shape = PRESETS["cm3leon_350m"]()
    shape = replace(
        shape, n_layers=2, d_model=64, feed_forward=replace(shape.feed_forward, width=256)
    )
    model = initialise(Decoder(shape.sized(3000, context=2000)), 0)
    for name, parameter in model.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            assert not parameter.any(), name
            continue
        std = 0.0002 if "position" in name else 0.006
        assert parameter.std().item() == pytest.approx(std, rel=0.05), name
        assert parameter.abs().max() <= 3 * std
    x = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.trunk.blocks[0](x, None, None, None), x)  # it changes nothing at first
