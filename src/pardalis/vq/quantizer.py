"""From latent vectors to codes and back: the nearest code, and how gradients pass it.

What keeps a codebook alive in training (a start from data, restarts, running means) is training
state and lives in :mod:`pardalis.vq.codebook`; here is only what a finished tokenizer needs too.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pardalis.vq.config import ImageTokenizerConfig

# Distances held at once: 16 MB, instead of 33 MB for each 512-pixel picture with 8,192 codes.
_BLOCK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Quantized:
    """Latents snapped to their nearest codes; of length 1, if the quantizer normalises."""

    # Values of the codebook; the gradient reaches the encoder as if nothing had been snapped.
    latents: Float[Tensor, "B Z y x"]
    codes: Int[Tensor, "B G"]  # in raster order
    loss: Float[Tensor, ""]  # what draws latents and codes together


def nearest_codes(
    vectors: Float[Tensor, "M Z"],
    codebook: Float[Tensor, "N Z"],
    block_elements: int = _BLOCK_ELEMENTS,
) -> Int[Tensor, " M"]:
    """Return the index of the closest codebook entry of each vector, by Euclidean distance.

    The vectors are taken in blocks, so at most ``block_elements`` of the M x N distances exist at
    a time. The vector's own norm is the same for every code and is left out.
    """
    half_norms = codebook.square().sum(1).div(2)
    rows = max(1, block_elements // codebook.shape[0])
    return torch.cat(
        [
            torch.addmm(half_norms, block, codebook.T, alpha=-1).argmin(1)
            for block in torch.split(vectors, rows)
        ]
    )


class VectorQuantizer(nn.Module):
    """A codebook and the straight-through estimate across it (VQ-VAE, arXiv 1711.00937)."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.config = config.quantizer
        self.grid = config.grid
        self.embedding = nn.Embedding(config.n_codes, config.code_width)
        # An EMA codebook is moved by LiveCodebook, not by the optimizer.
        self.embedding.weight.requires_grad_(config.quantizer.kind == "gradient")

    def forward(self, latents: Float[Tensor, "B Z y x"]) -> Quantized:
        codes = self.codes(latents)
        latents = self._normalised(latents)
        quantized = self.latents(codes)
        return Quantized(
            latents=latents + (quantized - latents).detach(),
            codes=codes,
            loss=self._loss(latents, quantized),
        )

    def codes(self, latents: Float[Tensor, "B Z y x"]) -> Int[Tensor, "B G"]:
        """Return the nearest code of each latent vector, in raster order."""
        vectors = self._normalised(latents.detach()).permute(0, 2, 3, 1).flatten(0, 2)
        codebook = self._normalised(self.embedding.weight.detach())
        return nearest_codes(vectors, codebook).view(len(latents), -1)

    def latents(self, codes: Int[Tensor, "B G"]) -> Float[Tensor, "B Z y x"]:
        """Return the codebook entries of raster-ordered codes, as a feature map."""
        entries = self.embedding(codes).unflatten(1, (self.grid, self.grid))
        return self._normalised(entries.permute(0, 3, 1, 2))

    def _normalised(self, vectors: Float[Tensor, "A Z *rest"]) -> Float[Tensor, "A Z *rest"]:
        """Scale vectors, which lie along the second axis, to length 1, if the config says so."""
        return F.normalize(vectors, dim=1) if self.config.normalise else vectors

    def _loss(
        self, latents: Float[Tensor, "B Z y x"], quantized: Float[Tensor, "B Z y x"]
    ) -> Float[Tensor, ""]:
        beta = self.config.beta
        commitment = (quantized.detach() - latents).square().mean()
        if self.config.kind == "ema":
            return beta * commitment
        codebook = (quantized - latents.detach()).square().mean()
        if self.config.legacy:
            # The weights are the wrong way round in the original code, and so in all models
            # trained with it, Chameleon's among them.
            return commitment + beta * codebook
        return codebook + beta * commitment
