"""Retrieval accuracy of generated images: how often the original is the nearest candidate.

The similarity is the cosine of EfficientNet-lite0 features (``features.py``). The rates compare
runs with each other, with chance, and with what one image for every caption would get; they are not
comparable with CLIP scores or FID.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pardalis import seeds

_MOST_CONSTANTS = 1000  # gallery images that are tried as a constant answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieval:
    """Ranks of the originals among the candidates. Means are NaN without generated images."""

    top1: float  # share of generated images whose original is strictly nearest
    ranks: tuple[int, ...]  # rank of the original for each generated image, from 1 (best)
    n_candidates: tuple[int, ...]  # per generated image, the original included
    chance: float  # mean of 1 / n_candidates
    constant: float  # top-1 of the best gallery image in the place of all generated ones


def retrieval_top1(
    generated: Float[Tensor, "N D"],
    gallery: Float[Tensor, "M D"],
    originals: Int[Tensor, " N"],
    n_candidates: int = 100,
    seed: int = 0,
    same: Sequence[Sequence[int]] = (),
) -> Retrieval:
    """Rank the original of each generated image among random other gallery images, by cosine.

    The other ``n_candidates - 1`` are sampled without replacement, or all others if they are fewer.
    A tie counts against the original, so constant features score zero.

    Args:
        generated: features of the generated images.
        gallery: features of all images of the corpus.
        originals: index in the gallery of each generated image's original.
        n_candidates: the original and the others together.
        seed: seed of the sample, which is independent for each generated image.
        same: for each generated image the gallery images that are as right as its original, such as
            copies of it; they are no candidates. Default: none.

    Raises:
        ValueError: the gallery has fewer than ``n_candidates`` images.
    """
    if len(generated) and not 1 <= n_candidates <= len(gallery):
        raise ValueError(f"{n_candidates} candidates from a gallery of {len(gallery)} images")
    gallery = F.normalize(gallery, dim=1)
    similarities = F.normalize(generated, dim=1) @ gallery.T
    chosen = torch.linspace(0, len(gallery) - 1, min(_MOST_CONSTANTS, len(gallery))).long()
    of_constants = gallery[chosen] @ gallery.T
    ranks, counts, wins = [], [], torch.zeros(len(chosen))
    for i, original in enumerate(originals.tolist()):
        equal = set(same[i] if same else ()) - {original}
        pool = np.array([j for j in range(len(gallery)) if j != original and j not in equal], int)
        generator = seeds.numpy_generator(seed, "retrieval", i)
        n_others = min(n_candidates - 1, len(pool))
        others = torch.from_numpy(pool[generator.choice(len(pool), n_others, replace=False)])
        ranks.append(1 + int((similarities[i, others] >= similarities[i, original]).sum()))
        counts.append(1 + n_others)
        wins += (of_constants[:, others] < of_constants[:, [original]]).all(dim=1)
    n = len(ranks)
    return Retrieval(
        top1=float(np.mean([rank == 1 for rank in ranks])) if n else float("nan"),
        ranks=tuple(ranks),
        n_candidates=tuple(counts),
        chance=float(np.mean([1 / count for count in counts])) if n else float("nan"),
        constant=float(wins.max()) / n if n else float("nan"),
    )


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
