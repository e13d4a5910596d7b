"""The ``[parallel]`` table of a recipe."""

from dataclasses import dataclass
from typing import Literal

from pardalis.config import check_above, check_at_least


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """Degrees of parallelism. Results do not depend on them beyond floating-point rounding.

    The ranks of a run form a mesh ``replicate x shard x tensor``; ``replicate`` is the number of
    ranks divided by the other two.
    """

    shard: int = 0  # ranks among which every parameter is sharded (FSDP2); 0: all that remain
    tensor: int = 1  # tensor-parallel ranks, which split every matrix; best within one node
    # What is recomputed in the backward pass: nothing; all but the results of matrix products and
    # attention; or each block from its input.
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    compile: bool = False  # compile each block with torch.compile
    timeout_minutes: float = 10.0  # longest wait of ranks for each other

    def __post_init__(self) -> None:
        check_at_least(self, shard=0, tensor=1)
        check_above(self, timeout_minutes=0)
