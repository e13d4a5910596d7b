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
    for parameter in parameters:
        if parameter.grad is not None:
            groups, part = _part(parameter.grad)
            parts[groups].append(part)
    return parts


def _part(gradient: Any) -> tuple[_Groups, Tensor]:
    if not hasattr(gradient, "placements"):
        return (), gradient
    mesh = gradient.device_mesh
    sharded = (dim for dim, kind in enumerate(gradient.placements) if not kind.is_replicate())
    return tuple(mesh.get_group(dim) for dim in sharded), gradient.to_local()


def _norm(parts: dict[_Groups, list[Tensor]]) -> Tensor:
    squares = [_sum_of_squares(gradients, groups) for groups, gradients in parts.items()]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())


def _sum_of_squares(gradients: list[Tensor], groups: _Groups) -> Tensor:
    total = torch.stack(torch._foreach_norm(gradients)).square().sum()
    for group in groups:
        from torch import distributed

        distributed.all_reduce(total, group=group)
    return total
