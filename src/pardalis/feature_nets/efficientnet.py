"""EfficientNet-lite0 (arXiv 1905.11946; the mobile variant without squeeze-and-excitation)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pardalis.feature_nets.net import Network, Scaling, maps_after

_BATCH_NORM_EPS = 1e-3
# Per stage: expansion, kernel, stride of the first block, output channels, blocks.
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class EfficientNetLite0(Network):
    """The network without its classifier; names follow the published state dict.

    Its maps are the last of each resolution, from 1/2 to 1/32 of the image's side, and the final
    features.
    """

    widths = (16, 24, 40, 112, 320, 1280)
    classifier = "_fc."
    scaling = Scaling(mean=(127.0,) * 3, std=(128.0,) * 3)

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SameConv(3, 32, 3, stride=2)
        self._bn0 = _norm(32)
        blocks: list[nn.Module] = []
        last_of_size = []
        channels = 32
        for expansion, kernel, stride, out, repeats in _STAGES:
            if stride == 2:
                last_of_size.append(len(blocks) - 1)
            for repeat in range(repeats):
                blocks.append(_Block(channels, out, expansion, kernel, 1 if repeat else stride))
                channels = out
        self._last_of_size = (*last_of_size, len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _SameConv(channels, self.widths[-1], 1)
        self._bn1 = _norm(self.widths[-1])

    def forward(self, pixels: Float[Tensor, "B 3 Y X"]) -> list[Float[Tensor, "B _ _ _"]]:
        x = F.relu6(self._bn0(self._conv_stem(pixels)))
        maps = maps_after(self._blocks, self._last_of_size, x)
        return [*maps, F.relu6(self._bn1(self._conv_head(maps[-1])))]


class _Block(nn.Module):
    """Inverted residual block: expand, depthwise convolution, project."""

    def __init__(self, channels: int, out: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = channels * expansion
        self._has_expansion = expansion != 1
        if self._has_expansion:
            self._expand_conv = _SameConv(channels, inner, 1)
            self._bn0 = _norm(inner)
        self._depthwise_conv = _SameConv(inner, inner, kernel, stride, groups=inner)
        self._bn1 = _norm(inner)
        self._project_conv = _SameConv(inner, out, 1)
        self._bn2 = _norm(out)
        self._is_residual = stride == 1 and channels == out

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B Co Yo Xo"]:
        y = F.relu6(self._bn0(self._expand_conv(x)), inplace=True) if self._has_expansion else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)), inplace=True)
        y = self._bn2(self._project_conv(y))
        out: Tensor = x + y if self._is_residual else y
        return out


class _SameConv(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: an odd pixel goes to the right and bottom."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(channels, out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B Co Yo Xo"]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        down, right = (
            max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[2:]
        )
        if down == right and down % 2 == 0:
            return F.conv2d(x, self.weight, self.bias, stride, down // 2, 1, self.groups)
        x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        return F.conv2d(x, self.weight, self.bias, stride, 0, 1, self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_BATCH_NORM_EPS)
