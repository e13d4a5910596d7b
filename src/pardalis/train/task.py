"""What the training loop asks of a thing that can be trained.

A task owns its network, its optimizer and its data; the loop owns time, files and signals. The loop
knows nothing of images or text, so one loop trains image tokenizers and decoders alike.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Task(Protocol):
    """Something that learns in numbered steps, each a pure function of its state and its number."""

    def step(self, step: int) -> dict[str, float | Tensor]:
        """Do the optimizer update number ``step`` (from 0) and return its metrics by name.

        Tensors stay where they are; the loop fetches them when it reports. ``loss`` must be among
        them. A metric without a value at this step is NaN and counts in no mean.
        """
        ...

    def evaluate(self) -> dict[str, float]:
        """Return held-out numbers by name, or nothing, and leave what is learnt as it was."""
        ...

    def positions(self, batch: int) -> range:
        """Return the positions in the data of the rows of a batch."""
        ...

    def skip(self, batches: Sequence[int]) -> None:
        """Leave these batches of the data out: see :func:`pardalis.train.skipping.batch_of`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that resuming needs: dicts, lists and tuples of tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that :meth:`state_dict` returned."""
        ...
