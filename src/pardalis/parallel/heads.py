"""Scales of attention heads, where heads are split among tensor-parallel ranks."""

from typing import Any

from jaxtyping import Float
from torch import Tensor


def rows_of_heads(scales: Any, n_heads: int) -> Float[Tensor, "N H"]:
    """Return the scale of each of this rank's heads, of which groups share a row.

    Args:
        scales: one row for each group, of all ranks' heads.
        n_heads: of this rank.

    Returns:
        A single row, to be broadcast, if all heads are one group.
    """
    if not hasattr(scales, "placements"):
        return _spread(scales, n_heads)
    from torch.distributed.tensor import Partial

    mesh = scales.device_mesh
    # Each rank has the gradient of its own heads, and the sum of these is the scale's.
    whole = scales.to_local(grad_placements=[Partial()])
    rows = _spread(whole, n_heads * mesh.size())
    return rows if len(rows) == 1 else rows.narrow(0, mesh.get_local_rank() * n_heads, n_heads)


def _spread(scales: Tensor, n_heads: int) -> Tensor:
    n_groups = len(scales)
    if n_groups in (1, n_heads):
        return scales
    return scales.repeat_interleave(n_heads // n_groups, 0)
