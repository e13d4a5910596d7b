"""Retrieval accuracy of generated images: how often the original is the nearest candidate.

The similarity is the cosine of EfficientNet-lite0 features (``features.py``). The rates compare
runs with each other and with chance; they are not comparable with CLIP scores or FID.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pardalis import seeds


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieval:
    """Ranks of the originals among the candidates."""

    top1: float  # share of generated images whose original is strictly nearest; NaN without any
    ranks: tuple[int, ...]  # rank of the original for each generated image, from 1 (best)
    n_candidates: int  # per generated image, the original included; chance is 1 / n_candidates


def retrieval_top1(
    generated: Float[Tensor, "N D"],
    gallery: Float[Tensor, "M D"],
    originals: Int[Tensor, " N"],
    n_candidates: int = 100,
    seed: int = 0,
) -> Retrieval:
    """Rank the original of each generated image among random other gallery images, by cosine.

    The other ``n_candidates - 1`` are sampled without replacement. A tie counts against the
    original, so constant features score zero.

    Args:
        generated: features of the generated images.
        gallery: features of all images of the corpus.
        originals: index in the gallery of each generated image's original.
        n_candidates: the original and the others together.
        seed: seed of the sample, which is independent for each generated image.

    Raises:
        ValueError: the gallery has fewer than ``n_candidates`` images.
    """
    if len(generated) and not 1 <= n_candidates <= len(gallery):
        raise ValueError(f"{n_candidates} candidates from a gallery of {len(gallery)} images")
    similarities = F.normalize(generated, dim=1) @ F.normalize(gallery, dim=1).T
    ranks = []
    for i, original in enumerate(originals.tolist()):
        generator = seeds.numpy_generator(seed, "retrieval", i)
        chosen = generator.choice(len(gallery) - 1, n_candidates - 1, replace=False)
        others = torch.from_numpy(chosen + (chosen >= original))  # skips the original
        ranks.append(1 + int((similarities[i, others] >= similarities[i, original]).sum()))
    top1 = float(np.mean([rank == 1 for rank in ranks])) if ranks else float("nan")
    return Retrieval(top1=top1, ranks=tuple(ranks), n_candidates=n_candidates)


def nearest(
    generated: Float[Tensor, "N D"], gallery: Float[Tensor, "M D"]
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """Return the index and cosine of the most similar gallery image of each generated image.

    Raises:
        ValueError: the gallery is empty.
    """
    if not len(gallery):
        raise ValueError("an empty gallery has no nearest image")
    similarities, indices = (F.normalize(generated, dim=1) @ F.normalize(gallery, dim=1).T).max(
        dim=1
    )
    return indices, similarities
