"""Matrices for the library, and a linear map whose matrix stays where it is."""

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from pardalis.inference.native.library import Library
from pardalis.inference.native.structs import Matrix

_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


def matrix_of(
    values: Num[Tensor, "n in"],
    scale: Float[Tensor, " out"] | None = None,
    rows: Int[Tensor, " out"] | None = None,
    bias: Float[Tensor, " out"] | None = None,
) -> Matrix:
    """Describe a matrix to the library; the tensors must stay where they are while it is used.

    Args:
        scale: factor of each row, in 32 bits.
        rows: which rows of ``values``, in their order; None: all.
    """
    assert values.is_contiguous()
    return Matrix(
        values=values.data_ptr(),
        scale=None if scale is None else scale.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        index=None if rows is None else rows.data_ptr(),
        rows=len(values if rows is None else rows),
        width=values.shape[1],
        kind=_KINDS[values.dtype],
    )


class RowsLinear(nn.Module):
    """A linear map with the rows of a matrix, which is neither packed nor copied.

    The output for a token does not depend, to the bit, on the other tokens of the batch.

    Args:
        scale: factor of each output.
        rows: which rows of the matrix, in their order; None: all.
    """

    def __init__(
        self,
        library: Library,
        weight: Num[Tensor, "n in"],
        scale: Float[Tensor, " out"] | None = None,
        rows: Int[Tensor, " out"] | None = None,
    ) -> None:
        super().__init__()
        if rows is not None and len(rows) and bool((rows.diff() == 1).all()):
            weight, rows = weight.detach()[int(rows[0]) : int(rows[-1]) + 1], None
        self.library, self.weight, self.scale, self.rows = library, weight.detach(), scale, rows

    def matrix(self, bias: Float[Tensor, " out"] | None = None) -> Matrix:
        """Describe the matrix to the library."""
        return matrix_of(self.weight, self.scale, self.rows, bias)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        return self.library.product(self.matrix(), x)
