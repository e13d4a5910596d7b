"""Perceptual distance of images in a feature net (LPIPS, arXiv 1801.03924)."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pardalis.errors import ConfigError
from pardalis.feature_nets.config import FeatureNetConfig
from pardalis.feature_nets.files import fitted, read_tensors
from pardalis.feature_nets.load import load_feature_net
from pardalis.feature_nets.net import FeatureNet

_EPSILON = 1e-10


class PerceptualDistance(nn.Module):
    """Squared differences of unit feature vectors, weighted by channel, averaged over positions and
    summed over layers.

    With heads the weights are those of LPIPS, fitted to human judgements. Without heads a layer
    contributes ``2 - 2 cos`` of the vectors, and the layers are averaged. That distance has the
    same scale for every net, from 0 to 2 for rectified features, but it is not LPIPS.
    """

    def __init__(self, net: FeatureNet, weights: Sequence[Tensor], name: str) -> None:
        """Take a net and per layer weights that broadcast to C x 1 x 1."""
        super().__init__()
        self.name = name
        self.net = net
        for layer, weight in enumerate(weights):
            self.register_buffer(f"weights_{layer}", weight.detach().float(), persistent=False)

    def check_side(self, side: int) -> None:
        """Raise ConfigError if images of this side are too small for the net."""
        least = self.net.network.min_side
        if side < least:
            raise ConfigError(
                f"The feature net {self.net.name} needs images of at least {least} pixels a side, "
                f"got {side}; choose a larger resolution, a larger side of regions, another net, "
                "or none."
            )

    def forward(
        self, reconstruction: Float[Tensor, "B 3 Y X"], pixels: Float[Tensor, "B 3 Y X"]
    ) -> Float[Tensor, " B"]:
        """Return the distance of each pair, differentiable in the reconstruction only.

        Images need a side that :meth:`check_side` accepts.
        """
        with torch.no_grad():
            targets = self.net.maps(pixels)
        total = torch.zeros(len(pixels), device=pixels.device)
        for layer, (map_, target) in enumerate(
            zip(self.net.maps(reconstruction), targets, strict=True)
        ):
            difference = (_unit(map_) - _unit(target)).square()
            weights: Tensor = getattr(self, f"weights_{layer}")
            total = total + (difference * weights).sum(1).mean((1, 2))
        return total


def load_perceptual_distance(config: FeatureNetConfig) -> PerceptualDistance:
    """Load the net and the heads, if the config names them.

    Raises:
        ConfigError: a package is missing, or the number of layer weights is wrong.
        BundleError: a file cannot be read, or holds other tensors.
    """
    net = load_feature_net(config)
    widths = net.network.widths
    if config.heads is not None:
        return PerceptualDistance(net, _read_heads(config.heads, widths), f"lpips_{net.name}")
    layer_weights = config.layer_weights or (1 / len(widths),) * len(widths)
    if len(layer_weights) != len(widths):
        raise ConfigError(
            f"layer_weights has {len(layer_weights)} numbers, but {config.name} has {len(widths)} "
            "layers; give one for each."
        )
    weights = [torch.full((1, 1, 1), weight) for weight in layer_weights]
    return PerceptualDistance(net, weights, f"perceptual_{net.name}")


def _read_heads(path: Path, widths: Sequence[int]) -> list[Float[Tensor, "C 1 1"]]:
    """Read the channel weights of each layer, as the package lpips stores them."""
    needed = {
        f"lin{layer}.model.1.weight": torch.Size((1, width, 1, 1))
        for layer, width in enumerate(widths)
    }
    heads = fitted(read_tensors(path), needed, path)
    return [heads[name][0].clamp_min(0) for name in needed]


def _unit(vectors: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C Y X"]:
    return F.normalize(vectors, dim=1, eps=_EPSILON)
