"""Next-token prediction over all modalities, with z-loss: sums and counts, never means.

A sum and a count can be added over micro-batches and over ranks, and the quotient is then exactly
the mean of the whole batch. Means of means are not.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pardalis.model import Decoder, document_mask
from pardalis.objectives.linear_logsumexp import linear_logsumexp


@dataclass(frozen=True, kw_only=True, slots=True)
class NextTokenConfig:
    """Options of the objective."""

    z_loss: float = 1e-5  # weight of (log Z)² per target
    vocab_chunk: int = 16_384  # rows of the head multiplied at once
    document_mask: bool = True  # attention stays within a document; False: within a row


@runtime_checkable
class TokenBatch(Protocol):
    """What the objective reads of a batch of packed rows."""

    @property
    def ids(self) -> Int[Tensor, "B T"]: ...
    @property
    def targets(self) -> Int[Tensor, "B T"]: ...
    @property
    def weights(self) -> Float[Tensor, "B T"]: ...
    @property
    def positions(self) -> Int[Tensor, "B T"]: ...
    @property
    def documents(self) -> Int[Tensor, "B T"]: ...


@dataclass(frozen=True, slots=True)
class Losses:
    """Sums over the targets of a batch, each a scalar; ``total`` is the one to differentiate."""

    total: Tensor  # weighted cross-entropy + z_loss * (log Z)²
    count: Tensor  # sum of weights
    text: Tensor  # cross-entropy of the targets outside pictures
    text_count: Tensor
    image: Tensor  # cross-entropy of the image ids
    image_count: Tensor
    z: Tensor  # (log Z)², unweighted by z_loss


def next_token_losses(
    model: Decoder, batch: TokenBatch, image_ids: range, config: NextTokenConfig
) -> Losses:
    """Run the model on a batch and sum its losses by modality.

    z-loss is 1e-5 (log Z)² per target in Chameleon (arXiv 2405.09818, section 2.3); it keeps the
    normaliser from drifting, to which softmax itself is blind.
    """
    if config.document_mask:
        hidden = model.hidden(batch.ids, batch.positions, document_mask(batch.documents))
    else:  # a row is then one sequence, and its positions do not restart
        hidden = model.hidden(batch.ids)
    learnt: Bool[Tensor, "B T"] = batch.weights > 0
    targets, weights = batch.targets[learnt], batch.weights[learnt]
    target_logit, lse = linear_logsumexp(
        hidden[learnt], model.head.weight, targets, config.vocab_chunk
    )
    nll = (lse - target_logit) * weights
    z = lse.square() * weights
    is_image = (targets >= image_ids.start) & (targets < image_ids.stop)
    image, image_count = nll[is_image].sum(), weights[is_image].sum()
    count, total_nll, z_sum = weights.sum(), nll.sum(), z.sum()
    return Losses(
        total=total_nll + config.z_loss * z_sum,
        count=count,
        text=(total_nll - image).detach(),
        text_count=count - image_count,
        image=image.detach(),
        image_count=image_count,
        z=z_sum.detach(),
    )


def no_losses(device: torch.device | str = "cpu") -> Losses:
    """Return zeros to start a sum from."""
    return Losses(*(torch.zeros((), device=device) for _ in range(7)))
