"""Rows of a matrix, wherever its parts lie."""

import torch
from torch import Tensor


@torch.no_grad()
def scale_rows(matrix: Tensor, factors: Tensor) -> None:
    """Multiply each row of a matrix by its factor, in place; every rank has all factors."""
    column = factors[:, None]
    if hasattr(matrix, "device_mesh"):
        from torch.distributed.tensor import DTensor, Replicate

        mesh = matrix.device_mesh
        column = DTensor.from_local(column, mesh, [Replicate()] * mesh.ndim, run_check=False)
    matrix.mul_(column)
