"""Parameters, FLOPs and activation memory of a decoder, computed from its config."""

from dataclasses import dataclass
from typing import Literal

import torch

from pardalis.model.config import ModelConfig, NoQKNormConfig, QKLayerNormConfig
from pardalis.model.kinds import build
from pardalis.model.parameters import PARTS
from pardalis.parameters import by_part, specs_of

_STATISTICS_BYTES = 4  # means, deviations and log-sum-exps are stored in fp32


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCosts:
    """Parameters, compute and cache size of a decoder."""

    parameters: int
    # Parameters of embedding, attention, feed_forward, norms and head. A tied head has none.
    parts: dict[str, int]
    embedding_parameters: int  # input table, which is a lookup without FLOPs
    head_parameters: int  # the matrix that makes logits, which may be the embedding's
    qk_norm_parameters: int
    train_flops_per_token: int  # forward and backward, at full context
    cache_bytes_per_token: int  # keys and values of all layers in fp32

    @property
    def without_qk_norm(self) -> int:
        return self.parameters - self.qk_norm_parameters


def model_costs(config: ModelConfig) -> ModelCosts:
    """Return the costs of a decoder; nothing is allocated.

    Training FLOPs per token are 6 for every parameter of a matrix product and 6 L D S for causal
    attention over S positions (half of the full square). Recomputation is not counted, nor is
    anything but matrix products.
    """
    with torch.device("meta"):
        model = build(config)
    specs, named = specs_of(model), by_part(model, PARTS)
    parts = {part: sum(p.numel() for _, p in members) for part, members in named.items()}
    head = model.head.weight
    multiplied = {id(head): head.numel()}  # tied, it is an embedding, and multiplied all the same
    for name, parameter in model.named_parameters():
        if specs[name].decays:
            multiplied[id(parameter)] = parameter.numel()
    qk_norm = sum(p.numel() for name, p in model.named_parameters() if specs[name].split == "heads")
    d_attention = config.attention.n_heads * config.d_head
    layers = model.cache_spec()
    attention = len(layers) * d_attention * config.context
    cached = sum(2 * layer.n_kv_heads * layer.d_head for layer in layers)
    return ModelCosts(
        parameters=sum(parts.values()),
        parts=parts,
        embedding_parameters=parts["embedding"],
        head_parameters=head.numel(),
        qk_norm_parameters=qk_norm,
        train_flops_per_token=6 * sum(multiplied.values()) + 6 * attention,
        cache_bytes_per_token=4 * cached,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """How training executes a decoder, as far as it decides the activation memory."""

    # What is recomputed: nothing; all but the results of matrix products and attention; or each
    # block from its input.
    checkpointing: Literal["none", "selective", "full"] = "none"
    compute_bytes: int = 4  # bytes of an element of a matrix product
    residual_bytes: int = 4  # bytes of an element of the residual stream; fp32 under autocast
    compiled: bool = False  # blocks by torch.compile, which fuses and recomputes
    on_cpu: bool = False  # norms are then not fused, and attention is per document
    tensor: int = 1  # tensor-parallel ranks


def block_bytes_per_token(config: ModelConfig, how: Execution) -> int:
    """Return the activation memory of one block between its forward and backward pass.

    This counts the tensors that autograd saves, with flash attention, which stores no scores.
    """
    if how.checkpointing == "full":
        return config.d_model * how.residual_bytes
    if how.checkpointing == "selective":
        return _results_bytes(config, how)
    return _whole_block_bytes(config, how)


def recomputed_bytes_per_token(config: ModelConfig, how: Execution) -> int:
    """Return the activation memory that recomputing a block adds to what was kept."""
    if how.checkpointing == "none":
        return 0
    if how.checkpointing == "full":
        return _whole_block_bytes(config, how) - config.d_model * how.residual_bytes
    shared = _results_bytes(config, how)
    if config.residual.placement == "pre":  # outputs of branches are kept, but not read
        shared -= 2 * config.d_model * how.compute_bytes
    return _whole_block_bytes(config, how) - shared


def _whole_block_bytes(config: ModelConfig, how: Execution) -> int:
    d, d_q, d_kv = config.d_model, *_attention_widths(config)
    shape, hidden = config.attention, config.feed_forward
    autocast = how.residual_bytes != how.compute_bytes
    # The residual stream before each branch, and the input or output of its norm.
    stream, whole = 2 * d, 2 * d
    if how.compiled and autocast:  # the middle of the block is recomputed
        stream, whole = d, 3 * d
    elif autocast:
        whole += 3 * d  # every matrix product casts its input
    by_parts = how.on_cpu and not how.compiled
    if by_parts:
        stream += 2 * d  # a norm's input over its deviation
    # Queries, keys, values and the output of attention; the hidden vectors of the feed-forward.
    split = 2 * d_q + 2 * d_kv + hidden.saved_vectors(how.compiled) * hidden.width
    if how.on_cpu:
        split += d_q  # outputs of attention, before documents are concatenated
    heads = shape.n_heads  # log-sum-exps of attention
    if not isinstance(shape.qk_norm, NoQKNormConfig):
        statistics = 2 if isinstance(shape.qk_norm, QKLayerNormConfig) else 1
        heads += statistics * (shape.n_heads + shape.kv_heads)
        split += (1 if how.compiled else 2) * (d_q + d_kv)  # input of the norm; input of its scale
    dropped = 0
    if config.dropout:
        dropped = 2 * d * (how.compute_bytes if by_parts else 1)
    return (
        stream * how.residual_bytes
        + whole * how.compute_bytes
        + split // how.tensor * how.compute_bytes
        + (2 + heads // how.tensor) * _STATISTICS_BYTES
        + dropped
    )


def _results_bytes(config: ModelConfig, how: Execution) -> int:
    """Return a block's input, the results of its matrix products and of attention."""
    d, d_q, d_kv = config.d_model, *_attention_widths(config)
    hidden = config.feed_forward
    whole = 2 * d * (1 if how.tensor == 1 else 2)  # a branch's output, before and after the sum
    split = 2 * d_q + 2 * d_kv + hidden.n_products * hidden.width
    return (
        d * how.residual_bytes
        + (whole + split // how.tensor) * how.compute_bytes
        + config.attention.n_heads // how.tensor * _STATISTICS_BYTES
    )


def _attention_widths(config: ModelConfig) -> tuple[int, int]:
    """Return the widths of queries and of keys."""
    shape = config.attention
    return shape.n_heads * config.d_head, shape.kv_heads * config.d_head
