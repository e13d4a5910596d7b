"""Computed costs against the network: parameters, FLOPs, and stored activations."""

import pytest
import torch
from alive import Alive
from shapes import changed, decoder_config

from pardalis import config as configs
from pardalis.model import (
    PRESETS,
    Execution,
    ModelConfig,
    attention_mask,
    block_bytes_per_token,
    build,
    chameleon_7b,
    config_of,
    initialise,
    model_costs,
)
from pardalis.parallel import Layout, ParallelConfig, parallelise

ROWS, CONTEXT = 2, 64
SHAPE = decoder_config(
    vocab_size=200, context=CONTEXT, d_model=64, n_layers=2, n_heads=4, n_kv_heads=4, d_ff=160
)


@pytest.mark.parametrize("name", PRESETS)
def test_parts_sum_to_all_parameters(name):
    config = PRESETS[name]().sized(vocab_size=1000, context=64)
    counts = model_costs(config)
    assert list(counts.parts) == ["embedding", "attention", "feed_forward", "norms", "head"]
    assert sum(counts.parts.values()) == counts.parameters
    table = 1000 * config.d_model
    is_tied, n_positions = config.tie_embeddings, 64 if config.position.kind == "learned" else 0
    assert counts.parts["embedding"] == table + n_positions * config.d_model
    assert counts.parts["head"] == (0 if is_tied else table)
    n_matrices = 3 if config.feed_forward.kind == "swiglu" else 2
    matrix = config.d_model * config.feed_forward.width
    assert counts.parts["feed_forward"] == n_matrices * config.n_layers * matrix


def test_flops_per_token_of_chameleon_7b():
    """6 (6.476e9 in layers + 0.268e9 in the head) + 6 x 32 x 4096 x 4096."""
    assert model_costs(chameleon_7b().sized(65_536, 4096)).train_flops_per_token == 43_687_870_464


def alive_after_forward(config: ModelConfig, parallel: ParallelConfig, precision: str) -> int:
    model = initialise(build(config), 0).train()
    layout = Layout.alone()
    parallelise(model, layout, parallel, precision)
    ids = torch.randint(config.vocab_size, (ROWS, CONTEXT))
    documents = (torch.arange(CONTEXT) >= 40).long().expand(ROWS, -1)
    positions = torch.arange(CONTEXT).expand(ROWS, -1)
    mask = attention_mask(documents)
    with Alive(model) as alive, layout.autocast(precision):
        kept = model.hidden(ids, positions, mask)
        assert kept.requires_grad
        return alive.bytes


def measured(config: ModelConfig, parallel: ParallelConfig, precision: str = "float32") -> float:
    """Return the bytes that one more block stores per token."""
    deeper = changed(config, n_layers=config.n_layers + 1)
    more, less = (alive_after_forward(each, parallel, precision) for each in (deeper, config))
    return (more - less) / (ROWS * CONTEXT)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_placement": "reordered", "dropout": 0.1},
        {"n_kv_heads": 2, "qk_norm_groups": 1},
        {"qk_norm": "none", "d_ff": 96},
    ],
    ids=str,
)
def test_the_activation_memory_of_a_block_is_exact(changes, checkpointing):
    config = changed(SHAPE, **changes)
    how = Execution(checkpointing=checkpointing, on_cpu=True)
    parallel = ParallelConfig(activation_checkpointing=checkpointing)
    assert measured(config, parallel) == block_bytes_per_token(config, how)


def test_autocast_stores_the_residual_stream_in_float32_and_the_rest_in_16_bits():
    how = Execution(compute_bytes=2, on_cpu=True)
    found = measured(SHAPE, ParallelConfig(), "bfloat16")
    found -= 2 * (4 * 64 * 64 + 3 * 64 * 160) / (ROWS * CONTEXT)  # rounded weights of the block
    # 0.8 % more are statistics of QK-norm, which are in 16 bits too.
    assert found == pytest.approx(block_bytes_per_token(SHAPE, how), rel=0.01)


def test_tensor_parallelism_divides_activations_of_heads_and_hidden_units():
    whole, half = (
        block_bytes_per_token(SHAPE, Execution(tensor=tensor, compute_bytes=2)) for tensor in (1, 2)
    )
    stream_and_norms = 2 * 64 * 4 + 2 * 64 * 2 + 3 * 64 * 2 + 2 * 4
    assert half - stream_and_norms == (whole - stream_and_norms) / 2


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_two_trunks_store_four_blocks_for_each_layer(checkpointing):
    """With cross-attention after every layer; a cross block also stores its normalised memory."""
    how = Execution(checkpointing=checkpointing, on_cpu=True)
    values = configs.to_dict(SHAPE) | {"kind": "cross", "cross": {"interval": 1}}
    shallow, deep = (config_of(values | {"n_layers": n}) for n in (2, 3))
    assert deep.n_blocks - shallow.n_blocks == 4
    parallel = ParallelConfig(activation_checkpointing=checkpointing)
    more, less = (alive_after_forward(each, parallel, "float32") for each in (deep, shallow))
    found = (more - less) / (ROWS * CONTEXT) / 4
    bound = {"none": 0.1, "selective": 0.15, "full": 0.01}[checkpointing]
    assert found == pytest.approx(block_bytes_per_token(deep, how), rel=bound)
