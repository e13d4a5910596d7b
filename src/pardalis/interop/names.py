"""Names of the decoder's tensors in each layout: one table for both directions.

========================  ======================================================================
ours                      :class:`pardalis.model.Decoder`
transformers              Hugging Face's Chameleon; its Llama, Mistral and Qwen have the same names
meta                      the original release, and the Llama releases before it
========================  ======================================================================

``{n}`` is the index of a layer. Two things differ besides the names.

Meta's files are sharded over model-parallel ranks along the dimension ``cut``; a tensor without
``cut`` is replicated in the file of every rank. For QK-norm, every rank has one scale that its
heads share.

Meta's RoPE rotates the neighbouring pairs (2i, 2i + 1) of a head, the other layouts the pairs
(i, i + H/2). The tensors that make queries and keys are ``rotary``: their dimensions are permuted
within each head.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pardalis.model import ModelConfig, NoQKNormConfig, QKLayerNormConfig

NamingScheme = Literal["ours", "transformers", "meta"]


@dataclass(frozen=True, slots=True)
class TensorName:
    """One line of the table."""

    ours: str
    transformers: str
    meta: str
    cut: int | None = None  # dimension that Meta's ranks shard; None: replicated
    rotary: bool = False  # first dimension is permuted within heads for RoPE
    qk_norm: bool = False  # one scale per group of heads

    def is_in(self, config: ModelConfig) -> bool:
        """Return whether a model has the tensor."""
        attention = config.attention
        if self.qk_norm:
            has_shift = isinstance(attention.qk_norm, QKLayerNormConfig)
            return has_qk_norm(config) and (has_shift or not self.ours.endswith("bias"))
        if self.ours.endswith("o_proj.bias"):
            return attention.bias == "all"
        if self.ours.endswith("bias"):
            return attention.bias != "none"
        return self.ours != "head.weight" or not config.tie_embeddings

    def n_heads(self, config: ModelConfig) -> int:
        """Return the number of heads of a rotary tensor."""
        shape = config.attention
        return shape.n_heads if ".q_" in self.ours else shape.kv_heads


_OURS, _HF, _META = "trunk.blocks.{n}.", "model.layers.{n}.", "layers.{n}."


def _layer(ours: str, hf: str, meta: str, cut: int | None = None, rotary: bool = False,
           qk_norm: bool = False) -> TensorName:  # fmt: skip
    return TensorName(_OURS + ours, _HF + hf, _META + meta, cut, rotary, qk_norm)


DECODER: tuple[TensorName, ...] = (
    TensorName("embedding.weight", "model.embed_tokens.weight", "tok_embeddings.weight", cut=1),
    _layer("attention_norm.weight", "input_layernorm.weight", "attention_norm.weight"),
    _layer("attention.q_proj.weight", "self_attn.q_proj.weight", "attention.wq.weight", 0, True),
    _layer("attention.k_proj.weight", "self_attn.k_proj.weight", "attention.wk.weight", 0, True),
    _layer("attention.v_proj.weight", "self_attn.v_proj.weight", "attention.wv.weight", 0),
    _layer("attention.q_proj.bias", "self_attn.q_proj.bias", "attention.wq.bias", 0, True),
    _layer("attention.k_proj.bias", "self_attn.k_proj.bias", "attention.wk.bias", 0, True),
    _layer("attention.v_proj.bias", "self_attn.v_proj.bias", "attention.wv.bias", 0),
    _layer("attention.o_proj.bias", "self_attn.o_proj.bias", "attention.wo.bias"),
    _layer("attention.o_proj.weight", "self_attn.o_proj.weight", "attention.wo.weight", 1),
    _layer("attention.q_norm.weight", "self_attn.q_norm.weight",
           "attention.q_normalization.weight", 0, True, True),
    _layer("attention.q_norm.bias", "self_attn.q_norm.bias",
           "attention.q_normalization.bias", 0, True, True),
    _layer("attention.k_norm.weight", "self_attn.k_norm.weight",
           "attention.k_normalization.weight", 0, True, True),
    _layer("attention.k_norm.bias", "self_attn.k_norm.bias",
           "attention.k_normalization.bias", 0, True, True),
    _layer("feed_forward_norm.weight", "post_attention_layernorm.weight", "ffn_norm.weight"),
    _layer("feed_forward.gate_proj.weight", "mlp.gate_proj.weight", "feed_forward.w1.weight", 0),
    _layer("feed_forward.up_proj.weight", "mlp.up_proj.weight", "feed_forward.w3.weight", 0),
    _layer("feed_forward.down_proj.weight", "mlp.down_proj.weight", "feed_forward.w2.weight", 1),
    TensorName("trunk.norm.weight", "model.norm.weight", "norm.weight"),
    TensorName("head.weight", "lm_head.weight", "output.weight", cut=0),
)  # fmt: skip

# Hugging Face keeps Chameleon's image tokenizer in the same files, under the names of the original
# VQ-GAN, which Pardalis uses too.
TRANSFORMERS_VQ = "model.vqmodel."


def lines(config: ModelConfig) -> Iterator[tuple[TensorName, int]]:
    """Yield every tensor of a decoder: its line of the table and its layer (0 outside layers)."""
    held = [line for line in DECODER if line.is_in(config)]
    per_layer = [line for line in held if "{n}" in line.ours]
    first, *last = (line for line in held if line not in per_layer)
    yield first, 0
    for n in range(config.n_layers):
        yield from ((line, n) for line in per_layer)
    yield from ((line, 0) for line in last)


def has_qk_norm(config: ModelConfig) -> bool:
    return not isinstance(config.attention.qk_norm, NoQKNormConfig)


def rename(name: str, source: NamingScheme, target: NamingScheme) -> str:
    """Translate one name; raises KeyError if the source layout has no such tensor."""
    number = next((part for part in name.split(".") if part.isdigit()), "")
    pattern = ".".join("{n}" if part == number else part for part in name.split("."))
    for line in DECODER:
        if getattr(line, source) == pattern:
            translated: str = getattr(line, target)
            return translated.replace("{n}", number)
    raise KeyError(name)
