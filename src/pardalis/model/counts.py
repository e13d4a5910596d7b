"""How large a decoder is, how much work a token costs and what training keeps, by arithmetic."""

from dataclasses import dataclass
from typing import Literal

import torch

from pardalis.model.config import ModelConfig
from pardalis.model.decoder import Decoder

_STATISTICS_BYTES = 4  # means, deviations and log-sum-exps are kept in fp32


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Sizes of a decoder."""

    parameters: int
    parts: dict[str, int]  # parameters of embedding, attention, feed_forward, norms and head
    embedding_parameters: int  # the input table, which is looked up and not multiplied
    qk_norm_parameters: int
    train_flops_per_token: int  # forward and backward, at full causal context
    cache_bytes_per_token: int  # keys and values of all layers in fp32

    @property
    def without_qk_norm(self) -> int:
        return self.parameters - self.qk_norm_parameters


def count(config: ModelConfig) -> Counts:
    """Count on the meta device, where nothing is allocated.

    Training FLOPs per token are 6 for every multiplied parameter and 6 L D S for causal attention
    over S positions (half of the full square). What is computed twice counts once, and neither the
    embedding nor anything but matrix products counts.
    """
    with torch.device("meta"):
        model = Decoder(config)
    parts = dict.fromkeys(("embedding", "attention", "feed_forward", "norms", "head"), 0)
    matrices = qk_norm = 0
    for name, parameter in model.named_parameters():
        parts[_part(name)] += parameter.numel()
        if name.endswith("_proj.weight") or name == "head.weight":
            matrices += parameter.numel()
        if "q_norm" in name or "k_norm" in name:
            qk_norm += parameter.numel()
    attention = config.n_layers * config.d_model * config.context
    return Counts(
        parameters=sum(parts.values()),
        parts=parts,
        embedding_parameters=parts["embedding"],
        qk_norm_parameters=qk_norm,
        train_flops_per_token=6 * matrices + 6 * attention,
        cache_bytes_per_token=2 * 4 * config.n_layers * config.n_kv_heads * config.d_head,
    )


def _part(name: str) -> str:
    if "norm" in name:
        return "norms"
    return name.split(".")[3] if ".blocks." in name else name.split(".")[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """How training runs a decoder, as far as it decides what is kept for the backward pass."""

    # What is computed again: nothing, all but the results of matrix products and attention, or
    # each block from its input.
    checkpointing: Literal["none", "selective", "full"] = "none"
    number_bytes: int = 4  # of a number that a matrix product reads or writes
    stream_bytes: int = 4  # of a number of the residual stream; autocast leaves it in fp32
    compiled: bool = False  # each block by torch.compile, which fuses and computes again
    on_cpu: bool = False  # there norms go by parts, and attention document by document
    tensor: int = 1  # ranks that split heads and hidden units


def block_bytes_per_token(config: ModelConfig, how: Execution) -> int:
    """Return what one block keeps of a token between its forward and its backward pass.

    Counted are the tensors that autograd saves, for attention without stored scores (flash).
    """
    if how.checkpointing == "full":
        return config.d_model * how.stream_bytes
    if how.checkpointing == "selective":
        return _results_bytes(config, how)
    return _whole_block_bytes(config, how)


def recomputed_bytes_per_token(config: ModelConfig, how: Execution) -> int:
    """Return what a block that is computed again adds of a token to what was kept."""
    if how.checkpointing == "none":
        return 0
    if how.checkpointing == "full":
        return _whole_block_bytes(config, how) - config.d_model * how.stream_bytes
    shared = _results_bytes(config, how)
    if config.norm_placement == "pre":  # the ends of branches are kept, but nothing reads them
        shared -= 2 * config.d_model * how.number_bytes
    return _whole_block_bytes(config, how) - shared


def _whole_block_bytes(config: ModelConfig, how: Execution) -> int:
    d, d_kv = config.d_model, config.n_kv_heads * config.d_head
    autocast = how.stream_bytes != how.number_bytes
    # The stream before each branch, and a norm's input or output there.
    stream, whole = 2 * d, 2 * d
    if how.compiled and autocast:  # the middle of the block is made again from the branch
        stream, whole = d, 3 * d
    elif autocast:
        whole += 3 * d  # every matrix casts its input anew
    by_parts = how.on_cpu and not how.compiled
    if by_parts:
        stream += 2 * d  # a norm's input over its deviation
    # Queries, keys, values and what is attended; gate, up and their product.
    split = 2 * d + 2 * d_kv + 3 * config.d_ff
    if how.on_cpu:
        split += d  # what is attended, before documents are joined
    if not how.compiled:
        split += config.d_ff  # silu(gate)
    heads = config.n_heads  # log-sum-exps of attention
    if config.qk_norm == "layer_norm":
        heads += 2 * (config.n_heads + config.n_kv_heads)
        split += (1 if how.compiled else 2) * (d + d_kv)  # before the norm; before its scale
    dropped = 0
    if config.dropout:
        dropped = 2 * d * (how.number_bytes if by_parts else 1)
    return (
        stream * how.stream_bytes
        + whole * how.number_bytes
        + split // how.tensor * how.number_bytes
        + (2 + heads // how.tensor) * _STATISTICS_BYTES
        + dropped
    )


def _results_bytes(config: ModelConfig, how: Execution) -> int:
    """Return a block's input, the results of its matrix products and of attention."""
    d, d_kv = config.d_model, config.n_kv_heads * config.d_head
    whole = 2 * d * (1 if how.tensor == 1 else 2)  # a branch's end, as a partial sum and summed
    split = 2 * d + 2 * d_kv + 2 * config.d_ff
    return (
        d * how.stream_bytes
        + (whole + split // how.tensor) * how.number_bytes
        + config.n_heads // how.tensor * _STATISTICS_BYTES
    )
