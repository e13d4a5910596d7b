"""Guidance of image codes: what the context says, against streams that know less of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from pardalis.inference.request import Contrastive, Guidance, ImageGuidance
from pardalis.inference.sampling import NEVER, kth_largest, power_of_two


@dataclass(frozen=True, slots=True)
class Guide:
    """How each row is guided: its numbers, and which of the two forms they are for."""

    text: Float[Tensor, " B"]
    image: Float[Tensor, " B"]
    alpha: Float[Tensor, " B"]
    k: Int64[Tensor, " B"]
    extrapolates: Bool[Tensor, " B"]
    contrasts: Bool[Tensor, " B"]

    @staticmethod
    def of(
        guides: Sequence[ImageGuidance | None], device: torch.device | str | None = None
    ) -> "Guide":
        """Put the guides of some rows on a device; None leaves a row as it is."""

        def numbers(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        forms = [g if isinstance(g, Guidance) else Guidance() for g in guides]
        contrasts = [g if isinstance(g, Contrastive) else None for g in guides]
        return Guide(
            text=numbers([f.text for f in forms]),
            image=numbers([1.0 if f.image is None else f.image for f in forms]),
            alpha=numbers([c.alpha if c else 0.0 for c in contrasts]),
            k=torch.tensor([c.k if c else 1 for c in contrasts], device=device),
            extrapolates=torch.tensor([f != Guidance() for f in forms], device=device),
            contrasts=torch.tensor([c is not None for c in contrasts], device=device),
        )


def largest_k(guides: Iterable[ImageGuidance | None]) -> int:
    """Return the largest k of the contrastive ones, as a power of two; 0 when there is none."""
    return power_of_two(max((g.k for g in guides if isinstance(g, Contrastive)), default=0))


def guided(
    logits: Float[Tensor, "B n"],
    alone: Float[Tensor, "B n"],
    images: Float[Tensor, "B n"] | None,
    guide: Guide,
    *,
    largest_k: int,
) -> Float[Tensor, "B n"]:
    """Return the logits of image ids that guidance asks for, each row in its own form.

    Args:
        logits: of the whole contexts.
        alone: of ``bos`` and the open image; anything in a row without guidance.
        images: of all images so far without text. In a row that has no such stream they are
            those of ``alone``, as everywhere when left out.
        largest_k: from :func:`largest_k` of the rows' guides.
    """
    if images is None:
        images = alone
    base = alone + guide.image[:, None] * (images - alone)
    extrapolated = base + guide.text[:, None] * (logits - images)
    chosen = torch.where(guide.extrapolates[:, None], extrapolated, logits)
    if not largest_k:
        return chosen
    kept_from = kth_largest(logits, guide.k, largest_k) + guide.alpha.log()[:, None]
    contrasted = (logits - alone).add_((kept_from - logits).gt_(0), alpha=NEVER)
    return torch.where(guide.contrasts[:, None], contrasted, chosen)
