"""SSIM and the Fréchet distance; pixels are in [-1, 1]."""

from contextlib import suppress

import torch
from jaxtyping import Float
from torch import Tensor

from pardalis.imports import optional_package

_RIDGES = (0.0, 1e-14, 1e-12, 1e-10)  # of the mean variance


def ssim(
    reconstruction: Float[Tensor, "B 3 Y X"], pixels: Float[Tensor, "B 3 Y X"]
) -> Float[Tensor, " B"]:
    """Return the structural similarity of each image, 1 for equal images (Wang et al. 2004).

    The window is the paper's Gaussian of 11 pixels; channels are averaged. As in torchmetrics, the
    image is reflected at its borders, where the paper leaves out a margin of 5 pixels.

    Raises:
        ConfigError: torchmetrics is not installed.
    """
    with optional_package("SSIM", "evaluate"):
        from torchmetrics.functional.image import structural_similarity_index_measure

    # SSIM compares means, so pixels are moved to [0, 1].
    each = structural_similarity_index_measure(
        (reconstruction + 1) / 2, (pixels + 1) / 2, data_range=1.0, reduction="none"
    )
    assert isinstance(each, Tensor), "the full image is returned only on request"
    return each.reshape(len(pixels))


class Moments:
    """Mean and covariance of feature vectors, accumulated by batch in 64 bits on the CPU."""

    def __init__(self, width: int) -> None:
        self.n = 0
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._products = torch.zeros(width, width, dtype=torch.float64)

    def add(self, features: Float[Tensor, "B D"]) -> None:
        """Add the features of a batch."""
        vectors = features.detach().double().cpu()
        self.n += len(vectors)
        self._sum += vectors.sum(0)
        self._products.addmm_(vectors.T, vectors)

    @property
    def mean(self) -> Float[Tensor, " D"]:
        return self._sum / self.n

    @property
    def covariance(self) -> Float[Tensor, "D D"]:
        """The unbiased estimate, which needs at least two vectors."""
        return (self._products - self.n * torch.outer(self.mean, self.mean)) / (self.n - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return the squared Fréchet distance of two Gaussians.

    ``|μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½)``, equation 6 of Heusel et al. 2017 (arXiv 1706.08500).
    The eigenvalues of ``Σa Σb`` are those of the symmetric ``Σa^½ Σb Σa^½``.
    NaN for fewer than two vectors.
    """
    if min(a.n, b.n) < 2:
        return float("nan")
    values, vectors = _eigen(a.covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    shared = _eigen(root @ b.covariance @ root)[0].clamp_min(0).sqrt().sum()
    traces = a.covariance.trace() + b.covariance.trace()
    distance = (a.mean - b.mean).square().sum() + traces - 2 * shared
    return max(0.0, float(distance))  # rounding can make it slightly negative


def _eigen(matrix: Float[Tensor, "D D"]) -> tuple[Float[Tensor, " D"], Float[Tensor, "D D"]]:
    """Return eigenvalues and eigenvectors of a covariance.

    LAPACK's divide and conquer fails at some matrices of a low rank, as those of few images are. A
    ridge that is lost in rounding makes it succeed.
    """
    diagonal = torch.eye(len(matrix), dtype=matrix.dtype) * matrix.diagonal().mean()
    for ridge in _RIDGES:
        with suppress(torch.linalg.LinAlgError):
            return torch.linalg.eigh(matrix + ridge * diagonal)
    return torch.linalg.eigh(matrix)
