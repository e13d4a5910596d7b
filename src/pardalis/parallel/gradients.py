"""Norms of sharded gradients, without a host synchronisation."""

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_Groups = tuple["ProcessGroup", ...]  # the groups of ranks over which a gradient is sharded


@torch.no_grad()
def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Return the global norm of all gradients as a scalar, the same in every rank."""
    return _norm(_parts(parameters))


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale gradients so that their global norm is at most ``max_norm``; return the norm before."""
    parts = _parts(parameters)
    norm = _norm(parts)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradients in parts.values():
        torch._foreach_mul_(gradients, factor)
    return norm


def _parts(parameters: Iterable[Tensor]) -> dict[_Groups, list[Tensor]]:
    """Return this rank's parts of the gradients by the groups over which they are sharded."""
    parts: dict[_Groups, list[Tensor]] = defaultdict(list)
    gradients: Iterable[Any] = (p.grad for p in parameters if p.grad is not None)
    for gradient in gradients:
        groups: _Groups = ()
        if hasattr(gradient, "placements"):
            kinds, mesh = enumerate(gradient.placements), gradient.device_mesh
            groups = tuple(mesh.get_group(dim) for dim, kind in kinds if not kind.is_replicate())
            gradient = gradient.to_local()
        parts[groups].append(gradient)
    return parts


def _norm(parts: dict[_Groups, list[Tensor]]) -> Tensor:
    squares = []
    for groups, gradients in parts.items():
        squares.append(torch.stack(torch._foreach_norm(gradients)).square().sum())
        for group in groups:
            from torch import distributed

            distributed.all_reduce(squares[-1], group=group)
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())
