"""What all feature nets have in common: pixels in [-1, 1] in, maps or one vector an image out."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """What a net was trained on: ``(byte - mean) / std`` of each channel, in RGB order."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flips_channels: bool = False  # to BGR, after that


IMAGENET = Scaling(
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255), std=(0.229 * 255, 0.224 * 255, 0.225 * 255)
)


class Network(nn.Module):
    """The bare network: scaled pixels to the feature maps of several layers, deepest last."""

    widths: tuple[int, ...]  # channels of each map
    classifier: str  # how the names begin of published tensors that are not used
    scaling: Scaling = IMAGENET
    side: int = 224  # of the images that it was trained on
    least_side: int = 32  # of images that have every map
    antialias: bool = True  # when images are made smaller


class FeatureNet(nn.Module):
    """A frozen network with the scaling of its inputs; computes in float32, whatever is around it.

    Attributes:
        name: shown in the names of losses and scores.
        width: of the pooled features.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, name: str, network: Network, scaling: Scaling | None = None) -> None:
        """Freeze a network; the scaling is for weights that saw other pixels than is usual."""
        super().__init__()
        scaling = scaling or network.scaling
        self.name = name
        self.width = network.widths[-1]
        self.network = network
        self._flips_channels = scaling.flips_channels
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (scaling.mean, scaling.std))
        self.register_buffer("scale", 127.5 / std, persistent=False)
        self.register_buffer("shift", (127.5 - mean) / std, persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FeatureNet":
        """Stay in evaluation mode, also as a part of a module that is trained."""
        super().train(False)
        return self

    def maps(self, pixels: Float[Tensor, "B 3 Y X"]) -> list[Float[Tensor, "B _ _ _"]]:
        """Return feature maps of several layers, deepest last, of images in their own size."""
        with torch.autocast(pixels.device.type, enabled=False):
            scaled = pixels.float() * self.scale + self.shift
            return self.network(scaled.flip(1) if self._flips_channels else scaled)

    def pooled(self, pixels: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B D"]:
        """Return the deepest map averaged over the image, resized as the net was trained."""
        return self.maps(self._resized(pixels))[-1].mean((2, 3))

    def _resized(self, pixels: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B 3 y x"]:
        size = (self.network.side, self.network.side)
        if pixels.shape[2:] == size:
            return pixels
        with torch.autocast(pixels.device.type, enabled=False):
            return F.interpolate(
                pixels.float(), size=size, mode="bilinear", antialias=self.network.antialias
            )
