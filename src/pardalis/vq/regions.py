"""Perceptual losses of image regions, as Make-A-Scene has for faces and salient objects.

See arXiv 2203.13131, equations 4 and 5.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pardalis.documents.document import Box
from pardalis.feature_nets import PerceptualDistance


def region_loss(
    distance: PerceptualDistance,
    reconstruction: Float[Tensor, "B 3 Y X"],
    pixels: Float[Tensor, "B 3 Y X"],
    regions: Sequence[Sequence[tuple[Box, float]]],
    side: int,
    max_regions: int,
) -> Float[Tensor, ""]:
    """Return the weighted sum of the distances of all regions, divided by the number of images.

    ``regions`` has for each image its boxes in pixels and their weights. Of the boxes that overlap
    the image the first ``max_regions`` count. Crops are scaled to ``side`` pixels.
    """
    crops: list[Tensor] = []
    originals: list[Tensor] = []
    weights: list[float] = []
    for i, boxes in enumerate(regions):
        inside = [(cut, weight) for box, weight in boxes if (cut := _slices(box, pixels.shape[2:]))]
        for (y, x), weight in inside[:max_regions]:
            crops.append(_resize(reconstruction[i, :, y, x], side))
            originals.append(_resize(pixels[i, :, y, x], side))
            weights.append(weight)
    if not crops:
        return reconstruction.new_zeros((), dtype=torch.float32)
    distances = distance(torch.cat(crops), torch.cat(originals))
    # Not as a dot product, which autocast computes in 16 bits.
    return (distances * distances.new_tensor(weights)).sum() / len(pixels)


def _slices(box: Box, size: Sequence[int]) -> tuple[slice, slice] | None:
    """Return the pixels that a box touches as slices of y and x; None if there are none."""
    height, width = size
    left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    right, bottom = min(width, math.ceil(box[2])), min(height, math.ceil(box[3]))
    if right <= left or bottom <= top:
        return None
    return slice(top, bottom), slice(left, right)


def _resize(crop: Float[Tensor, "3 Y X"], side: int) -> Float[Tensor, "1 3 y x"]:
    # Cropping whole pixels first keeps gradients inside the crop, unlike grid_sample. Without
    # antialiasing every pixel still contributes down to a scale of one half.
    return F.interpolate(crop[None], size=(side, side), mode="bilinear", align_corners=False)
