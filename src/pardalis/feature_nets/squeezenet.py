"""SqueezeNet 1.1 (arXiv 1602.07360): 1.2M parameters, small enough to train with on a CPU."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pardalis.feature_nets.net import Network, Scaling

# The packaged weights are those of Caffe, which saw BGR bytes with the mean colour taken away.
CAFFE = Scaling(mean=(123.68, 116.779, 103.939), std=(1.0, 1.0, 1.0), flips_channels=True)

# Layers of the seven maps, where LPIPS has them.
_MAPS = (1, 4, 7, 9, 10, 11, 12)
# Position of each fire module: channels in, squeezed, of each half of the expansion.
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

    Its first convolution has stride 2 and no padding: of an even side it leaves the last pixel out.
    """

    widths = (64, 128, 256, 384, 384, 512, 512)
    classifier = "classifier."

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
        maps, x = [], pixels
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in _MAPS:
                maps.append(x)
        return maps


class _Fire(nn.Module):
    """Squeeze the channels, then expand them by filters of one pixel and of three."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B Co Y X"]:
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], 1))


def torchvision_names(layers: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Return the packaged weights, height x width x in x out, under torchvision's names."""
    places = {"conv1": "features.0"}
    for number, position in enumerate(_FIRES, start=2):
        for part in ("squeeze1x1", "expand1x1", "expand3x3"):
            name = "squeeze" if part == "squeeze1x1" else part
            places[f"fire{number}/{part}"] = f"features.{position}.{name}"
    weights = {}
    for name, place in places.items():
        kernel, bias = layers[name]
        weights[f"{place}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
        weights[f"{place}.bias"] = bias
    return weights
