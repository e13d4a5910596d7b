"""A perceptual distance taken again in the parts of an image that matter: faces, objects.

Make-A-Scene (arXiv 2203.13131, equations 4 and 5) has such losses for faces and salient objects.
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
    most: int,
) -> Float[Tensor, ""]:
    """Return the distances of all regions times their weights, summed, divided by the images.

    ``regions`` has each image's boxes, in its pixels, and their weights; the first ``most`` of
    those that show something of the image count. Crops are scaled to ``side`` pixels.
    """
    crops: list[Tensor] = []
    originals: list[Tensor] = []
    weights: list[float] = []
    for row, boxes in enumerate(regions):
        inside = [(cut, weight) for box, weight in boxes if (cut := _cut(box, pixels.shape[2:]))]
        for (rows, columns), weight in inside[:most]:
            crops.append(_scaled(reconstruction[row, :, rows, columns], side))
            originals.append(_scaled(pixels[row, :, rows, columns], side))
            weights.append(weight)
    if not crops:
        return reconstruction.new_zeros((), dtype=torch.float32)
    distances = distance(torch.cat(crops), torch.cat(originals))
    # Not by a product of vectors, which autocast takes in 16 bits.
    return (distances * distances.new_tensor(weights)).sum() / len(pixels)


def _cut(box: Box, size: Sequence[int]) -> tuple[slice, slice] | None:
    """Return the whole pixels that a box touches, as rows and columns; None if there are none."""
    height, width = size
    left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    right, bottom = min(width, math.ceil(box[2])), min(height, math.ceil(box[3]))
    if right <= left or bottom <= top:
        return None
    return slice(top, bottom), slice(left, right)


def _scaled(crop: Float[Tensor, "3 Y X"], side: int) -> Float[Tensor, "1 3 y x"]:
    # Whole pixels are cut out first, so nothing outside them has a gradient, as it would have with
    # grid_sample. Without antialiasing every pixel still counts up to a scale of one half.
    return F.interpolate(crop[None], size=(side, side), mode="bilinear", align_corners=False)
