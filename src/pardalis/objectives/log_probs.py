"""Log-probabilities of target tokens in chunks, without storing all logits.

The gradient of a log-probability is not known in the forward pass, so the logits of a chunk are
computed again in the backward pass: four matrix products, where
:func:`pardalis.objectives.linear_cross_entropy` has three.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pardalis.model import TiedHead
from pardalis.objectives.linear_cross_entropy import add_product, chunks_of_logits, elementwise
from pardalis.parallel.vocabulary import VocabularyShard, vocabulary_shard


def token_log_probs(
    hidden: Float[Tensor, "R D"],
    head: nn.Linear | TiedHead,
    targets: Int[Tensor, " R"],
    *,
    chunk: int = 1024,
) -> Float[Tensor, " R"]:
    """Return ``log_softmax(head(hidden))`` at the targets, differentiable in hidden and head.

    Matrix products are in the dtype of ``hidden``, or of autocast; softmax, the result and the sum
    of the head's gradient over chunks are in fp32 or better. The head has no bias. It may be split
    over the vocabulary among tensor-parallel ranks.

    Args:
        chunk: targets whose logits exist at a time.
    """
    shard, device_type = vocabulary_shard(head.weight), hidden.device.type
    dtype = hidden.dtype
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    log_probs: Tensor = _TokenLogProbs.apply(  # type: ignore[no-untyped-call]
        hidden, shard.weight, targets, shard.start, shard.group, dtype, chunk
    )
    return log_probs


class _TokenLogProbs(torch.autograd.Function):
    """The log-probabilities; this rank's part of the head is ``weight``."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        start: int,
        group: Any,
        dtype: torch.dtype,
        chunk: int,
    ) -> Tensor:
        head = VocabularyShard(weight.to(dtype), start, group)
        wide = torch.promote_types(dtype, torch.float32)
        log_probs, lse = (torch.empty_like(targets, dtype=wide) for _ in range(2))
        exponentiate, _ = elementwise(hidden.device.type)
        with torch.autocast(hidden.device.type, enabled=False):
            for part, values, place in chunks_of_logits(hidden.to(dtype), head, targets, chunk):
                largest, exp_sum, target_logit = exponentiate(values, *place)
                top = head.maximum(largest)
                lse[part] = top + head.sum(exp_sum * (largest - top).exp()).log()
                log_probs[part] = head.sum(target_logit) - lse[part]
        ctx.save_for_backward(hidden, weight, targets, lse, log_probs)
        ctx.options = start, group, dtype, chunk
        return log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, lse, log_probs = ctx.saved_tensors
        start, group, dtype, chunk = ctx.options
        head, narrow = VocabularyShard(weight.to(dtype), start, group), hidden.to(dtype)
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(narrow) if for_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=lse.dtype) if for_weight else None
        exponentiate, differentiate = elementwise(hidden.device.type)
        with torch.autocast(hidden.device.type, enabled=False):
            for part, values, place in chunks_of_logits(narrow, head, targets, chunk):
                largest, _, _ = exponentiate(values, *place)
                others = -grads[0][part] * (largest - lse[part]).exp()
                at_target = -grads[0][part] * log_probs[part].expm1()
                differentiate(values, *place, others, at_target)
                if grad_hidden is not None:
                    torch.mm(values, head.weight, out=grad_hidden[part])
                if grad_weight is not None:
                    add_product(grad_weight, values.T, narrow[part])
        if grad_hidden is not None:
            grad_hidden = head.sum(grad_hidden)
        return grad_hidden, grad_weight, None, None, None, None, None
