"""Whether a drawn image shows what was asked: it must be nearer its own original than others are.

Features come from EfficientNet-lite0 (``features.py``) and likeness is their cosine, so the rates
compare runs of this project with each other and with chance; they are not CLIP or FID numbers.
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
    """How often the right image came first among the candidates."""

    # Share of drawn images whose right image is strictly nearest; NaN when none was drawn.
    top1: float
    ranks: tuple[int, ...]  # place of the right image for each drawn one, 1 (best) and up
    n_candidates: int  # for each drawn image, the right one included; chance is one in as many


def retrieval_top1(
    drawn: Float[Tensor, "N D"],
    gallery: Float[Tensor, "M D"],
    originals: Int[Tensor, " N"],
    n_candidates: int = 100,
    seed: int = 0,
) -> Retrieval:
    """Rank each drawn image's right image among random others of the gallery, by cosine.

    The other ``n_candidates - 1`` are drawn without replacement and are never the right one. A tie
    counts against the right image, so features that tell nothing apart score zero, not one.

    Args:
        drawn: features of the drawn images.
        gallery: features of all images of the corpus.
        originals: for each drawn image the index of its right image in the gallery.
        n_candidates: the right image and the others together.
        seed: chooses the others; each drawn image has its own draw.

    Raises:
        ValueError: the gallery has fewer than ``n_candidates`` images.
    """
    if len(drawn) and not 1 <= n_candidates <= len(gallery):
        raise ValueError(f"{n_candidates} candidates from a gallery of {len(gallery)} images")
    similarities = F.normalize(drawn, dim=1) @ F.normalize(gallery, dim=1).T
    ranks = []
    for i, right in enumerate(originals.tolist()):
        generator = seeds.numpy_generator(seed, "retrieval", i)
        chosen = generator.choice(len(gallery) - 1, n_candidates - 1, replace=False)
        others = torch.from_numpy(chosen + (chosen >= right))  # steps over the right one
        ranks.append(1 + int((similarities[i, others] >= similarities[i, right]).sum()))
    top1 = float(np.mean([rank == 1 for rank in ranks])) if ranks else float("nan")
    return Retrieval(top1=top1, ranks=tuple(ranks), n_candidates=n_candidates)


def nearest(
    drawn: Float[Tensor, "N D"], gallery: Float[Tensor, "M D"]
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """Return for each drawn image the most similar one of the gallery: its index and cosine.

    Raises:
        ValueError: the gallery is empty.
    """
    if not len(gallery):
        raise ValueError("there is nothing nearest in an empty gallery")
    similarities, indices = (F.normalize(drawn, dim=1) @ F.normalize(gallery, dim=1).T).max(dim=1)
    return indices, similarities
