"""From latent vectors to codes and back, in six ways, and how gradients pass.

What keeps a codebook alive in training (a start from data, restarts, running means) is training
state and lives in :mod:`pardalis.vq.codebook`; here is only what a finished tokenizer needs too.

Every kind computes in the dtype of its own weights, whatever autocast says: in 16 bits near codes
change places.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pardalis.vq.config import ImageTokenizerConfig, QuantizerKind

# Distances held at once: 16 MB, instead of 33 MB for each 512-pixel image with 8,192 codes.
_BLOCK_ELEMENTS = 1 << 22
_ENTROPY_TEMPERATURE = 0.01
_LEAST_PROBABILITY = 1e-5
_BEYOND = 1e-3  # the share by which a bounded value may pass the outermost level


@dataclass(frozen=True)
class Quantized:
    """Latents snapped to their codes."""

    # What the codes decode to; the gradient reaches the encoder as the kind has it.
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
    return _lowest(half_norms, vectors, codebook, block_elements)


def most_aligned_codes(
    vectors: Float[Tensor, "M Z"],
    codebook: Float[Tensor, "N Z"],
    block_elements: int = _BLOCK_ELEMENTS,
) -> Int[Tensor, " M"]:
    """Return the index of the entry with the largest inner product; as :func:`nearest_codes`."""
    return _lowest(codebook.new_zeros(len(codebook)), vectors, codebook, block_elements)


def _lowest(
    offsets: Float[Tensor, " N"],
    vectors: Float[Tensor, "M Z"],
    codebook: Float[Tensor, "N Z"],
    block_elements: int,
) -> Int[Tensor, " M"]:
    rows = max(1, block_elements // codebook.shape[0])
    return torch.cat(
        [
            torch.addmm(offsets, block, codebook.T, alpha=-1).argmin(1)
            for block in torch.split(vectors, rows)
        ]
    )


class Quantizer(nn.Module):
    """What all kinds share: feature maps outside, one vector per code inside."""

    # Whether pardalis.vq.LiveCodebook may place the entries of ``embedding.weight`` anew.
    restarts: ClassVar[bool] = False
    embedding: nn.Embedding  # the codebook, of kinds that have one

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.config = config.quantizer
        self.grid = config.grid

    def forward(self, latents: Float[Tensor, "B Z y x"]) -> Quantized:
        with torch.autocast(latents.device.type, enabled=False):
            snapped, codes, loss = self._snap(self._vectors(latents))
        n, _, height, width = latents.shape
        return Quantized(
            latents=snapped.view(n, height, width, -1).permute(0, 3, 1, 2),
            codes=codes.view(n, -1),
            loss=loss,
        )

    @torch.no_grad()
    def codes(self, latents: Float[Tensor, "B Z y x"]) -> Int[Tensor, "B G"]:
        """Return the code of each latent vector, in raster order."""
        with torch.autocast(latents.device.type, enabled=False):
            return self._find(self._vectors(latents)).view(len(latents), -1)

    def latents(self, codes: Int[Tensor, "B G"]) -> Float[Tensor, "B Z y x"]:
        """Return what raster-ordered codes decode to, as a feature map."""
        entries = F.embedding(codes, self.entries())
        return torch.unflatten(entries, 1, (self.grid, self.grid)).permute(0, 3, 1, 2)

    def entries(self) -> Float[Tensor, "N Z"]:
        """Return what each code decodes to."""
        raise NotImplementedError

    def _snap(
        self, vectors: Float[Tensor, "M Z"]
    ) -> tuple[Float[Tensor, "M Z"], Int[Tensor, " M"], Float[Tensor, ""]]:
        """Return snapped vectors with their gradient, codes and loss."""
        raise NotImplementedError

    def _find(self, vectors: Float[Tensor, "M Z"]) -> Int[Tensor, " M"]:
        raise NotImplementedError

    def _vectors(self, latents: Float[Tensor, "B Z y x"]) -> Float[Tensor, "M Z"]:
        vectors = latents.permute(0, 2, 3, 1).flatten(0, 2)
        return vectors.to(next(self.parameters()).dtype)


class VectorQuantizer(Quantizer):
    """Kind ``vq``: a codebook and the straight-through estimate across it.

    VQ-VAE (arXiv 1711.00937, eq. 3); VQ-GAN and Chameleon with ``legacy``.
    """

    restarts = True

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.n_codes, config.code_width)

    def entries(self) -> Float[Tensor, "N Z"]:
        return self.embedding.weight

    def _snap(
        self, vectors: Float[Tensor, "M Z"]
    ) -> tuple[Float[Tensor, "M Z"], Int[Tensor, " M"], Float[Tensor, ""]]:
        vectors, entries = self._compared(vectors), self.entries()
        codes = nearest_codes(vectors.detach(), entries.detach())
        chosen = F.embedding(codes, entries)
        return vectors + (chosen - vectors).detach(), codes, self._loss(vectors, chosen)

    def _find(self, vectors: Float[Tensor, "M Z"]) -> Int[Tensor, " M"]:
        return nearest_codes(self._compared(vectors), self.entries())

    def _compared(self, vectors: Float[Tensor, "M Z"]) -> Float[Tensor, "M Z"]:
        """Return vectors as they are compared with entries."""
        return vectors

    def _loss(
        self, vectors: Float[Tensor, "M Z"], chosen: Float[Tensor, "M Z"]
    ) -> Float[Tensor, ""]:
        beta = self.config.beta
        commitment = (chosen.detach() - vectors).square().mean()
        codebook = (chosen - vectors.detach()).square().mean()
        if self.config.beta_weighs_codebook:
            # The weights are the wrong way round in the original code, and so in all models
            # trained with it, Chameleon's among them.
            return commitment + beta * codebook
        return codebook + beta * commitment


class EmaQuantizer(VectorQuantizer):
    """Kind ``ema``: as ``vq``, but each entry follows the mean of the vectors that choose it.

    VQ-VAE (arXiv 1711.00937, appendix A.1). The entries are moved by
    :class:`pardalis.vq.LiveCodebook`, not by the optimizer.
    """

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__(config)
        self.embedding.weight.requires_grad_(False)

    def _loss(
        self, vectors: Float[Tensor, "M Z"], chosen: Float[Tensor, "M Z"]
    ) -> Float[Tensor, ""]:
        return self.config.beta * (chosen - vectors).square().mean()


class L2Quantizer(VectorQuantizer):
    """Kind ``l2``: as ``vq``, but vectors and entries are compared and decoded at length 1.

    ViT-VQGAN (arXiv 2110.04627), with 32 dimensions, and LlamaGen (arXiv 2406.06525), with 8.
    """

    def entries(self) -> Float[Tensor, "N Z"]:
        return F.normalize(self.embedding.weight, dim=1)

    def _compared(self, vectors: Float[Tensor, "M Z"]) -> Float[Tensor, "M Z"]:
        return F.normalize(vectors, dim=1)


class SimVQ(VectorQuantizer):
    """Kind ``simvq``: entries are a learnt linear map of a frozen random codebook.

    SimVQ (arXiv 2411.02038). One step moves every entry, chosen or not.
    """

    restarts = False  # an entry cannot be placed without moving all

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__(config)
        self.embedding.weight.requires_grad_(False)
        self.embedding_proj = nn.Linear(config.code_width, config.code_width)

    def entries(self) -> Float[Tensor, "N Z"]:
        return self.embedding_proj(self.embedding.weight)


class IndexBackpropagation(Quantizer):
    """Kind ``ibq``: the gradient passes through the softmax over all codes to each of them.

    IBQ (arXiv 2412.02692), with the loss of its released code, where beta weighs the codebook's
    part. The code with the largest inner product is chosen, not the nearest. Training holds logits
    and probabilities, M x N each, and as much again for the entropy.
    """

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.n_codes, config.code_width)

    def entries(self) -> Float[Tensor, "N Z"]:
        return self.embedding.weight

    def _snap(
        self, vectors: Float[Tensor, "M Z"]
    ) -> tuple[Float[Tensor, "M Z"], Int[Tensor, " M"], Float[Tensor, ""]]:
        entries = self.entries()
        logits = vectors @ entries.T
        codes = logits.argmax(1)
        chosen = F.embedding(codes, entries)
        # The product of a straight-through one-hot with the codebook, without making the one-hot.
        mixture = logits.softmax(1) @ entries.detach()
        snapped = chosen + (mixture - mixture.detach())
        loss = (
            (snapped - vectors).square().mean()
            + (chosen.detach() - vectors).square().mean()
            + self.config.beta * (chosen - vectors.detach()).square().mean()
        )
        if self.config.entropy_weight:
            loss = loss + self.config.entropy_weight * _entropy_penalty(logits)
        return snapped, codes, loss

    def _find(self, vectors: Float[Tensor, "M Z"]) -> Int[Tensor, " M"]:
        return most_aligned_codes(vectors, self.entries())


def _entropy_penalty(logits: Float[Tensor, "M N"]) -> Float[Tensor, ""]:
    """Return the mean entropy of choices less the entropy of their mean.

    It is low when each choice is sure and all codes are chosen (MAGVIT-v2, arXiv 2310.05737).
    """
    log_probs = (logits / _ENTROPY_TEMPERATURE).log_softmax(1)
    probs = log_probs.exp()
    mean = probs.mean(0)
    # Where a code's probability vanishes, the logarithm's gradient must stay finite.
    return (mean * (mean + _LEAST_PROBABILITY).log()).sum() - (probs * log_probs).sum(1).mean()


class FiniteScalarQuantizer(Quantizer):
    """Kind ``fsq``: a few numbers, each bounded and rounded to one of its levels; no codebook.

    FSQ (arXiv 2309.15505). A code is the number that the levels are the digits of, the first the
    lowest. Linear maps lead from ``code_width`` to the digits and back.
    """

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__(config)
        self.n_codes = config.n_codes
        self.levels = config.fsq_levels
        self.project_in = nn.Linear(config.code_width, len(self.levels))
        self.project_out = nn.Linear(len(self.levels), config.code_width)

    def entries(self) -> Float[Tensor, "N Z"]:
        codes = torch.arange(self.n_codes, device=self.project_out.weight.device)
        values = values_of_codes(codes, self.levels).to(self.project_out.weight.dtype)
        return self.project_out(values)

    def _snap(
        self, vectors: Float[Tensor, "M Z"]
    ) -> tuple[Float[Tensor, "M Z"], Int[Tensor, " M"], Float[Tensor, ""]]:
        values = snap_to_levels(self.project_in(vectors), self.levels)
        codes = codes_of_values(values.detach(), self.levels)
        return self.project_out(values), codes, vectors.new_zeros(())

    def _find(self, vectors: Float[Tensor, "M Z"]) -> Int[Tensor, " M"]:
        return codes_of_values(snap_to_levels(self.project_in(vectors), self.levels), self.levels)


def snap_to_levels(numbers: Float[Tensor, "M D"], levels: Sequence[int]) -> Float[Tensor, "M D"]:
    """Bound numbers by tanh and round them to levels in [-1, 1]; rounding has the gradient of 1.

    Where the count of levels is even, one more lies below 0 than above. 0 stays 0.
    """
    counts = torch.tensor(levels, device=numbers.device)
    reach = (counts - 1) * (1 + _BEYOND) / 2
    offset = (1 - counts % 2) / 2
    bounded = (numbers + (offset / reach).atanh()).tanh() * reach - offset
    return (bounded + (bounded.round() - bounded).detach()) / (counts // 2)


def codes_of_values(values: Float[Tensor, "M D"], levels: Sequence[int]) -> Int[Tensor, " M"]:
    """Return the codes of values that lie on levels."""
    half = torch.tensor(levels, device=values.device) // 2
    digits = (values * half).round().long() + half
    return (digits * _place_values(levels, values.device)).sum(1)


def values_of_codes(codes: Int[Tensor, " M"], levels: Sequence[int]) -> Float[Tensor, "M D"]:
    """Return the values of codes, in [-1, 1]."""
    counts = torch.tensor(levels, device=codes.device)
    half = counts // 2
    return (codes[:, None] // _place_values(levels, codes.device) % counts - half) / half


def _place_values(levels: Sequence[int], device: torch.device) -> Int[Tensor, " D"]:
    return torch.tensor([math.prod(levels[:i]) for i in range(len(levels))], device=device)


_KINDS: dict[QuantizerKind, type[Quantizer]] = {
    "vq": VectorQuantizer,
    "ema": EmaQuantizer,
    "l2": L2Quantizer,
    "simvq": SimVQ,
    "ibq": IndexBackpropagation,
    "fsq": FiniteScalarQuantizer,
}


def build_quantizer(config: ImageTokenizerConfig) -> Quantizer:
    """Return the quantizer of the kind that a config names."""
    return _KINDS[config.quantizer.kind](config)
