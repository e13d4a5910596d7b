"""Merges by cross-attention: what the model computes at first, and what it reads."""

import functools

import pytest
import torch
from parents import ARCHITECTURES, in_memory, model_of, tokens, weights_of

from pardalis import config as configs
from pardalis.errors import ConfigError
from pardalis.fusion import CrossMergeConfig
from pardalis.model import (
    AttentionConfig,
    LayerNormConfig,
    LearnedPositionsConfig,
    MLPConfig,
    ModelShape,
    NoQKNormConfig,
    attention_mask,
    config_of,
    document_mask,
    model_costs,
)


@pytest.fixture(scope="module")
def pair(codec):
    """Return a function that makes two parents of an architecture."""

    @functools.cache
    def parents(kind="llama", n_layers=2):
        return [in_memory(codec, n, kind, n_layers=n_layers) for n in (1, 2)]

    return parents


@pytest.fixture
def trained(pair):
    """A merged model whose every parameter has changed, so that a wrong order would show."""
    model = model_of(CrossMergeConfig(interval=1).merged(pair(), 0)).float()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def rows_by_modality(weights, vocabulary):
    """Return text rows of the first and image rows of the second table."""
    text, image = weights
    table = text.clone()
    for i in (*vocabulary.image, vocabulary.begin_image_id, vocabulary.end_image_id):
        table[i] = image[i]
    return table


@torch.no_grad()
def naive(parents, codec, ids, share):
    """Return the logits of two decoders with shared tables whose final states are combined."""
    models = [model_of(parent) for parent in parents]
    tables = [model.embedding.weight for model in models]
    embedding = rows_by_modality(tables, codec.vocabulary)
    head = rows_by_modality([model.head.weight for model in models], codec.vocabulary)
    for model in models:
        model.embedding.weight.copy_(embedding)
    text, image = (model.hidden(ids) for model in models)
    return (share * text + (1 - share) * image) @ head.T


@pytest.mark.parametrize(
    ("architecture", "share"), [*((each, 0.5) for each in ARCHITECTURES), ("llama", 0.25)]
)
@torch.no_grad()
def test_at_first_it_is_the_stated_combination_of_the_parents(architecture, share, pair, codec):
    how = CrossMergeConfig(text_share=share, interval=1)
    merged = model_of(how.merged(pair(architecture), 0))
    ids = tokens(codec)
    close(merged(ids), naive(pair(architecture), codec, ids, share))


@pytest.mark.parametrize("share", [0.0, 1.0])
@torch.no_grad()
def test_at_first_it_may_be_one_of_the_parents(share, pair, codec):
    """The parent that the share names, but for the rows of tokens of the other's modality."""
    parents = pair()
    merged = model_of(CrossMergeConfig(text_share=share).merged(parents, 0))
    own = list(codec.vocabulary.text if share else codec.vocabulary.image)
    ids = torch.tensor([own[:12]])
    close(merged(ids)[..., own], model_of(parents[0 if share else 1])(ids)[..., own])


