"""The kinds of merge."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from pardalis.config import Kinds
from pardalis.fusion.averages import SlerpConfig, TaskArithmeticConfig, UniformConfig
from pardalis.fusion.cross import CrossMergeConfig
from pardalis.fusion.parents import Merged, Parent
from pardalis.fusion.width import WidthConfig

MERGES = Kinds(UniformConfig, SlerpConfig, TaskArithmeticConfig, WidthConfig, CrossMergeConfig)


@runtime_checkable
class MergeConfig(Protocol):
    """The config of a kind of merge.

    It may have an attribute ``base``: a further bundle, which follows the parents.
    """

    @property
    def kind(self) -> str:
        """Its name."""
        ...

    def config_of(self, config: Any) -> Any:
        """Return the config of the model that parents of a config become."""
        ...

    def merged(self, parents: Sequence[Parent], seed: int) -> Merged:
        """Return the model that parents of one architecture and vocabulary become.

        No weights are read.

        Args:
            seed: of what is drawn.

        Raises:
            ConfigError: the kind cannot merge such models, or as many.
        """
        ...
