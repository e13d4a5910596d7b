"""Weights laid out for decoding give what the model gives, and leave it as it was."""

import pytest
import torch
from jaxtyping import Float
from shapes import changed
from torch import Tensor

from pardalis.inference.weights import Head, Int8Linear, PackedLinear, packed, rounded
from pardalis.model import Decoder, LayerKVCache, ModelConfig, initialise
from pardalis.tokens import Grammar, Rule


@pytest.fixture
def ids(tiny_config: ModelConfig) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, tiny_config.vocab_size, (2, 9), generator=generator)


def without_qk_norm(config: ModelConfig) -> ModelConfig:
    return changed(config, qk_norm="none")


def one_group(config: ModelConfig) -> ModelConfig:
    return changed(config, qk_norm_groups=1)


def reordered(config: ModelConfig) -> ModelConfig:
    return changed(config, norm_placement="reordered")


def tied(config: ModelConfig) -> ModelConfig:
    return changed(config, tie_embeddings=True)


def long_rows(config: ModelConfig) -> ModelConfig:
    return changed(config, d_ff=1100)


@pytest.mark.parametrize("variant", [without_qk_norm, one_group, reordered, tied, long_rows])
def test_a_packed_decoder_gives_the_same_hidden_states(variant, tiny_config, ids):
    model = initialise(Decoder(variant(tiny_config)), seed=1).eval()
    for norm in (p for name, p in model.named_parameters() if "q_norm" in name or "k_norm" in name):
        torch.nn.init.normal_(norm, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = model.hidden(ids)
        torch.testing.assert_close(packed(model, "stored").hidden(ids), expected)


def test_the_original_is_unchanged_and_shares_the_rest(tiny_model, ids):
    before = {name: p.clone() for name, p in tiny_model.state_dict().items()}
    expected = tiny_model(ids)
    copy = packed(tiny_model, "int8")
    assert copy.head.weight is tiny_model.head.weight
    assert copy.trunk.norm.weight is tiny_model.trunk.norm.weight
    assert tiny_model.state_dict().keys() == before.keys()
    assert all(torch.equal(p, before[name]) for name, p in tiny_model.state_dict().items())
    assert torch.equal(tiny_model(ids), expected)
    assert tiny_model(ids).requires_grad


@pytest.mark.parametrize("width", [32, 1024, 1025, 1536])
def test_a_row_is_the_same_to_the_bit_whatever_stands_beside_it(width):
    generator = torch.Generator().manual_seed(0)
    linear = PackedLinear(torch.randn(96, width, generator=generator))
    rows = torch.randn(1, 40, width, generator=generator)
    together = linear(rows)
    for first, count in [(0, 1), (7, 1), (3, 2), (5, 3), (8, 16), (0, 17)]:
        part = slice(first, first + count)
        assert torch.equal(linear(rows[:, part]), together[:, part])
        assert torch.equal(linear(rows[0, part]), together[0, part])


@pytest.mark.parametrize("width", [32, 24, 7])  # the kernel reads 16 weights at once
def test_integers_are_rounded_by_half_a_step_at_most(width):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, width, generator=generator)
    weight[3] = 0
    values, scale = rounded(weight, "int8")
    assert (scale.bfloat16().float() == scale).all()
    assert (scale < 1.01 * weight.abs().amax(1).clamp(min=1e-9) / 126.5).all()
    assert ((values * scale[:, None] - weight).abs() <= scale[:, None] / 2 + 1e-6).all()
    linear = Int8Linear(values, scale)
    for n_rows in (1, 16, 17, 40):  # either side of where the form of the product changes
        rows = torch.randn(2, n_rows, width, generator=generator)[:1]
        product, exact = linear(rows), rows @ weight.T
        assert product.dtype == rows.dtype
        assert product.shape == exact.shape
        assert (product - exact).norm() < 0.02 * exact.norm()
        assert (product[..., 3] == 0).all()


@pytest.mark.parametrize("weights", ["stored", "int8"])
@pytest.mark.parametrize("variant", [one_group, tied])
def test_the_head_writes_its_slices_in_the_order_of_written_ids(
    variant, weights, tiny_config, grammar, ids
):
    tiny_model = initialise(Decoder(variant(tiny_config)), seed=0).eval()
    with torch.inference_mode():
        hidden = tiny_model.hidden(ids)[0]
        expected = tiny_model.head(hidden)[:, grammar.writable_ids()]
        head = Head(tiny_model, grammar, weights)
        tolerance = {"stored": 1e-5, "int8": 0.03}[weights] * float(expected.abs().max())
        whole = head.all(hidden)
        torch.testing.assert_close(whole, expected, rtol=0, atol=tolerance)
        codes = grammar.ranges()[Rule.CODE]
        assert torch.equal(head.image(hidden), whole[:, codes.start : codes.stop])
        assert torch.equal(head.text(hidden), whole[:, head.n_codes :])


class _Seen:
    """A cache that answers with the values and keeps what it was given."""

    def attend(
        self,
        q: Float[Tensor, "B T N H"],
        k: Float[Tensor, "B T K H"],
        v: Float[Tensor, "B T K H"],
    ) -> Float[Tensor, "B T N H"]:
        self.given = q, k, v
        return v.repeat_interleave(q.shape[2] // v.shape[2], dim=2)


def test_a_cache_is_given_the_same_queries_keys_and_values(tiny_model, tiny_config, ids):
    given = []
    for model in (tiny_model, packed(tiny_model, "stored")):
        layers: list[_Seen] = [_Seen() for _ in range(tiny_config.n_layers)]
        assert isinstance(layers[0], LayerKVCache)
        with torch.inference_mode():
            model.hidden(ids, cache=layers)
        given.append([tensor for layer in layers for tensor in layer.given])
    for ours, theirs in zip(*given, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_bfloat16_stays_bfloat16(tiny_model, grammar: Grammar, ids):
    model = tiny_model.bfloat16()
    with torch.inference_mode():
        expected = model.hidden(ids)
        hidden = packed(model, "stored").hidden(ids)
        assert hidden.dtype == torch.bfloat16
        torch.testing.assert_close(hidden, expected, rtol=0.05, atol=0.05)
        assert Head(model, grammar, "stored").all(hidden[0]).dtype == torch.bfloat16


def test_a_compiler_sees_packed_weights_as_one_operation():
    generator = torch.Generator().manual_seed(0)
    linear = PackedLinear(torch.randn(8, 4, generator=generator))
    rows = torch.randn(3, 4, generator=generator)
    operation = torch.ops.pardalis.packed_linear.default
    arguments = rows, linear.number, linear.n_outputs
    torch.library.opcheck(operation, arguments)
    assert torch.equal(operation(*arguments), linear(rows))
