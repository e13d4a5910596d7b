"""Cross-entropy of the output head in chunks of targets, without storing all logits.

The loss is a sum over targets, so the gradients of a chunk are known as soon as its logits are.
They are computed and kept in the forward pass, so logits need not be stored or recomputed: three
matrix products in total, as many as with full logits.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pardalis.parallel.vocabulary import VocabularyShard, vocabulary_shard


class CrossEntropy(NamedTuple):
    """The loss of some targets and its parts; only ``total`` is differentiable."""

    total: Float[Tensor, ""]  # sum over targets of target_weight * (nll + z_loss * lse²)
    nll: Float[Tensor, " R"]  # unweighted cross-entropy of each target
    lse: Float[Tensor, " R"]  # log Z: log-sum-exp of the logits of each target
    gradient_square: Float[Tensor, " R"]  # |d total / d hidden|² of each target; 0 without grad


class Gradients(NamedTuple):
    """The gradients of ``total``."""

    hidden: Float[Tensor, "R D"]
    weight: Float[Tensor, "V D"] | None  # in fp32 or better; None: the head is frozen


def linear_cross_entropy(
    hidden: Float[Tensor, "R D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " R"],
    target_weights: Float[Tensor, " R"],
    *,
    z_loss: float = 0.0,
    chunk: int = 1024,
) -> CrossEntropy:
    """Return the loss of the logits ``hidden @ weight.T``, total and per target.

    Matrix products are in the dtype of ``hidden``, or of autocast; softmax, losses and the sum of
    the weight's gradient over chunks are in fp32 or better. The head may be split over the
    vocabulary among tensor-parallel ranks. Only one backward pass is allowed.

    Args:
        z_loss: weight of (log Z)².
        chunk: targets whose logits exist at a time.
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
            target_weights,
            z_loss=z_loss,
            chunk=chunk,
            learning=learning,
            learns_head=weight.requires_grad,
        )
    if gradients is None:
        return losses
    total = _PrecomputedGradients.apply(losses.total, hidden, shard.weight, *gradients)  # type: ignore[no-untyped-call]
    return losses._replace(total=total)


def chunked_cross_entropy(
    hidden: Float[Tensor, "R D"],
    head: VocabularyShard,
    targets: Int[Tensor, " R"],
    target_weights: Float[Tensor, " R"],
    *,
    z_loss: float,
    chunk: int,
    learning: bool,
    learns_head: bool = True,
) -> tuple[CrossEntropy, Gradients | None]:
    """Return the loss and, if ``learning``, its gradients, outside of autograd."""
    exponentiate, differentiate = elementwise(hidden.device.type)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    nll, lse = (torch.empty_like(targets, dtype=wide) for _ in range(2))
    gradients = None
    if learning:
        of_weight = torch.zeros_like(head.weight, dtype=wide) if learns_head else None
        gradients = Gradients(torch.empty_like(hidden), of_weight)
    for part, values, place in chunks_of_logits(hidden, head, targets, chunk):
        largest, exp_sum, target_logit = exponentiate(values, *place)
        top = head.maximum(largest)
        lse[part] = top + head.sum(exp_sum * (largest - top).exp()).log()
        nll[part] = lse[part] - head.sum(target_logit)
        if gradients is not None:
            factor = target_weights[part] * (1 + 2 * z_loss * lse[part])
            at_target = factor * (-nll[part]).exp() - target_weights[part]
            differentiate(values, *place, factor * (largest - lse[part]).exp(), at_target)
            torch.mm(values, head.weight, out=gradients.hidden[part])
            if gradients.weight is not None:
                add_product(gradients.weight, values.T, hidden[part])
    square = torch.zeros_like(lse)
    if gradients is not None:
        gradients.hidden.copy_(head.sum(gradients.hidden))
        square = torch.linalg.vector_norm(gradients.hidden, dim=1, dtype=wide).square()
    total = (target_weights * (nll + z_loss * lse.square())).sum()
    return CrossEntropy(total, nll, lse, square), gradients


def chunks_of_logits(
    hidden: Float[Tensor, "R D"], head: VocabularyShard, targets: Int[Tensor, " R"], chunk: int
) -> Iterator[tuple[slice, Tensor, tuple[Tensor, Tensor]]]:
    """Yield the logits of each chunk of targets, all in one buffer, outside of autograd.

    Before them comes which targets they are of, and after them the column of each target and
    whether it is in this rank's part of the vocabulary.
    """
    columns = targets - head.start
    is_here = (columns >= 0) & (columns < len(head.weight))
    columns = columns.where(is_here, 0)
    buffer = hidden.new_empty(min(chunk, len(hidden)), len(head.weight))
    for start in range(0, len(hidden), chunk):
        part = slice(start, start + chunk)
        values = torch.mm(hidden[part], head.weight.T, out=buffer[: len(hidden) - start])
        yield part, values, (columns[part, None], is_here[part])


def _exponentiate(
    values: Float[Tensor, "C V"], columns: Int[Tensor, "C 1"], is_here: Bool[Tensor, " C"]
) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"], Float[Tensor, " C"]]:
    """Replace logits x by exp(x - max x); return max x, the sum of the exp, and the target's x."""
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
    """Replace exponentials by the gradient of the logits.

    That of the target is about p - 1 and is given, since its p here is rounded to few bits.
    """
    wide = values.to(scale.dtype).mul_(scale[:, None])
    others = wide.gather(1, columns).squeeze(1)
    wide.scatter_(1, columns, at_target.where(is_here, others)[:, None])
    values.copy_(wide)


@cache
def elementwise(device_type: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return both functions above, on a GPU compiled, each to one pass over the logits."""
    if device_type == "cuda":
        return torch.compile(_exponentiate), torch.compile(_differentiate)
    return _exponentiate, _differentiate


def add_product(
    total: Float[Tensor, "V D"], a: Float[Tensor, "V C"], b: Float[Tensor, "C D"]
) -> None:
    """Add ``a @ b`` to the total without rounding it to the dtype of the factors first."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif total.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:  # the CPU has no matrix product with a wider output
        total.add_(a @ b)


class _PrecomputedGradients(torch.autograd.Function):
    """A scalar with precomputed gradients."""

    @staticmethod
    def forward(
        ctx: Any, total: Tensor, hidden: Tensor, weight: Tensor, *gradients: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(*gradients)
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # In place, since they are large; PyTorch then refuses a second backward pass.
        grad_hidden, grad_weight = (
            None if gradient is None else gradient.mul_(grads[0]) for gradient in ctx.saved_tensors
        )
        return None, grad_hidden, grad_weight, None, None
