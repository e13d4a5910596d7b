"""Base of all feature nets: from pixels in [-1, 1] to feature maps, or one vector per image."""

from collections.abc import Container, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """Input normalisation of a net: ``(byte - mean) / std`` per channel, in RGB order."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flips_channels: bool = False  # to BGR, after normalisation


IMAGENET = Scaling(
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255), std=(0.229 * 255, 0.224 * 255, 0.225 * 255)
)


class Network(nn.Module):
    """The bare network: from normalised pixels to feature maps of several layers, deepest last."""

    widths: tuple[int, ...]  # channels of each map
    classifier: str  # prefix of the published tensors that are not used
    scaling: Scaling = IMAGENET
    side: int = 224  # image side in training
    min_side: int = 32  # smallest image side that gives every map
    antialias: bool = True  # when downscaling images


def maps_after(
    layers: Iterable[nn.Module], numbers: Container[int], x: Float[Tensor, "B C Y X"]
) -> list[Float[Tensor, "B _ _ _"]]:
    """Run layers one after the other; return the outputs of those with the given numbers."""
    maps = []
    for number, layer in enumerate(layers):
        x = layer(x)
        if number in numbers:
            maps.append(x)
    return maps


class FeatureNet(nn.Module):
    """A frozen network with its input normalisation; it computes in float32 and ignores autocast.

    Attributes:
        name: part of the names of losses and scores.
        width: dimension of the pooled features.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, name: str, network: Network, scaling: Scaling | None = None) -> None:
        """Freeze a network; ``scaling`` is for weights with other than the usual normalisation."""
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
        """Stay in evaluation mode, also inside a module that is being trained."""
        super().train(False)
        return self

    def maps(self, pixels: Float[Tensor, "B 3 Y X"]) -> list[Float[Tensor, "B _ _ _"]]:
        """Return feature maps of several layers, deepest last, at the images' own size."""
        with torch.autocast(pixels.device.type, enabled=False):
            scaled = pixels.float() * self.scale + self.shift
            return self.network(scaled.flip(1) if self._flips_channels else scaled)

    def pooled(self, pixels: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B D"]:
        """Return the deepest map averaged over positions, of images resized to ``network.side``."""
        return self.maps(self._resized(pixels))[-1].mean((2, 3))

    def _resized(self, pixels: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B 3 y x"]:
        size = (self.network.side, self.network.side)
        if pixels.shape[2:] == size:
            return pixels
        with torch.autocast(pixels.device.type, enabled=False):
            return F.interpolate(
                pixels.float(), size=size, mode="bilinear", antialias=self.network.antialias
            )
