"""Pixel losses of a reconstruction. Pixels are in [-1, 1]."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_MIN_MSE = 1e-8  # limits the PSNR of a perfect reconstruction to 86 dB


def l1_and_l2(
    reconstruction: Float[Tensor, "B 3 Y X"], pixels: Float[Tensor, "B 3 Y X"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the mean absolute and the mean squared difference."""
    return F.l1_loss(reconstruction, pixels), F.mse_loss(reconstruction, pixels)


def psnr(
    reconstruction: Float[Tensor, "B 3 Y X"], pixels: Float[Tensor, "B 3 Y X"]
) -> Float[Tensor, " B"]:
    """Return the peak signal-to-noise ratio of each image in dB, for a peak-to-peak range of 2."""
    mse = (reconstruction.clamp(-1, 1) - pixels).square().mean((1, 2, 3))
    return 10 * torch.log10(4 / mse.clamp_min(_MIN_MSE))
