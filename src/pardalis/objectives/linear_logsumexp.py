"""The head and its log-sum-exp in chunks of the vocabulary, so that all logits are never stored."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


class _LinearLogSumExp(torch.autograd.Function):
    """Forward keeps a running maximum and sum; backward computes each chunk's logits again.

    With p = softmax(h Wᵀ): d lse / d logits = p and d target_logit / d logits = one-hot, so the
    gradient of the logits needs nothing but p and the two incoming gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "R D"],
        weight: Float[Tensor, "V D"],
        targets: Int[Tensor, " R"],
        chunk: int,
    ) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
        lse = torch.full_like(targets, -torch.inf, dtype=torch.float32)
        target_logit = torch.empty_like(lse)
        logits = hidden.new_empty(0)
        for start in range(0, weight.shape[0], chunk):
            logits = (hidden @ weight[start : start + chunk].T).float()
            lse = torch.logaddexp(lse, logits.logsumexp(-1))
            inside = (targets >= start) & (targets < start + chunk)
            local = (targets - start).clamp(0, logits.shape[1] - 1)
            picked = logits.gather(1, local[:, None]).squeeze(1)
            target_logit = torch.where(inside, picked, target_logit)
        # A vocabulary of one chunk is small: its logits are kept and not computed twice.
        kept = logits if weight.shape[0] <= chunk else None
        ctx.save_for_backward(hidden, weight, targets, lse, kept)
        ctx.chunk = chunk
        return target_logit, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_target, grad_lse = grads
        hidden, weight, targets, lse, kept = ctx.saved_tensors
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.empty_like(weight)
        for start in range(0, weight.shape[0], ctx.chunk):
            rows = weight[start : start + ctx.chunk]
            logits = (hidden @ rows.T).float() if kept is None else kept
            grad = (logits - lse[:, None]).exp_().mul_(grad_lse[:, None])
            inside = ((targets >= start) & (targets < start + ctx.chunk)).nonzero().squeeze(1)
            grad[inside, targets[inside] - start] += grad_target[inside]
            grad = grad.to(hidden.dtype)
            grad_hidden.addmm_(grad, rows)
            grad_weight[start : start + ctx.chunk] = grad.T @ hidden
        return grad_hidden, grad_weight, None, None


def linear_logsumexp(
    hidden: Float[Tensor, "R D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " R"],
    chunk: int = 16_384,
) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
    """Return the target's logit and the log-sum-exp of all logits, each in fp32.

    Their difference, lse - target_logit, is the cross-entropy; lse² is the z-loss term. At most
    ``R x chunk`` logits exist at a time.

    Args:
        chunk: rows of the head multiplied at once.
    """
    return _LinearLogSumExp.apply(hidden, weight, targets, chunk)  # type: ignore[no-untyped-call]
