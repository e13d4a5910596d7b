"""Quantizers: from latent vectors to codes and back, in six kinds, with their gradients.

The training state of a codebook (initialisation from data, restarts, moving averages) is in
:mod:`pardalis.vq.codebook`.

Every kind computes in the dtype of its weights and ignores autocast: in 16 bits the nearest code
would change.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pardalis.vq.config import ImageTokenizerConfig

# Distances in memory at once: 16 MB, instead of 33 MB per 512-pixel image with 8,192 codes.
_BLOCK_ELEMENTS = 1 << 22
_ENTROPY_TEMPERATURE = 0.01
_MIN_PROBABILITY = 1e-5
_FSQ_MARGIN = 1e-3  # share by which a bounded value may exceed the outermost level

# Quantized vectors with their gradient, codes and loss.
_Quantization = tuple[Float[Tensor, "M Z"], Int[Tensor, " M"], Float[Tensor, ""]]


@dataclass(frozen=True)
class Quantized:
    """Quantized latents."""

    # Entries of the codes; how gradients reach the encoder depends on the kind.
    latents: Float[Tensor, "B Z y x"]
    codes: Int[Tensor, "B G"]  # in raster order
    loss: Float[Tensor, ""]  # commitment and codebook losses


def nearest_codes(
    vectors: Float[Tensor, "M Z"],
    codebook: Float[Tensor, "N Z"],
    block_elements: int = _BLOCK_ELEMENTS,
) -> Int[Tensor, " M"]:
    """Return the index of the closest codebook entry of each vector, by Euclidean distance.

    Vectors are processed in blocks, so at most ``block_elements`` of the M x N distances exist at a
    time. The norm of a vector is the same for every code and is left out.
    """
    half_norms = codebook.square().sum(1).div(2)
    return _argmin_in_blocks(half_norms, vectors, codebook, block_elements)


def most_aligned_codes(
    vectors: Float[Tensor, "M Z"],
    codebook: Float[Tensor, "N Z"],
    block_elements: int = _BLOCK_ELEMENTS,
) -> Int[Tensor, " M"]:
    """Return the index of the entry with the largest inner product; as :func:`nearest_codes`."""
    return _argmin_in_blocks(codebook.new_zeros(len(codebook)), vectors, codebook, block_elements)


def _argmin_in_blocks(
    offsets: Float[Tensor, " N"],
    vectors: Float[Tensor, "M Z"],
    codebook: Float[Tensor, "N Z"],
    block_elements: int,
) -> Int[Tensor, " M"]:
    block_size = max(1, block_elements // codebook.shape[0])
    return torch.cat(
        [
            torch.addmm(offsets, block, codebook.T, alpha=-1).argmin(1)
            for block in torch.split(vectors, block_size)
        ]
    )


class Quantizer(nn.Module, ABC):
    """Base class: converts between feature maps and one vector per code."""

    # Whether pardalis.vq.CodebookTrainer may restart entries of ``embedding.weight``.
    restarts: ClassVar[bool] = False
    embedding: nn.Embedding  # the codebook, in kinds that have one

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.grid = config.grid

    def forward(self, latents: Float[Tensor, "B Z y x"]) -> Quantized:
        with torch.autocast(latents.device.type, enabled=False):
            quantized, codes, loss = self._quantize(self._vectors(latents))
        n, _, height, width = latents.shape
        return Quantized(
            latents=quantized.view(n, height, width, -1).permute(0, 3, 1, 2),
            codes=codes.view(n, -1),
            loss=loss,
        )

    @torch.no_grad()
    def codes(self, latents: Float[Tensor, "B Z y x"]) -> Int[Tensor, "B G"]:
        """Return the code of each latent vector, in raster order."""
        with torch.autocast(latents.device.type, enabled=False):
            return self._find(self._vectors(latents)).view(len(latents), -1)

    def latents(self, codes: Int[Tensor, "B G"]) -> Float[Tensor, "B Z y x"]:
        """Return the entries of raster-ordered codes as a feature map."""
        entries = F.embedding(codes, self.entries())
        return torch.unflatten(entries, 1, (self.grid, self.grid)).permute(0, 3, 1, 2)

    @abstractmethod
    def entries(self) -> Float[Tensor, "N Z"]:
        """Return the latent vector of each code."""

    @abstractmethod
    def _quantize(self, vectors: Float[Tensor, "M Z"]) -> _Quantization:
        """Return quantized vectors with their gradient, codes and the loss."""

    @abstractmethod
    def _find(self, vectors: Float[Tensor, "M Z"]) -> Int[Tensor, " M"]:
        """Return the code of each vector."""

    def _vectors(self, latents: Float[Tensor, "B Z y x"]) -> Float[Tensor, "M Z"]:
        vectors = latents.permute(0, 2, 3, 1).flatten(0, 2)
        return vectors.to(next(self.parameters()).dtype)


class VectorQuantizer(Quantizer):
    """Kind ``vq``: a codebook with the straight-through estimator.

    VQ-VAE (arXiv 1711.00937, eq. 3); VQ-GAN and Chameleon with ``legacy``.
    """

    restarts = True

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__(config)
        options: Any = config.quantizer
        self.beta: float = options.beta
        self.beta_weighs_codebook: bool = hasattr(options, "legacy") and options.legacy
        self.embedding = nn.Embedding(config.n_codes, config.code_width)

    def entries(self) -> Float[Tensor, "N Z"]:
        return self.embedding.weight

    def _quantize(self, vectors: Float[Tensor, "M Z"]) -> _Quantization:
        vectors, entries = self._compared(vectors), self.entries()
        codes = nearest_codes(vectors.detach(), entries.detach())
        chosen = F.embedding(codes, entries)
        return vectors + (chosen - vectors).detach(), codes, self._loss(vectors, chosen)

    def _find(self, vectors: Float[Tensor, "M Z"]) -> Int[Tensor, " M"]:
        return nearest_codes(self._compared(vectors), self.entries())

    def _compared(self, vectors: Float[Tensor, "M Z"]) -> Float[Tensor, "M Z"]:
        """Return vectors as they are compared with the entries."""
        return vectors

    def _loss(
        self, vectors: Float[Tensor, "M Z"], chosen: Float[Tensor, "M Z"]
    ) -> Float[Tensor, ""]:
        beta = self.beta
        commitment = (chosen.detach() - vectors).square().mean()
        codebook = (chosen - vectors.detach()).square().mean()
        if self.beta_weighs_codebook:
            # The original code swaps the weights, and with it all models trained with it,
            # Chameleon among them.
            return commitment + beta * codebook
        return codebook + beta * commitment


class EmaQuantizer(VectorQuantizer):
    """Kind ``ema``: as ``vq``, but each entry is the moving average of the vectors assigned to it.

    VQ-VAE (arXiv 1711.00937, appendix A.1). :class:`pardalis.vq.CodebookTrainer` moves the entries,
    not the optimizer.
    """

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__(config)
        self.embedding.weight.requires_grad_(False)

    def _loss(
        self, vectors: Float[Tensor, "M Z"], chosen: Float[Tensor, "M Z"]
    ) -> Float[Tensor, ""]:
        return self.beta * (chosen - vectors).square().mean()


class L2Quantizer(VectorQuantizer):
    """Kind ``l2``: as ``vq``, but vectors and entries have unit length.

    ViT-VQGAN (arXiv 2110.04627), with 32 dimensions, and LlamaGen (arXiv 2406.06525), with 8.
    """

    def entries(self) -> Float[Tensor, "N Z"]:
        return F.normalize(self.embedding.weight, dim=1)

    def _compared(self, vectors: Float[Tensor, "M Z"]) -> Float[Tensor, "M Z"]:
        return F.normalize(vectors, dim=1)


class SimVQ(VectorQuantizer):
    """Kind ``simvq``: entries are a learned linear map of a frozen random codebook.

    SimVQ (arXiv 2411.02038). One step moves every entry, used or not.
    """

    restarts = False  # one entry cannot be moved alone

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__(config)
        self.embedding.weight.requires_grad_(False)
        self.embedding_proj = nn.Linear(config.code_width, config.code_width)

    def entries(self) -> Float[Tensor, "N Z"]:
        return self.embedding_proj(self.embedding.weight)


class IndexBackpropagation(VectorQuantizer):
    """Kind ``ibq``: the gradient flows through the softmax over all codes to each of them.

    IBQ (arXiv 2412.02692), with the loss of its released code, where beta weights the codebook
    loss. The code of a vector has the largest inner product, not the smallest distance. Training
    keeps logits and probabilities, M x N each, and as much again for the entropy.
    """

    restarts = False

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__(config)
        options: Any = config.quantizer
        self.entropy_weight: float = options.entropy_weight

    def _quantize(self, vectors: Float[Tensor, "M Z"]) -> _Quantization:
        entries = self.entries()
        logits = vectors @ entries.T
        codes = logits.argmax(1)
        chosen = F.embedding(codes, entries)
        # The product of a straight-through one-hot with the codebook, without building the one-hot.
        mixture = logits.softmax(1) @ entries.detach()
        quantized = chosen + (mixture - mixture.detach())
        loss = (
            (quantized - vectors).square().mean()
            + (chosen.detach() - vectors).square().mean()
            + self.beta * (chosen - vectors.detach()).square().mean()
        )
        if self.entropy_weight:
            loss = loss + self.entropy_weight * _entropy_penalty(logits)
        return quantized, codes, loss

    def _find(self, vectors: Float[Tensor, "M Z"]) -> Int[Tensor, " M"]:
        return most_aligned_codes(vectors, self.entries())


def _entropy_penalty(logits: Float[Tensor, "M N"]) -> Float[Tensor, ""]:
    """Return the mean entropy of the assignments minus the entropy of their mean.

    It is low when each assignment is certain and all codes are used (MAGVIT-v2, arXiv 2310.05737).
    """
    log_probs = (logits / _ENTROPY_TEMPERATURE).log_softmax(1)
    probs = log_probs.exp()
    mean = probs.mean(0)
    # The constant keeps the gradient finite where the probability of a code vanishes.
    return (mean * (mean + _MIN_PROBABILITY).log()).sum() - (probs * log_probs).sum(1).mean()


class FiniteScalarQuantizer(Quantizer):
    """Kind ``fsq``: a few dimensions, each bounded and rounded to its levels; no codebook.

    FSQ (arXiv 2309.15505). The levels are the digits of the code, the lowest digit first. Linear
    layers project from ``code_width`` to the dimensions and back.
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

    def _quantize(self, vectors: Float[Tensor, "M Z"]) -> _Quantization:
        values = round_to_levels(self.project_in(vectors), self.levels)
        codes = codes_of_values(values.detach(), self.levels)
        return self.project_out(values), codes, vectors.new_zeros(())

    def _find(self, vectors: Float[Tensor, "M Z"]) -> Int[Tensor, " M"]:
        return codes_of_values(round_to_levels(self.project_in(vectors), self.levels), self.levels)


def round_to_levels(numbers: Float[Tensor, "M D"], levels: Sequence[int]) -> Float[Tensor, "M D"]:
    """Bound numbers by tanh and round them to levels in [-1, 1], with a straight-through gradient.

    An even number of levels has one more below 0 than above. 0 stays 0.
    """
    counts = torch.tensor(levels, device=numbers.device)
    half_range = (counts - 1) * (1 + _FSQ_MARGIN) / 2
    offset = (1 - counts % 2) / 2
    bounded = (numbers + (offset / half_range).atanh()).tanh() * half_range - offset
    return (bounded + (bounded.round() - bounded).detach()) / (counts // 2)


def codes_of_values(values: Float[Tensor, "M D"], levels: Sequence[int]) -> Int[Tensor, " M"]:
    """Return the codes of values that are rounded to levels."""
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


_KINDS: dict[str, type[Quantizer]] = {
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
