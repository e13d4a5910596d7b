"""NEFTune: noise on the embeddings of training (arXiv 2310.05914)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pardalis.batch import Batch
from pardalis.errors import ConfigError
from pardalis.model import LanguageModel


def check_has_embedding(model: LanguageModel) -> None:
    """Raise ConfigError for a model of a kind without a module ``embedding``."""
    if not isinstance(getattr(model, "embedding", None), nn.Module):
        raise ConfigError(
            f"training.neftune_alpha needs a model with an `embedding`, and this is a "
            f"{type(model).__name__}; leave it out."
        )


@contextmanager
def noisy_embeddings(
    model: LanguageModel, batch: Batch, alpha: float, seeds: Sequence[int]
) -> Iterator[None]:
    """Add noise to the output of the embedding in forward passes of a batch inside the block.

    It is uniform in [-1, 1] times alpha / sqrt(L D), for L tokens in the document of a token, so
    packing changes nothing. An objective that reads rows of another shape than the batch gets the
    noise of rows of one document each.

    Args:
        seeds: that of the noise of each row, which depends neither on micro-batches nor on ranks.
    """
    scales = alpha * document_lengths(batch).clamp(min=1).float().rsqrt()

    def add(module: nn.Module, args: Any, embedded: Float[Tensor, "B T D"]) -> Tensor:
        n_rows, n_tokens, width = embedded.shape
        scale = scales[..., None] * width**-0.5
        if (n_rows, n_tokens) != batch.ids.shape:
            scale = torch.full_like(embedded[..., :1], alpha * (n_tokens * width) ** -0.5)
        noise = torch.empty_like(embedded, dtype=torch.float32, requires_grad=False)
        for number, row in enumerate(noise):
            generator = torch.Generator(row.device).manual_seed(seeds[number % len(seeds)])
            row.uniform_(-1, 1, generator=generator)
        return embedded + (noise * scale).to(embedded.dtype)

    embedding: Any = model.embedding
    handle = embedding.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def document_lengths(batch: Batch) -> Float[Tensor, "B T"]:
    """Return the number of tokens in the document of each token, within its row."""
    documents = batch.documents + 1  # padding is document 0
    counts = torch.zeros(
        len(documents), int(documents.shape[1]) + 1, device=documents.device
    ).scatter_add_(1, documents, torch.ones_like(documents, dtype=torch.float32))
    return counts.gather(1, documents)
