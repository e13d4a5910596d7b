"""SqueezeNet 1.1 (arXiv 1602.07360): 1.2M parameters, small enough to train with on a CPU."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pardalis.feature_nets.net import Network, Scaling, maps_after

# The packaged weights are Caffe's, trained on BGR bytes minus the mean colour.
CAFFE = Scaling(mean=(123.68, 116.779, 103.939), std=(1.0, 1.0, 1.0), flips_channels=True)

# Layers of the seven maps of LPIPS.
_MAPS = (1, 4, 7, 9, 10, 11, 12)
# Position of each fire module: channels of the input, the squeeze and each expand layer.
_FIRES = {
    3: (64, 16, 64),
    4: (128, 16, 64),
    6: (128, 32, 128),
    7: (256, 32, 128),
    9: (256, 48, 192),
    10: (384, 48, 192),
    11: (384, 64, 256),
    12: (512, 64, 256),
}


class SqueezeNet(Network):
    """The network without its classifier; names follow torchvision's.

    Its first convolution has stride 2 and no padding, so it ignores the last pixel of an even side.
    """

    widths = (64, 128, 256, 384, 384, 512, 512)
    classifier = "classifier."
    min_side = 17

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2),
            nn.ReLU(),
            *(
                _Fire(*_FIRES[n]) if n in _FIRES else nn.MaxPool2d(3, 2, ceil_mode=True)
                for n in range(2, 13)
            ),
        )

    def forward(self, pixels: Float[Tensor, "B 3 Y X"]) -> list[Float[Tensor, "B _ _ _"]]:
        return maps_after(self.features, _MAPS, pixels)


class _Fire(nn.Module):
    """Squeeze the channels, then expand them by 1x1 and 3x3 convolutions."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B Co Y X"]:
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], 1))


def torchvision_names(layers: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Convert packaged weights (height x width x in x out) to torchvision's names and layout."""
    names = {"conv1": "features.0"}
    for number, position in enumerate(_FIRES, start=2):
        for part in ("squeeze1x1", "expand1x1", "expand3x3"):
            name = "squeeze" if part == "squeeze1x1" else part
            names[f"fire{number}/{part}"] = f"features.{position}.{name}"
    weights = {}
    for source, target in names.items():
        kernel, bias = layers[source]
        weights[f"{target}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
        weights[f"{target}.bias"] = bias
    return weights
