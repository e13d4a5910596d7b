"""An output head whose vocabulary is split among tensor-parallel ranks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True, slots=True)
class VocabularyShard:
    """This rank's part of the output head; a single process holds all of it."""

    weight: Tensor  # (token ids of this rank, width)
    start: int = 0  # the first of these token ids
    group: "ProcessGroup | None" = None  # the ranks among which the head is split

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over the ranks of the group."""
        return self._reduce(tensor, "SUM")

    def maximum(self, tensor: Tensor) -> Tensor:
        """Return the maximum over the ranks of the group."""
        return self._reduce(tensor, "MAX")

    def _reduce(self, tensor: Tensor, operation: str) -> Tensor:
        if self.group is None:
            return tensor
        from torch import distributed

        result = tensor.clone()
        distributed.all_reduce(result, getattr(distributed.ReduceOp, operation), self.group)
        return result


def vocabulary_shard(weight: Any) -> VocabularyShard:
    """Return this rank's part of a head's weight; gradients flow to the whole weight."""
    if not hasattr(weight, "placements"):
        return VocabularyShard(weight)
    mesh = weight.device_mesh
    part = weight.to_local(grad_placements=weight.placements)
    return VocabularyShard(part, mesh.get_local_rank() * part.shape[0], mesh.get_group())
