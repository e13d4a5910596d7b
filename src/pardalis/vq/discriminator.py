"""Networks that tell images from reconstructions: PatchGAN's and StyleGAN2's.

Both take pixels in [-1, 1] and return logits, high for a real image; the one a map of them, the
other one an image.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pardalis.errors import ConfigError
from pardalis.seeds import derive

_MOST_WIDENING = 8  # times the channels of the first level
_SLOPE = 0.2  # of the leaky rectifiers below zero
_STDDEV_GROUP = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscriminatorConfig:
    """Shape of a discriminator.

    ``patch``: judges overlapping patches, 70 pixels wide with 3 layers (pix2pix, arXiv 1611.07004;
    VQ-GAN's). ``stylegan2``: judges the whole image (arXiv 1912.04958; ViT-VQGAN's).
    """

    kind: Literal["patch", "stylegan2"] = "patch"
    # Width of the first layer of patch; of the level of 512 pixels of stylegan2, whose smaller
    # levels are wider.
    channels: int = 64
    n_layers: int = 3  # patch only: convolutions that halve the side

    def __post_init__(self) -> None:
        for name in ("channels", "n_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")


class Discriminator(nn.Module):
    """What both discriminators have in common: their first weights."""

    _std: float

    @torch.no_grad()
    def initialise(self, seed: int) -> "Discriminator":
        """Draw weights from N(0, std), those of normalisations from N(1, std), with biases 0.

        Each is drawn on the CPU from a generator keyed by its name, as an image tokenizer's.
        """
        for name, parameter in self.named_parameters():
            generator = torch.Generator().manual_seed(derive(seed, "init", name))
            if name.endswith("bias"):
                parameter.zero_()
            else:
                drawn = torch.randn(parameter.shape, generator=generator) * self._std
                parameter.copy_(drawn + 1 if parameter.dim() == 1 else drawn)
        return self


def discriminator(config: DiscriminatorConfig, resolution: int) -> Discriminator:
    """Build a discriminator for images of ``resolution`` pixels a side; call ``initialise`` next.

    Raises:
        ConfigError: the resolution is too small, or no power of two where it must be.
    """
    if config.kind == "patch":
        least = 3 * 2**config.n_layers
        if resolution < least:
            raise ConfigError(
                f"A patch discriminator with n_layers = {config.n_layers} needs images of "
                f"{least} pixels or more, got {resolution}; give it fewer layers."
            )
        return PatchDiscriminator(config.channels, config.n_layers)
    if resolution < 8 or resolution & (resolution - 1):
        raise ConfigError(
            "A stylegan2 discriminator needs a resolution that is a power of two from 8 up, got "
            f"{resolution}; choose another resolution or the kind patch."
        )
    return StyleGAN2Discriminator(config.channels, resolution)


class PatchDiscriminator(Discriminator):
    """Strided convolutions with batch normalisation; parameters are named as VQ-GAN's."""

    _std = 0.02

    def __init__(self, channels: int, n_layers: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(_SLOPE)]
        width = channels
        for layer in range(1, n_layers + 1):
            wider = channels * min(2**layer, _MOST_WIDENING)
            stride = 2 if layer < n_layers else 1
            layers += [
                nn.Conv2d(width, wider, 4, stride, 1, bias=False),
                nn.BatchNorm2d(wider),
                nn.LeakyReLU(_SLOPE),
            ]
            width = wider
        layers.append(nn.Conv2d(width, 1, 4, 1, 1))
        self.main = nn.Sequential(*layers)

    def forward(self, pixels: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B 1 y x"]:
        return self.main(pixels)


class StyleGAN2Discriminator(Discriminator):
    """Residual blocks that halve the side down to 4 pixels; named as enhancing-transformers'."""

    _std = 1.0  # each layer scales its weights itself

    def __init__(self, channels: int, resolution: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_conv(3, _width(channels, resolution), 1)]
        side = resolution
        while side > 4:
            blocks.append(_Block(_width(channels, side), _width(channels, side // 2)))
            side //= 2
        self.blocks = nn.Sequential(*blocks)
        width = _width(channels, side)
        self.final_conv = _conv(width + 1, width, 3)
        self.final_linear = nn.Sequential(
            _ScaledLinear(width * side**2, width, rectifies=True), _ScaledLinear(width, 1)
        )

    def forward(self, pixels: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B 1"]:
        x = self.blocks(pixels)
        x = self.final_conv(torch.cat([x, batch_deviation(x)], 1))
        return self.final_linear(x.flatten(1))


def batch_deviation(x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B 1 Y X"]:
    """Return how much images of a group differ, as one more channel (arXiv 1710.10196).

    Groups are of 4 neighbours, or of the next larger number that divides the batch. So processes
    with shares of 4, 8 ... images form the groups of one that has all of them.
    """
    batch, _, height, width = x.shape
    smallest = min(batch, _STDDEV_GROUP)
    group = next(size for size in range(smallest, batch + 1) if batch % size == 0)
    variance = x.float().reshape(-1, group, *x.shape[1:]).var(1, unbiased=False)
    deviation = (variance + 1e-8).sqrt().mean((1, 2, 3)).to(x.dtype)
    return deviation.repeat_interleave(group).view(batch, 1, 1, 1).expand(-1, -1, height, width)


def _width(channels: int, side: int) -> int:
    """Return the channels of a level: twice as many for each halving from 512 pixels to 64."""
    return max(1, min(_MOST_WIDENING * channels, channels * 512 // side))


class _Block(nn.Module):
    """Two convolutions, the second with half the side, around a convolved shortcut."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels, 3)
        self.conv2 = _conv(channels, out, 3, halves=True)
        self.skip = _conv(channels, out, 1, halves=True, rectifies=False)

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B D y x"]:
        return (self.conv2(self.conv1(x)) + self.skip(x)) / math.sqrt(2)


def _conv(
    channels: int, out: int, kernel: int, halves: bool = False, rectifies: bool = True
) -> nn.Sequential:
    """Return a convolution, before it a blur if it halves the side, and after it a rectifier."""
    layers: list[nn.Module] = [_Blur(kernel)] if halves else []
    stride, padding = (2, 0) if halves else (1, kernel // 2)
    layers.append(_ScaledConv(channels, out, kernel, stride, padding))
    if rectifies:
        layers.append(_Rectifier(out))
    return nn.Sequential(*layers)


class _Blur(nn.Module):
    """Low-pass filter [1, 3, 3, 1] with the padding of the strided convolution that follows."""

    kernel: Tensor

    def __init__(self, next_kernel: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("kernel", torch.outer(line, line) / line.sum() ** 2)
        self._padding = (next_kernel + 1) // 2

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C y x"]:
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, -1, -1)
        return F.conv2d(x, kernel, padding=self._padding, groups=channels)


class _ScaledConv(nn.Module):
    """Convolution whose weights are of size 1 and scaled in use, so that all learn at one rate."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, channels, kernel, kernel))
        self._scale = 1 / math.sqrt(channels * kernel**2)
        self._stride, self._padding = stride, padding

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B D y x"]:
        return F.conv2d(x, self.weight * self._scale, None, self._stride, self._padding)


class _ScaledLinear(nn.Module):
    """Linear layer with weights scaled in use."""

    def __init__(self, width: int, out: int, rectifies: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, width))
        self.bias = nn.Parameter(torch.empty(out))
        self._scale = 1 / math.sqrt(width)
        self._rectifies = rectifies

    def forward(self, x: Float[Tensor, "B C"]) -> Float[Tensor, "B D"]:
        x = F.linear(x, self.weight * self._scale, self.bias)
        return _rectified(x) if self._rectifies else x


class _Rectifier(nn.Module):
    """Bias, leaky rectifier, and a gain that keeps the variance."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C Y X"]:
        return _rectified(x + self.bias.view(-1, 1, 1))


def _rectified(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return F.leaky_relu(x, _SLOPE) * math.sqrt(2)
