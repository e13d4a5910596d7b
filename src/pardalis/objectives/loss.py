"""The loss of some rows as sums and counts, which add over micro-batches and ranks.

A quotient of sums is exactly the mean over the whole batch. A mean of means is not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pardalis.parallel import Layout


@dataclass(frozen=True, slots=True)
class Loss:
    """What an objective returns. Every tensor is a scalar; only ``total`` is differentiable.

    The names of ``sums`` are the same for all rows: a modality that some rows do not have is there
    with zeros.
    """

    total: Float[Tensor, ""]  # the sum to minimise
    count: Float[Tensor, ""]  # what the total is divided by
    sums: dict[str, tuple[Tensor, Tensor]]  # a sum and its count, by the name of their quotient

    def __add__(self, other: "Loss") -> "Loss":
        """Return the loss of the rows of both.

        Raises:
            ValueError: the names of their sums differ.
        """
        if self.sums.keys() != other.sums.keys():
            names = ", ".join(sorted(self.sums.keys() ^ other.sums.keys()))
            raise ValueError(
                f"Only one of two losses has the sums {names}; an objective has to return the same "
                "names for all rows, with zeros where there is nothing."
            )
        sums = {
            name: (value + other.sums[name][0], count + other.sums[name][1])
            for name, (value, count) in self.sums.items()
        }
        return Loss(self.total + other.total, self.count + other.count, sums)

    def detach(self) -> "Loss":
        """Return the loss without its graph."""
        sums = {
            name: (value.detach(), count.detach()) for name, (value, count) in self.sums.items()
        }
        return Loss(self.total.detach(), self.count.detach(), sums)

    def with_auxiliary(self, losses: Mapping[str, Sequence[Tensor]]) -> "Loss":
        """Return the loss with auxiliary losses added to its mean, and listed among the sums.

        Args:
            losses: as :func:`pardalis.model.auxiliary_losses` collects them.
        """
        total, count, sums = self.total, self.count.detach(), dict(self.sums)
        for name, values in losses.items():
            share = torch.stack([*values]).sum() * count
            total = total + share
            sums[name] = share.detach(), count
        return Loss(total, self.count, sums)

    def over_ranks(self, layout: Layout) -> "Loss":
        """Return the sum over the data-parallel ranks, in one reduction."""
        names = sorted(self.sums)  # in the same order in every rank
        pairs = [value for name in names for value in self.sums[name]]
        total, count, *values = layout.sum(torch.stack([self.total, self.count, *pairs]))
        summed = dict(zip(names, zip(values[::2], values[1::2], strict=True), strict=True))
        return Loss(total, count, {name: summed[name] for name in self.sums})

    def means(self) -> dict[str, Tensor]:
        """Return the mean of each sum, NaN where there is nothing; the first one is ``loss``.

        That is the mean of ``total``, unless a sum has the name.
        """
        means = {"loss": self.total / self.count}
        return means | {name: value / count for name, (value, count) in self.sums.items()}
