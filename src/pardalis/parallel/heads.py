"""QK-norm scales of attention heads that are split among tensor-parallel ranks."""

from typing import Any

from jaxtyping import Float
from torch import Tensor


def head_scales(scales: Any, n_heads: int) -> Float[Tensor, "N H"]:
    """Return the scale of each head of this rank.

    Args:
        scales: one scale for each group of heads, for the heads of all ranks.
        n_heads: heads of this rank.

    Returns:
        A single scale, to be broadcast, if all heads are one group.
    """
    if not hasattr(scales, "placements"):
        return _per_head(scales, n_heads)
    from torch.distributed.tensor import Partial

    mesh = scales.device_mesh
    # The gradient of a scale is the sum over the ranks of the gradients of their heads.
    whole = scales.to_local(grad_placements=[Partial()])
    all_heads = _per_head(whole, n_heads * mesh.size())
    if len(all_heads) == 1:
        return all_heads
    return all_heads.narrow(0, mesh.get_local_rank() * n_heads, n_heads)


def _per_head(scales: Tensor, n_heads: int) -> Tensor:
    n_groups = len(scales)
    if n_groups in (1, n_heads):
        return scales
    return scales.repeat_interleave(n_heads // n_groups, 0)
