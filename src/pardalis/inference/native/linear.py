"""A linear map whose matrix stays where it is."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from pardalis.inference.native.library import Library
from pardalis.inference.native.structs import Matrix


class RowsLinear(nn.Module):
    """A linear map with the rows of a matrix, which is neither packed nor copied.

    The output for a token does not depend, to the bit, on the other tokens of the batch.

    Args:
        rows: which rows of the matrix, in their order; None: all.
    """

    def __init__(
        self,
        library: Library,
        weight: Float[Tensor, "n in"],
        rows: Int[Tensor, " out"] | None = None,
    ) -> None:
        super().__init__()
        if rows is not None and len(rows) and bool((rows.diff() == 1).all()):
            weight, rows = weight.detach()[int(rows[0]) : int(rows[-1]) + 1], None
        self.library, self.weight, self.rows = library, weight.detach(), rows

    @property
    def matrix(self) -> Matrix:
        """The matrix as the library sees it."""
        return Matrix(
            values=self.weight.data_ptr(),
            index=None if self.rows is None else self.rows.data_ptr(),
            rows=len(self.weight if self.rows is None else self.rows),
            width=self.weight.shape[1],
        )

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        return self.library.product(self.matrix, x)
