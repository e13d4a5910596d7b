"""The head and its cross-entropy in chunks of rows, so that all logits are never stored.

The loss is a sum over rows, so a chunk's gradients are known as soon as its logits are. They are
computed in the forward pass and kept, where logits would have to be stored or made again: three
matrix products in all, as many as with full logits.
"""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pardalis.parallel.vocabulary import VocabularyShard, vocabulary_shard


class CrossEntropy(NamedTuple):
    """The loss of some rows and what it is made of; only ``total`` can be differentiated."""

    total: Float[Tensor, ""]  # sum over rows of row_weight * (nll + z_loss * lse²)
    nll: Float[Tensor, " R"]  # cross-entropy of each row, unweighted
    lse: Float[Tensor, " R"]  # log Z: the log-sum-exp of each row's logits
    gradient_square: Float[Tensor, " R"]  # |d total / d hidden|² of each row; 0 when not learning


class Gradients(NamedTuple):
    """Of ``total``, by what the logits are made of."""

    hidden: Float[Tensor, "R D"]
    weight: Float[Tensor, "V D"]  # in fp32 or better


def linear_cross_entropy(
    hidden: Float[Tensor, "R D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " R"],
    row_weights: Float[Tensor, " R"],
    *,
    z_loss: float = 0.0,
    chunk: int = 1024,
) -> CrossEntropy:
    """Return the loss of the logits ``hidden @ weight.T``, whole and by row.

    Matrix products are in the type of ``hidden``, or in that of autocast; softmax, losses and the
    sum of the weight's gradient over chunks are in fp32 or better. The head may be split over the
    vocabulary among tensor-parallel ranks. One backward pass is allowed.

    Args:
        z_loss: weight of (log Z)².
        chunk: rows whose logits exist at a time.
    """
    shard, device_type = vocabulary_shard(weight), hidden.device.type
    learning = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    dtype = hidden.dtype
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    with torch.no_grad(), torch.autocast(device_type, enabled=False):
        losses, gradients = chunked_cross_entropy(
            hidden.to(dtype),
            dataclasses.replace(shard, weight=shard.weight.to(dtype)),
            targets,
            row_weights,
            z_loss=z_loss,
            chunk=chunk,
            learning=learning,
        )
    if gradients is None:
        return losses
    total = _KnownGradients.apply(losses.total, hidden, shard.weight, *gradients)  # type: ignore[no-untyped-call]
    return losses._replace(total=total)


def chunked_cross_entropy(
    hidden: Float[Tensor, "R D"],
    head: VocabularyShard,
    targets: Int[Tensor, " R"],
    row_weights: Float[Tensor, " R"],
    *,
    z_loss: float,
    chunk: int,
    learning: bool,
) -> tuple[CrossEntropy, Gradients | None]:
    """Return the loss and, when learning, its gradients, all outside of autograd."""
    exponentiate, differentiate = _elementwise(hidden.device.type)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    columns = targets - head.start
    is_here = (columns >= 0) & (columns < len(head.weight))
    columns = columns.where(is_here, 0)
    nll, lse = (torch.empty_like(targets, dtype=wide) for _ in range(2))
    gradients = None
    if learning:
        gradients = Gradients(torch.empty_like(hidden), torch.zeros_like(head.weight, dtype=wide))
    # One place for the logits of all chunks, which is not asked of the system anew for each.
    room = hidden.new_empty(min(chunk, len(hidden)), len(head.weight))
    for start in range(0, len(hidden), chunk):
        rows = slice(start, start + chunk)
        place = columns[rows, None], is_here[rows]
        values = torch.mm(hidden[rows], head.weight.T, out=room[: len(hidden) - start])
        largest, exp_sum, target_logit = exponentiate(values, *place)
        top = head.maximum(largest)
        lse[rows] = top + head.sum(exp_sum * (largest - top).exp()).log()
        nll[rows] = lse[rows] - head.sum(target_logit)
        if gradients is not None:
            factor = row_weights[rows] * (1 + 2 * z_loss * lse[rows])
            at_target = factor * (-nll[rows]).exp() - row_weights[rows]
            differentiate(values, *place, factor * (largest - lse[rows]).exp(), at_target)
            torch.mm(values, head.weight, out=gradients.hidden[rows])
            _add_product(gradients.weight, values.T, hidden[rows])
    square = torch.zeros_like(lse)
    if gradients is not None:
        gradients.hidden.copy_(head.sum(gradients.hidden))
        square = torch.linalg.vector_norm(gradients.hidden, dim=1, dtype=wide).square()
    total = (row_weights * (nll + z_loss * lse.square())).sum()
    return CrossEntropy(total, nll, lse, square), gradients


def _exponentiate(
    values: Float[Tensor, "C V"], columns: Int[Tensor, "C 1"], is_here: Bool[Tensor, " C"]
) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"], Float[Tensor, " C"]]:
    """Turn logits x into exp(x - max x); return max x, the sum of the exp, and the target's x."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))  # itself if wide already
    target_logit = wide.gather(1, columns).squeeze(1).where(is_here, 0)
    largest = wide.amax(1)
    exp_sum = wide.sub_(largest[:, None]).exp_().sum(1)
    values.copy_(wide)
    return largest, exp_sum, target_logit


def _differentiate(
    values: Float[Tensor, "C V"],
    columns: Int[Tensor, "C 1"],
    is_here: Bool[Tensor, " C"],
    scale: Float[Tensor, " C"],
    at_target: Float[Tensor, " C"],
) -> None:
    """Turn exponentials into the gradient of the logits; the target's is given.

    It is p - 1, nearly, and so it is not made of a p that was rounded to few bits.
    """
    wide = values.to(scale.dtype).mul_(scale[:, None])
    others = wide.gather(1, columns).squeeze(1)
    wide.scatter_(1, columns, at_target.where(is_here, others)[:, None])
    values.copy_(wide)


@cache
def _elementwise(device_type: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return both functions; on a GPU each compiled to one pass over the logits."""
    if device_type == "cuda":
        return torch.compile(_exponentiate), torch.compile(_differentiate)
    return _exponentiate, _differentiate


def _add_product(
    total: Float[Tensor, "V D"], a: Float[Tensor, "V C"], b: Float[Tensor, "C D"]
) -> None:
    """Add ``a @ b`` to the total without rounding it to the type of the factors first."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif total.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:  # the CPU has no product of mixed types
        total.add_(a @ b)


class _KnownGradients(torch.autograd.Function):
    """A scalar with gradients that are known already."""

    @staticmethod
    def forward(
        ctx: Any, total: Tensor, hidden: Tensor, weight: Tensor, *gradients: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*gradients)
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # In place, for they are large; PyTorch then refuses a second backward pass.
        grad_hidden, grad_weight = (gradient.mul_(grads[0]) for gradient in ctx.saved_tensors)
        return None, grad_hidden, grad_weight, None, None
