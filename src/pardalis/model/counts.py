"""How large a decoder is and how much work a token costs, by arithmetic."""

from dataclasses import dataclass

import torch

from pardalis.model.config import ModelConfig
from pardalis.model.decoder import Decoder


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Sizes of a decoder."""

    parameters: int
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
    over S positions (half of the full square).
    """
    with torch.device("meta"):
        model = Decoder(config)
    parameters = sum(p.numel() for p in model.parameters())
    embedding = model.embedding.weight.numel()
    qk_norm = sum(p.numel() for n, p in model.named_parameters() if "q_norm" in n or "k_norm" in n)
    matrices = sum(p.numel() for n, p in model.named_parameters() if n.endswith("_proj.weight"))
    matrices += model.head.weight.numel()
    attention = config.n_layers * config.d_model * config.context
    return Counts(
        parameters=parameters,
        embedding_parameters=embedding,
        qk_norm_parameters=qk_norm,
        train_flops_per_token=6 * matrices + 6 * attention,
        cache_bytes_per_token=2 * 4 * config.n_layers * config.n_kv_heads * config.d_head,
    )
