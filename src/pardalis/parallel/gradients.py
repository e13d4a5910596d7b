"""Norms of gradients, wherever their parts lie, without waiting for the device."""

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_Groups = tuple["ProcessGroup", ...]  # whose ranks hold the parts of a gradient


@torch.no_grad()
def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Return the norm of all gradients together, 0 dims, the same in every rank."""
    return _norm(_parts(parameters))


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], largest: float) -> Tensor:
    """Scale gradients so that their norm is at most ``largest``; return the norm before."""
    parts = _parts(parameters)
    norm = _norm(parts)
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    for gradients in parts.values():
        torch._foreach_mul_(gradients, factor)
    return norm


def _parts(parameters: Iterable[Tensor]) -> dict[_Groups, list[Tensor]]:
    """Return the parts of gradients in this rank, by the groups that share them."""
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
    cut = (dim for dim, kind in enumerate(gradient.placements) if not kind.is_replicate())
    return tuple(mesh.get_group(dim) for dim in cut), gradient.to_local()


def _norm(parts: dict[_Groups, list[Tensor]]) -> Tensor:
    squares = [_sum_of_squares(gradients, groups) for groups, gradients in parts.items()]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())


def _sum_of_squares(gradients: list[Tensor], groups: _Groups) -> Tensor:
    total = torch.stack(torch._foreach_norm(gradients)).square().sum()
    for group in groups:
        from torch import distributed

        distributed.all_reduce(total, group=group)
    return total
