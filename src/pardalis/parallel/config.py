"""How the ranks of a run share a model: the ``[parallel]`` table of a recipe."""

from dataclasses import dataclass
from typing import Literal

from pardalis.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """Ranks by what they share; none of it decides the numbers of a run, but for rounding.

    The ranks of a run are ``replicate x shard x tensor``; what remains of them replicates.
    """

    shard: int = 0  # ranks that hold a part of every parameter each (FSDP2); 0: all that remain
    tensor: int = 1  # ranks that split every matrix and the work on it; best within one node
    # What is computed again in the backward pass instead of kept: nothing, all but the results of
    # matrix products and attention, or each block from its input.
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    compile: bool = False  # each block by torch.compile
    patience_minutes: float = 10.0  # that ranks wait for each other before one counts as stuck

    def __post_init__(self) -> None:
        if self.shard < 0:
            raise ConfigError(f"shard must be 0 or more, got {self.shard}.")
        if self.tensor < 1:
            raise ConfigError(f"tensor must be at least 1, got {self.tensor}.")
        if not self.patience_minutes > 0:
            raise ConfigError(f"patience_minutes must be above 0, got {self.patience_minutes}.")
