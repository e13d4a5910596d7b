"""ResNet-50 (arXiv 1512.03385, with the stride in the 3x3 convolutions, as in torchvision)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pardalis.feature_nets.net import Network

_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # bottleneck channels, blocks
_EXPANSION = 4


class ResNet50(Network):
    """The network without its classifier; names follow torchvision's.

    Its five maps are the stem and the four stages.
    """

    widths = (64, *(width * _EXPANSION for width, _ in _STAGES))
    classifier = "fc."

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        channels = 64
        for number, (width, count) in enumerate(_STAGES, start=1):
            blocks = []
            for block in range(count):
                blocks.append(_Bottleneck(channels, width, 2 if number > 1 and not block else 1))
                channels = width * _EXPANSION
            self.add_module(f"layer{number}", nn.Sequential(*blocks))

    def forward(self, pixels: Float[Tensor, "B 3 Y X"]) -> list[Float[Tensor, "B _ _ _"]]:
        stem = F.relu(self.bn1(self.conv1(pixels)))
        maps, x = [stem], self.maxpool(stem)
        for number in range(1, len(_STAGES) + 1):
            x = self.get_submodule(f"layer{number}")(x)
            maps.append(x)
        return maps


class _Bottleneck(nn.Module):
    """Bottleneck residual block: reduce, convolve, expand."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * _EXPANSION
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        if channels != out:
            self.downsample: nn.Module = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out)
            )
        else:
            self.downsample = nn.Identity()

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B Co Yo Xo"]:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))