@pytest.mark.parametrize(("n_layers", "interval"), [(5, 1), (5, 2), (5, 3), (5, 5), (5, 6)])
def test_every_kth_layer_has_a_pair_of_cross_attentions(n_layers, interval, pair):
    model = model_of(CrossMergeConfig(interval=interval).merged(pair("llama", n_layers), 0))
    trunk = model.trunk
    assert len(trunk.text_cross_blocks) == len(trunk.image_cross_blocks) == n_layers // interval
    assert len(model.cache_spec()) == 2 * (n_layers + n_layers // interval)


def test_parents_are_whole_and_tables_are_shared(pair, codec):
    parents = pair("gpt2")
    found = weights_of(CrossMergeConfig().merged(parents, 0))
    text, image = map(weights_of, parents)
    for name in text:
        if name.startswith("trunk."):
            assert torch.equal(found[name.replace("trunk.", "trunk.text.", 1)], text[name])
            assert torch.equal(found[name.replace("trunk.", "trunk.image.", 1)], image[name])
        elif name.startswith("position_embedding"):
            assert torch.equal(found[f"text_{name}"], text[name])
            assert torch.equal(found[f"image_{name}"], image[name])
        else:
            expected = rows_by_modality((text[name], image[name]), codec.vocabulary)
            assert torch.equal(found[name], expected)
    assert found["trunk.combine.weight"].shape == (16, 32)


@torch.no_grad()
def test_the_cross_attention_reads_the_corresponding_layer_of_the_other(trained, codec):
    """A step of each trunk, written out: both read what the other was before."""
    model, ids = trained, tokens(codec)
    positions = torch.arange(ids.shape[1]).expand(ids.shape)
    trunk = model.trunk
    rotation = trunk.text.rotation(positions)
    text = image = model.embedding(ids)
    for i in range(2):
        text = trunk.text.blocks[i](text, rotation, None, None)
        image = trunk.image.blocks[i](image, rotation, None, None)
        streams = []
        for own, other, blocks in (
            (text, image, trunk.text_cross_blocks),
            (image, text, trunk.image_cross_blocks),
        ):
            block = blocks[i]
            memory = block.memory_norm(other)
            own = own + block.attention(block.attention_norm(own), rotation, None, None, memory)
            streams.append(own + block.feed_forward(block.feed_forward_norm(own)))
        text, image = streams
    states = torch.cat([trunk.text.norm(text), trunk.image.norm(image)], -1)
    assert torch.equal(model(ids), model.head(trunk.combine(states)))


@torch.no_grad()
def test_no_logit_depends_on_a_later_token(trained, codec):
    """Through neither trunk: with one of them cut off at the end, too."""
    ids = tokens(codec)
    changed = ids.clone()
    changed[:, 12] = (changed[:, 12] + 1) % codec.vocabulary.size
    width = trained.config.d_model
    for kept in (slice(0, 2 * width), slice(0, width), slice(width, 2 * width)):
        combine = trained.trunk.combine.weight.clone()
        mask = torch.zeros_like(combine)
        mask[:, kept] = 1
        trained.trunk.combine.weight.mul_(mask)
        before, after = trained(ids), trained(changed)
        trained.trunk.combine.weight.copy_(combine)
        assert torch.equal(before[:, :12], after[:, :12])
        assert not torch.allclose(before[:, 12:], after[:, 12:])


@torch.no_grad()
def test_documents_of_a_row_do_not_see_each_other(trained, codec):
    ids = tokens(codec)
    documents = (torch.arange(20) >= 8).long().expand(ids.shape)
    positions = torch.cat([torch.arange(8), torch.arange(12)]).expand(ids.shape)
    packed = trained(ids, positions, document_mask(documents))
    apart = torch.cat([trained(ids[:, :8]), trained(ids[:, 8:])], 1)
    torch.testing.assert_close(packed, apart, rtol=1e-4, atol=1e-5)
    by_lengths = trained(ids, positions, attention_mask(documents))
    torch.testing.assert_close(by_lengths, apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("outputs", ["zero", "drawn"])
def test_gradients_reach_both_parents_and_what_is_new(outputs, pair, codec):
    model = model_of(CrossMergeConfig(outputs=outputs, interval=1).merged(pair(), 0))
    ids = tokens(codec)
    logits = model(ids)[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).backward()
    without = {name for name, p in model.named_parameters() if not p.grad.any()}
    new = {name for name in without if "_cross_blocks." in name}
    assert without == new  # both trunks have gradients
    ends = {name for name, _ in model.named_parameters() if is_end(name)}
    assert not without & ends
    assert bool(new) == (outputs == "zero")  # behind a matrix of 0, as in the first step of LoRA


def is_end(name):
    return "_cross_blocks." in name and name.endswith(("o_proj.weight", "down_proj.weight"))


def test_copied_projections_are_those_of_the_layer_before(pair):
    parents = pair("qwen3", 4)
    how = CrossMergeConfig(projections="copied")
    found = weights_of(how.merged(parents, 0))
    text, image = map(weights_of, parents)
    for number, layer in ((0, 1), (1, 3)):
        block, source = f"trunk.text_cross_blocks.{number}.", f"trunk.blocks.{layer}."
        for name in ("attention.q_proj", "attention.q_norm", "attention_norm", "feed_forward_norm",
                     "feed_forward.up_proj"):  # fmt: skip
            assert torch.equal(found[f"{block}{name}.weight"], text[f"{source}{name}.weight"])
        for name in ("attention.k_proj", "attention.v_proj", "attention.k_norm"):
            assert torch.equal(found[f"{block}{name}.weight"], image[f"{source}{name}.weight"])
        memory = found[f"{block}memory_norm.weight"]
        assert torch.equal(memory, image[f"{source}attention_norm.weight"])
        for name in ("attention.o_proj", "feed_forward.down_proj"):
            assert not found[f"{block}{name}.weight"].any()


def test_what_is_drawn_depends_on_the_seed(pair):
    how = CrossMergeConfig()
    one, again, other = (weights_of(how.merged(pair(), seed)) for seed in (0, 0, 1))
    name = "trunk.text_cross_blocks.0.attention.q_proj.weight"
    assert torch.equal(one[name], again[name])
    assert not torch.equal(one[name], other[name])
    assert 0.15 < one[name].std() < 0.25  # init.std
    twin = one["trunk.image_cross_blocks.0.attention.q_proj.weight"]
    assert not torch.equal(one[name], twin)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("projections", ["drawn", "copied"])
def test_parents_of_two_dtypes_give_the_one_that_holds_both(order, projections, pair):
    text, image = pair()
    short = text.with_tensors(
        text.config, {name: t.to(torch.bfloat16) for name, t in text.tensors.items()}
    )
    how = CrossMergeConfig(projections=projections)
    found = weights_of(how.merged([short, image][::order], 0))
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    found = weights_of(how.merged([short, short], 0))
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}


def test_a_config_survives_its_file(pair):
    config = CrossMergeConfig(interval=1, feed_forward=False).merged(pair(), 0).config
    assert config_of(configs.to_dict(config)) == config
    assert config.summary.startswith("two trunks of 2 layers, width 16, cross-attention after")


def test_the_published_size():
    """19e9 in matrices, of cross-attention with feed-forward after every second layer."""
    parent = ModelShape(
        d_model=4096,
        n_layers=32,
        attention=AttentionConfig(n_heads=32, qk_norm=NoQKNormConfig()),
        feed_forward=MLPConfig(width=4 * 4096, bias=False),
        norm=LayerNormConfig(parameters="none"),
        position=LearnedPositionsConfig(),
    ).sized(vocab_size=64_520, context=4096)
    parts = model_costs(CrossMergeConfig().config_of(parent)).parts
    assert parts["attention"] + parts["feed_forward"] == 19_327_352_832
    alone = CrossMergeConfig(interval=1, feed_forward=False).config_of(parent)
    parts = model_costs(alone).parts
    assert parts["attention"] + parts["feed_forward"] == 17_179_869_184


def test_a_trunk_of_two_trunks_is_refused(pair):
    parents = pair()
    made = CrossMergeConfig().merged(parents, 0)
    cross = parents[0].with_tensors(made.config, made.tensors)
    with pytest.raises(ConfigError, match="'cross' merges decoders, and parent-1 is of kind 'cr"):
        CrossMergeConfig().merged([cross, cross], 0)
