"""Guidance of image codes: classifier-free guidance and contrastive decoding."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from pardalis.inference.generation import Contrastive, Guidance, ImageGuidance
from pardalis.inference.sampling import EXCLUDED, kth_largest, power_of_two


@dataclass(frozen=True, slots=True)
class GuidanceTensors:
    """The guidance of each sequence of a batch: its kind and its parameters."""

    text: Float[Tensor, " B"]
    image: Float[Tensor, " B"]
    alpha: Float[Tensor, " B"]
    k: Int64[Tensor, " B"]
    is_classifier_free: Bool[Tensor, " B"]
    is_contrastive: Bool[Tensor, " B"]

    @staticmethod
    def of(
        guidance: Sequence[ImageGuidance | None], device: torch.device | str | None = None
    ) -> "GuidanceTensors":
        """Put the guidance of some sequences on a device; None is no guidance."""

        def numbers(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        scales = [g if isinstance(g, Guidance) else Guidance() for g in guidance]
        contrastive = [g if isinstance(g, Contrastive) else None for g in guidance]
        return GuidanceTensors(
            text=numbers([g.text for g in scales]),
            image=numbers([1.0 if g.image is None else g.image for g in scales]),
            alpha=numbers([c.alpha if c else 0.0 for c in contrastive]),
            k=torch.tensor([c.k if c else 1 for c in contrastive], device=device),
            is_classifier_free=torch.tensor([g != Guidance() for g in scales], device=device),
            is_contrastive=torch.tensor([c is not None for c in contrastive], device=device),
        )


def largest_k(guidance: Iterable[ImageGuidance | None]) -> int:
    """Return the largest k of contrastive decoding, rounded up to a power of two; 0 for none."""
    return power_of_two(max((g.k for g in guidance if isinstance(g, Contrastive)), default=0))


def apply_guidance(
    logits: Float[Tensor, "B n"],
    unconditional: Float[Tensor, "B n"],
    image_conditional: Float[Tensor, "B n"] | None,
    guidance: GuidanceTensors,
    *,
    largest_k: int,
) -> Float[Tensor, "B n"]:
    """Return the logits of image tokens after guidance.

    Args:
        logits: of the conditional sequences.
        unconditional: logits given ``bos`` and the open image; arbitrary for a sequence without
            guidance.
        image_conditional: logits given all images so far without text; those of
            ``unconditional`` for a sequence without that branch. None: no sequence has it.
        largest_k: from :func:`largest_k` of the batch.
    """
    if image_conditional is None:
        image_conditional = unconditional
    base = unconditional + guidance.image[:, None] * (image_conditional - unconditional)
    extrapolated = base + guidance.text[:, None] * (logits - image_conditional)
    guided = torch.where(guidance.is_classifier_free[:, None], extrapolated, logits)
    if not largest_k:
        return guided
    threshold = kth_largest(logits, guidance.k, largest_k) + guidance.alpha.log()[:, None]
    contrasted = (logits - unconditional).add_((threshold - logits).gt_(0), alpha=EXCLUDED)
    return torch.where(guidance.is_contrastive[:, None], contrasted, guided)
