"""The protocol between the training loop and what it trains.

A task owns its network, optimizer and data; the loop owns steps, files and signals. The same loop
trains image tokenizers and decoders.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Task(Protocol):
    """A model in training. A step is a pure function of the task's state and the step number."""

    def step(self, step: int) -> dict[str, float | Tensor]:
        """Do the optimizer update number ``step`` (from 0) and return its metrics by name.

        Tensors may stay on their device; the loop fetches them when it reports. ``loss`` is
        required. NaN in any other metric means that it has no value at this step.
        """
        ...

    def evaluate(self) -> dict[str, float]:
        """Return held-out metrics by name, or none. The state is unchanged."""
        ...

    def positions(self, batch: int) -> range:
        """Return the positions in the data of the rows of a batch."""
        ...

    def skip(self, batches: Sequence[int]) -> None:
        """Skip these batches of the data: see :func:`pardalis.train.skipping.batch_of`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state for resuming: dicts, lists and tuples of tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state that :meth:`state_dict` returned."""
        ...
