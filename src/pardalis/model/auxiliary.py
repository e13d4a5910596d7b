"""Auxiliary losses: scalars that a module of a model adds to the loss, such as a router's balance.

A module calls :func:`add_auxiliary_loss` in its forward pass. Training runs the objective inside
:func:`auxiliary_losses` and adds what was collected.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Float
from torch import Tensor

AuxiliaryLosses = dict[str, list[Tensor]]

_collected: ContextVar[AuxiliaryLosses | None] = ContextVar("_collected", default=None)


@contextmanager
def auxiliary_losses() -> Iterator[AuxiliaryLosses]:
    """Collect the auxiliary losses of all forward passes inside the block, by name."""
    collected: AuxiliaryLosses = {}
    token = _collected.set(collected)
    try:
        yield collected
    finally:
        _collected.reset(token)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # compiled code has no side effects
def add_auxiliary_loss(name: str, value: Float[Tensor, ""]) -> None:
    """Add a value, weight included, to the mean loss of the batch; values of one name add up.

    Nothing is added without gradients, so a frozen model and an evaluation add nothing. Nothing is
    added outside of :func:`auxiliary_losses`, so a block that activation checkpointing recomputes
    in the backward pass does not add its value twice.

    Args:
        name: what the metrics call the sum of its values; the same in every forward pass.
        value: on tensor-parallel ranks the same in all of them.
    """
    collected = _collected.get()
    if collected is not None and torch.is_grad_enabled():
        collected.setdefault(name, []).append(value)
