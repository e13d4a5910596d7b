"""Merges by width: block matrices, concatenated tables, and what they compute."""

import functools

import pytest
import torch
from parents import ARCHITECTURES, in_memory, model_of, tokens, weights_of

from pardalis import config as configs
from pardalis.errors import ConfigError
from pardalis.fusion import WidthConfig
from pardalis.model import (
    AttentionConfig,
    LayerNormConfig,
    LearnedPositionsConfig,
    MLPConfig,
    ModelShape,
    NoQKNormConfig,
    model_costs,
)

BLOCKS = ("copy", "average_second_column", "average_off_diagonal", "block_diagonal")


@pytest.fixture(scope="module")
def pair(codec):
    """Return a function that makes two parents of an architecture."""
    return functools.cache(lambda kind="llama": [in_memory(codec, n, kind) for n in (1, 2)])


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_block_diagonal_gives_the_outputs_of_both_parents_in_its_halves(architecture, pair, codec):
    parents = pair(architecture)
    wide = model_of(WidthConfig(blocks="block_diagonal").merged(parents, 0))
    text, image = map(model_of, parents)
    ids = tokens(codec)
    close(wide.hidden(ids), torch.cat([text.hidden(ids), image.hidden(ids)], -1))
    close(wide(ids), (text(ids) + image(ids)) / 2)


@pytest.mark.parametrize(
    ("architecture", "blocks"),
    [*((each, "copy") for each in ARCHITECTURES), *(("llama", blocks) for blocks in BLOCKS[1:])],
)
@torch.no_grad()
def test_a_model_merged_with_itself_computes_what_it_computed(architecture, blocks, pair, codec):
    parent = pair(architecture)[0]
    ids = tokens(codec)
    wide = model_of(WidthConfig(blocks=blocks).merged([parent, parent], 0))
    close(wide(ids), model_of(parent)(ids))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "olmo2"])
@torch.no_grad()
def test_so_it_does_with_one_norm_over_both_halves(architecture, pair, codec):
    parent = pair(architecture)[0]
    wide = model_of(WidthConfig(norms="whole").merged([parent, parent], 0))
    assert wide.config.norm.groups == 1
    close(wide(tokens(codec)), model_of(parent)(tokens(codec)))


@pytest.mark.parametrize("blocks", BLOCKS)
def test_every_projection_is_a_block_matrix(blocks, pair):
    parents, factor = pair(), None if blocks == "block_diagonal" else 0.75
    found = weights_of(WidthConfig(blocks=blocks, factor=factor).merged(parents, 0))
    text, image = map(weights_of, parents)
    projections = [name for name in text if "_proj.weight" in name]
    assert len(projections) == 2 * 7
    for name in projections:
        t, i = ((factor or 1.0) * weights[name] for weights in (text, image))
        mean, zero = (t + i) / 2, torch.zeros_like(t)
        rows = {
            "copy": ((t, t), (i, i)),
            "average_second_column": ((t, mean), (i, mean)),
            "average_off_diagonal": ((t, mean), (mean, i)),
            "block_diagonal": ((t, zero), (zero, i)),
        }[blocks]
        expected = torch.cat([torch.cat(row, 1) for row in rows])
        assert found[name].shape == (2 * t.shape[0], 2 * t.shape[1])
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-7)


def test_tables_heads_and_vectors_stand_side_by_side(pair):
    parents = pair("gpt2")
    made = WidthConfig(head_factor=1.0).merged(parents, 0)
    found = weights_of(made)
    text, image = map(weights_of, parents)
    for name in ("embedding.weight", "position_embedding.weight", "head.weight"):
        assert torch.equal(found[name], torch.cat([text[name], image[name]], 1))
    vectors = [name for name in text if text[name].ndim == 1]
    assert vectors
    for name in vectors:
        assert torch.equal(found[name], torch.cat([text[name], image[name]]))
    old, new = parents[0].config, made.config
    assert (new.attention.n_heads, new.attention.kv_heads) == (8, 4)
    assert (new.d_head, new.d_model) == (old.d_head, 2 * old.d_model)
    assert new.vocab_size == old.vocab_size


@torch.no_grad()
def test_the_head_stays_tied_only_with_the_factor_1(pair, codec):
    parents, ids = pair("qwen3"), tokens(codec)
    mean, added = (WidthConfig(head_factor=f).merged(parents, 0) for f in (0.5, 1.0))
    assert not mean.config.tie_embeddings
    assert added.config.tie_embeddings
    close(2 * model_of(mean)(ids), model_of(added)(ids))


@torch.no_grad()
def test_a_wide_model_may_be_merged_again(pair, codec):
    how = WidthConfig(blocks="block_diagonal")
    parents = pair("olmo2")
    made = how.merged(parents, 0)
    wide = parents[0].with_tensors(made.config, made.tensors)
    wider = how.merged([wide, wide], 0)
    close(model_of(wider)(tokens(codec)), model_of(wide)(tokens(codec)))


def test_the_published_size():
    """12 (2d)² L for d = 4096 and L = 32, in the matrices of CM3Leon's architecture: 25.77e9."""
    parent = ModelShape(
        d_model=4096,
        n_layers=32,
        attention=AttentionConfig(n_heads=32, qk_norm=NoQKNormConfig()),
        feed_forward=MLPConfig(width=4 * 4096, bias=False),
        norm=LayerNormConfig(parameters="none"),
        position=LearnedPositionsConfig(),
    ).sized(vocab_size=64_520, context=4096)
    parts = model_costs(WidthConfig().config_of(parent)).parts
    assert parts["attention"] + parts["feed_forward"] == 12 * 8192**2 * 32 == 25_769_803_776
    assert parts["norms"] == 0


def test_wrong_options():
    with pytest.raises(ConfigError, match="factor does not apply to blocks = 'block_diagonal'"):
        WidthConfig(blocks="block_diagonal", factor=0.5)
    with pytest.raises(ConfigError, match=r"blocks must be one of 'copy', 'average_second_column'"):
        configs.from_dict(WidthConfig, {"blocks": "average"})
