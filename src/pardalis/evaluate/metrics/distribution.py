"""Distances of two sets of images in the features of a net: Fréchet, kernel, and k neighbours.

All take matrices of features, one line for each image, and say nothing without the name of their
net: only those of Inception with the FID weights make a Fréchet distance the FID. They compute in
64 bits.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pardalis import seeds
from pardalis.evaluate.similarity import Moments, frechet_distance

_AT_ONCE = 1024  # lines of a matrix of distances


class Frechet(NamedTuple):
    """A Fréchet distance, and what speaks against it; None: nothing."""

    distance: float
    warning: str | None


def frechet(generated: Float[Tensor, "N D"], real: Float[Tensor, "M D"]) -> Frechet:
    """Return the squared Fréchet distance of Gaussians with the moments of two sets.

    ``|μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½)`` (arXiv 1706.08500, equation 6); NaN for fewer than
    two images. It is biased upward, the more the fewer images there are, so that only numbers of
    equal sets of images compare.
    """
    a, b = Moments(generated.shape[1]), Moments(real.shape[1])
    a.add(generated)
    b.add(real)
    n, width = min(len(generated), len(real)), generated.shape[1]
    warning = None
    if n <= width:
        warning = (
            f"A Fréchet distance of {n} images in {width} dimensions means little: a covariance of "
            f"so few has no full rank, and the distance falls with every image that is added; give "
            f"more than {width} images, or read the kernel distance, which has no such bias."
        )
    return Frechet(frechet_distance(a, b), warning)


class Kernel(NamedTuple):
    """The mean and the standard deviation of a kernel distance over subsets."""

    distance: float
    std: float


def kernel_distance(
    generated: Float[Tensor, "N D"],
    real: Float[Tensor, "M D"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> Kernel:
    """Return the kernel distance (KID): the unbiased squared MMD with ``(x·y/D + 1)³``.

    arXiv 1801.01401, section 3, equation 4. It may be slightly negative. Subsets are drawn without
    replacement from both sets; if neither set is larger than a subset, there is one, the whole.

    Raises:
        ValueError: a set has fewer than two images.
    """
    n = min(len(generated), len(real), subset_size)
    if n < 2:
        raise ValueError(f"a kernel distance needs two images of each kind, not {n}")
    if max(len(generated), len(real)) <= subset_size:
        return Kernel(_mmd(generated.double(), real.double()), 0.0)
    found = []
    for i in range(subsets):
        generator = seeds.numpy_generator(seed, "kernel distance", i)
        a, b = (
            each[torch.from_numpy(generator.choice(len(each), n, replace=False)).to(each.device)]
            for each in (generated, real)
        )
        found.append(_mmd(a.double(), b.double()))
    each_distance = torch.tensor(found, dtype=torch.float64)
    return Kernel(float(each_distance.mean()), float(each_distance.std(correction=0)))


def _mmd(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]) -> float:
    width = a.shape[1]
    of_a, of_b, between = ((x @ y.T / width + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = sum((k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (of_a, of_b))
    return float(within - 2 * between.mean())


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """How two sets overlap by balls of k neighbours, each from 0 to 1, density from 0.

    The ball of an image reaches to the k-th nearest of its own set.
    """

    precision: float  # generated images in a ball of a real one (arXiv 1904.06991, equation 2)
    recall: float  # real images in a ball of a generated one
    density: float  # balls of real images around a generated one, over k (arXiv 2002.09797)
    coverage: float  # real images with a generated one in their ball


def neighbours(
    generated: Float[Tensor, "N D"], real: Float[Tensor, "M D"], k: int = 5
) -> Neighbours:
    """Return precision, recall, density and coverage.

    Raises:
        ValueError: a set has no more than ``k`` images.
    """
    n = min(len(generated), len(real))
    if not 1 <= k < n:
        raise ValueError(f"{k} neighbours of each image need more than {k} images, not {n}")
    generated, real = generated.double(), real.double()
    radii, of_generated = _radii(real, k), _radii(generated, k)
    n_balls = torch.zeros(len(generated), dtype=torch.long, device=generated.device)
    recalled, covered = [], []
    for start in range(0, len(real), _AT_ONCE):
        distances = torch.cdist(real[start : start + _AT_ONCE], generated, compute_mode=_EXACT)
        in_ball = distances < radii[start : start + _AT_ONCE, None]
        n_balls += in_ball.sum(0)
        covered.append(in_ball.any(1))
        recalled.append((distances < of_generated).any(1))
    return Neighbours(
        precision=float((n_balls > 0).double().mean()),
        recall=float(torch.cat(recalled).double().mean()),
        density=float(n_balls.double().mean()) / k,
        coverage=float(torch.cat(covered).double().mean()),
    )


_EXACT = "donot_use_mm_for_euclid_dist"  # a copy is at the distance 0


def _radii(features: Float[Tensor, "N D"], k: int) -> Float[Tensor, " N"]:
    """Return the distance of each image to its k-th nearest other one."""
    parts = [
        torch.cdist(part, features, compute_mode=_EXACT).kthvalue(k + 1, dim=1).values
        for part in torch.split(features, _AT_ONCE)
    ]
    return torch.cat(parts)
