"""Next-token prediction over all modalities, with z-loss, as sums and counts.

Sums and counts can be added over micro-batches and ranks, and their quotient is exactly the mean
over the whole batch. A mean of means is not.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pardalis.batch import Batch
from pardalis.config import check_at_least, not_deciding
from pardalis.model import LanguageModel, Mask, attention_mask
from pardalis.objectives.linear_cross_entropy import linear_cross_entropy


@dataclass(frozen=True, kw_only=True, slots=True)
class NextTokenConfig:
    """Options of the objective."""

    z_loss: float = 1e-5  # weight of (log Z)² per target
    image_weight: float = 1.0  # weight of image targets; 0: generating images is not learnt
    loss_chunk: int = not_deciding(1024)  # targets whose logits exist at a time
    document_mask: bool = True  # attention stays within a document; False: within a row

    def __post_init__(self) -> None:
        check_at_least(self, z_loss=0, image_weight=0, loss_chunk=1)


@dataclass(frozen=True, slots=True)
class Losses:
    """Sums over the targets of a batch, each a scalar; only ``total`` is differentiable.

    ``image_weight`` is applied to ``total`` only. Text targets are those outside images.
    """

    total: Tensor  # cross-entropy + z_loss * (log Z)², with image_weight
    count: Tensor  # sum of weights
    text: Tensor  # cross-entropy
    text_count: Tensor
    image: Tensor  # cross-entropy
    image_count: Tensor
    z: Tensor  # (log Z)², unweighted by z_loss
    text_lse: Tensor  # log Z
    image_lse: Tensor  # log Z
    text_gradient: Tensor  # |d total / d hidden|² at text targets; 0 without grad
    image_gradient: Tensor  # the same at image targets


def next_token_losses(
    model: LanguageModel,
    batch: Batch,
    image_ids: range,
    config: NextTokenConfig,
    mask_of: Callable[[Tensor], Mask] = attention_mask,
) -> Losses:
    """Run the model on a batch and sum its losses by modality.

    z-loss is 1e-5 (log Z)² per target in Chameleon (arXiv 2405.09818, section 2.3). It keeps the
    normaliser Z, to which softmax is invariant, from drifting. ``image_weight`` = 0 is the control
    of figure 6b: ``count`` still includes image targets, so the loss of text is unchanged.

    Args:
        mask_of: makes the mask of the batch's documents; it has to be
            :func:`pardalis.model.document_mask` where the calls of
            ``F.scaled_dot_product_attention`` are recorded.
    """
    if config.document_mask:
        hidden = model.hidden(batch.ids, batch.positions, mask_of(batch.documents))
    else:  # each row is one sequence, without restarts of positions
        hidden = model.hidden(batch.ids)
    learnt = _learnt(batch.weights)
    targets, weights = batch.targets.flatten()[learnt], batch.weights.flatten()[learnt]
    is_image: Bool[Tensor, " R"] = (targets >= image_ids.start) & (targets < image_ids.stop)
    losses = linear_cross_entropy(
        hidden.flatten(0, 1)[learnt],
        model.head.weight,
        targets,
        torch.where(is_image, config.image_weight * weights, weights),
        z_loss=config.z_loss,
        chunk=config.loss_chunk,
    )
    shares = torch.stack([weights, weights * losses.nll, weights * losses.lse])
    text_count, text, text_lse = (shares * ~is_image).sum(1)
    image_count, image, image_lse = (shares * is_image).sum(1)
    return Losses(
        total=losses.total,
        count=text_count + image_count,
        text=text,
        text_count=text_count,
        image=image,
        image_count=image_count,
        z=(weights * losses.lse.square()).sum(),
        text_lse=text_lse,
        image_lse=image_lse,
        text_gradient=(losses.gradient_square * ~is_image).sum(),
        image_gradient=(losses.gradient_square * is_image).sum(),
    )


def _learnt(weights: Float[Tensor, "B T"]) -> Int[Tensor, " R"] | slice:
    """Return the flat indices of targets with a weight; on a GPU all, to avoid a host sync."""
    if weights.device.type == "cpu":
        return weights.flatten().nonzero().squeeze(1)
    return slice(None)


def zero_losses(device: torch.device | str = "cpu") -> Losses:
    """Return zeros, from which a sum starts."""
    return Losses(*(torch.zeros((), device=device) for _ in fields(Losses)))
