"""The kinds of adapters."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from pardalis.adapters.dora import DoRAConfig
from pardalis.adapters.linear import AdaptedLinear, Factor, LowRank
from pardalis.adapters.lora import BaseDtype, LoRAConfig
from pardalis.config import Kinds

ADAPTERS = Kinds(LoRAConfig, DoRAConfig)


@runtime_checkable
class AdapterConfig(Protocol):
    """The config of a kind of adapter.

    It may have an attribute ``rows_rate`` too: the learning rate of the rows over that of the other
    parameters.
    """

    @property
    def kind(self) -> str:
        """Its name in a recipe."""
        ...

    @property
    def targets(self) -> tuple[str, ...]:
        """The matrices that it adapts: see :func:`pardalis.adapters.targets_of`."""
        ...

    @property
    def rows(self) -> tuple[str, ...]:
        """Tokens whose rows are trained: see :func:`pardalis.adapters.row_ids`."""
        ...

    @property
    def dropout(self) -> float:
        """Probability, on what the added matrices multiply."""
        ...

    @property
    def base_dtype(self) -> BaseDtype:
        """How the frozen matrices are stored."""
        ...

    @property
    def factors(self) -> Mapping[str, Factor]:
        """The parameters that it adds to each matrix, by name."""
        ...

    def adapted(self, linear: nn.Linear) -> AdaptedLinear:
        """Return a linear map with the parameters of another and those of the adapter."""
        ...

    def low_rank(self, weight: Tensor, factors: Mapping[str, Tensor]) -> LowRank:
        """Return what the added parameters make of a matrix (outputs, inputs), in 32 bits."""
        ...
