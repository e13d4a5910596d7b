"""Inception v3 (arXiv 1512.00567) of the Fréchet inception distance (arXiv 1706.08500).

TensorFlow's net of 2015-12-05 differs from torchvision's in three points: average pooling excludes
the padding, the last block uses max pooling where the others use average pooling, and there are
1,008 classes. Names follow torchvision's, as in the converted file pt_inception-2015-12-05.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pardalis.feature_nets.net import Network, Scaling


class InceptionV3(Network):
    """The network without its classifier; pooled features are of images resized to 299 pixels.

    Its maps are those before each downsampling, and the last.
    """

    widths = (64, 192, 288, 768, 2048)
    classifier = "fc."
    scaling = Scaling(mean=(127.5,) * 3, std=(127.5,) * 3)
    side = 299
    min_side = 75
    antialias = False  # as in the published FID

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b = _A(192, pooled=32)
        self.Mixed_5c = _A(256, pooled=64)
        self.Mixed_5d = _A(288, pooled=64)
        self.Mixed_6a = _B(288)
        self.Mixed_6b = _C(128)
        self.Mixed_6c = _C(160)
        self.Mixed_6d = _C(160)
        self.Mixed_6e = _C(192)
        self.Mixed_7a = _D(768)
        self.Mixed_7b = _E(1280, pool="mean")
        self.Mixed_7c = _E(2048, pool="max")

    def forward(self, pixels: Float[Tensor, "B 3 Y X"]) -> list[Float[Tensor, "B _ _ _"]]:
        stem = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pixels)))
        x = self.Conv2d_3b_1x1(F.max_pool2d(stem, 3, 2))
        wide = self.Conv2d_4a_3x3(x)
        a = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(wide, 3, 2))))
        c = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(a)))))
        e = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(c)))
        return [stem, wide, a, c, e]


class _Conv(nn.Module):
    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B Co Yo Xo"]:
        return F.relu(self.bn(self.conv(x)))


def _row(channels: int, out: int, length: int) -> _Conv:
    return _Conv(channels, out, (1, length), padding=(0, length // 2))


def _column(channels: int, out: int, length: int) -> _Conv:
    return _Conv(channels, out, (length, 1), padding=(length // 2, 0))


def _mean(x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C Y X"]:
    return F.avg_pool2d(x, 3, 1, padding=1, count_include_pad=False)


class _A(nn.Module):
    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(channels, 64, 1)
        self.branch5x5_1 = _Conv(channels, 48, 1)
        self.branch5x5_2 = _Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Conv(channels, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, padding=1)
        self.branch_pool = _Conv(channels, pooled, 1)

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B Co Y X"]:
        branches = [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(_mean(x)),
        ]
        return torch.cat(branches, 1)


class _B(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Conv(channels, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2)

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B Co Yo Xo"]:
        branches = [
            self.branch3x3(x),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            F.max_pool2d(x, 3, 2),
        ]
        return torch.cat(branches, 1)


class _C(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(768, 192, 1)
        self.branch7x7_1 = _Conv(768, inner, 1)
        self.branch7x7_2 = _row(inner, inner, 7)
        self.branch7x7_3 = _column(inner, 192, 7)
        self.branch7x7dbl_1 = _Conv(768, inner, 1)
        self.branch7x7dbl_2 = _column(inner, inner, 7)
        self.branch7x7dbl_3 = _row(inner, inner, 7)
        self.branch7x7dbl_4 = _column(inner, inner, 7)
        self.branch7x7dbl_5 = _row(inner, 192, 7)
        self.branch_pool = _Conv(768, 192, 1)

    def forward(self, x: Float[Tensor, "B 768 Y X"]) -> Float[Tensor, "B 768 Y X"]:
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        branches = [
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(_mean(x)),
        ]
        return torch.cat(branches, 1)


class _D(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(channels, 192, 1)
        self.branch3x3_2 = _Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Conv(channels, 192, 1)
        self.branch7x7x3_2 = _row(192, 192, 7)
        self.branch7x7x3_3 = _column(192, 192, 7)
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2)

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B Co Yo Xo"]:
        filtered = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        branches = [
            self.branch3x3_2(self.branch3x3_1(x)),
            self.branch7x7x3_4(filtered),
            F.max_pool2d(x, 3, 2),
        ]
        return torch.cat(branches, 1)


class _E(nn.Module):
    def __init__(self, channels: int, pool: Literal["mean", "max"]) -> None:
        super().__init__()
        self._pool = pool
        self.branch1x1 = _Conv(channels, 320, 1)
        self.branch3x3_1 = _Conv(channels, 384, 1)
        self.branch3x3_2a = _row(384, 384, 3)
        self.branch3x3_2b = _column(384, 384, 3)
        self.branch3x3dbl_1 = _Conv(channels, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _row(384, 384, 3)
        self.branch3x3dbl_3b = _column(384, 384, 3)
        self.branch_pool = _Conv(channels, 192, 1)

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B 2048 Y X"]:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = _mean(x) if self._pool == "mean" else F.max_pool2d(x, 3, 1, padding=1)
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        ]
        return torch.cat(branches, 1)
