"""Discriminators of real images and reconstructions: PatchGAN and StyleGAN2.

Both take pixels in [-1, 1] and return logits that are high for real images: PatchGAN a map of
them, StyleGAN2 one per image.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pardalis.config import check_at_least
from pardalis.errors import ConfigError
from pardalis.seeds import derive

_MAX_WIDTH_MULTIPLE = 8  # relative to the first level
_NEGATIVE_SLOPE = 0.2  # slope of LeakyReLU
_STDDEV_GROUP = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchConfig:
    """Classifies overlapping patches, 70 pixels wide with 3 layers (pix2pix, arXiv 1611.07004).

    VQ-GAN has it.
    """

    kind: Literal["patch"] = "patch"
    channels: int = 64  # width of the first layer
    n_layers: int = 3  # convolutions of stride 2

    def __post_init__(self) -> None:
        check_at_least(self, channels=1, n_layers=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class StyleGAN2Config:
    """Classifies whole images (arXiv 1912.04958). ViT-VQGAN has it."""

    kind: Literal["stylegan2"] = "stylegan2"
    channels: int = 64  # width at 512 pixels; smaller levels are wider

    def __post_init__(self) -> None:
        check_at_least(self, channels=1)


DiscriminatorConfig = PatchConfig | StyleGAN2Config


class Discriminator(nn.Module):
    """Base class: initialisation."""

    _std: float

    @torch.no_grad()
    def initialise(self, seed: int) -> "Discriminator":
        """Initialise weights from N(0, std), normalisation weights from N(1, std), biases to 0.

        Each parameter is sampled on the CPU from a generator keyed by its name.
        """
        for name, parameter in self.named_parameters():
            generator = torch.Generator().manual_seed(derive(seed, "init", name))
            if name.endswith("bias"):
                parameter.zero_()
            else:
                noise = torch.randn(parameter.shape, generator=generator) * self._std
                parameter.copy_(noise + 1 if parameter.dim() == 1 else noise)
        return self


def build_discriminator(config: DiscriminatorConfig, resolution: int) -> Discriminator:
    """Build a discriminator for square images of ``resolution`` pixels; call ``initialise`` next.

    Raises:
        ConfigError: the resolution is too small, or for stylegan2 no power of two.
    """
    if isinstance(config, PatchConfig):
        minimum = 3 * 2**config.n_layers
        if resolution < minimum:
            raise ConfigError(
                f"A patch discriminator with n_layers = {config.n_layers} needs images of "
                f"{minimum} pixels or more, got {resolution}; reduce n_layers."
            )
        return PatchDiscriminator(config.channels, config.n_layers)
    if resolution < 8 or resolution & (resolution - 1):
        raise ConfigError(
            "A stylegan2 discriminator needs a resolution that is a power of two from 8, got "
            f"{resolution}; choose another resolution or the kind patch."
        )
    return StyleGAN2Discriminator(config.channels, resolution)


class PatchDiscriminator(Discriminator):
    """Strided convolutions with batch normalisation; parameter names are VQ-GAN's."""

    _std = 0.02

    def __init__(self, channels: int, n_layers: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(_NEGATIVE_SLOPE)]
        width = channels
        for layer in range(1, n_layers + 1):
            wider = channels * min(2**layer, _MAX_WIDTH_MULTIPLE)
            stride = 2 if layer < n_layers else 1
            layers += [
                nn.Conv2d(width, wider, 4, stride, 1, bias=False),
                nn.BatchNorm2d(wider),
                nn.LeakyReLU(_NEGATIVE_SLOPE),
            ]
            width = wider
        layers.append(nn.Conv2d(width, 1, 4, 1, 1))
        self.main = nn.Sequential(*layers)

    def forward(self, pixels: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B 1 y x"]:
        return self.main(pixels)


class StyleGAN2Discriminator(Discriminator):
    """Residual blocks down to 4 x 4; parameter names are those of enhancing-transformers."""

    _std = 1.0  # each layer scales its weights in its forward pass

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
            _ScaledLinear(width * side**2, width, activate=True), _ScaledLinear(width, 1)
        )

    def forward(self, pixels: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B 1"]:
        x = self.blocks(pixels)
        x = self.final_conv(torch.cat([x, minibatch_std(x)], 1))
        return self.final_linear(x.flatten(1))


def minibatch_std(x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B 1 Y X"]:
    """Return the minibatch standard deviation as one more channel (arXiv 1710.10196).

    A group has 4 neighbouring images, or the next larger number that divides the batch. Processes
    with a multiple of 4 images each therefore form the same groups as one process with all images.
    """
    batch, _, height, width = x.shape
    smallest = min(batch, _STDDEV_GROUP)
    group = next(size for size in range(smallest, batch + 1) if batch % size == 0)
    variance = x.float().reshape(-1, group, *x.shape[1:]).var(1, unbiased=False)
    deviation = (variance + 1e-8).sqrt().mean((1, 2, 3)).to(x.dtype)
    return deviation.repeat_interleave(group).view(batch, 1, 1, 1).expand(-1, -1, height, width)


def _width(channels: int, side: int) -> int:
    """Return the channels of a level: doubled at each halving from 512 pixels to 64."""
    return max(1, min(_MAX_WIDTH_MULTIPLE * channels, channels * 512 // side))


class _Block(nn.Module):
    """Residual block of two convolutions, the second of stride 2, with a 1x1 shortcut."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels, 3)
        self.conv2 = _conv(channels, out, 3, downsample=True)
        self.skip = _conv(channels, out, 1, downsample=True, activate=False)

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B D y x"]:
        return (self.conv2(self.conv1(x)) + self.skip(x)) / math.sqrt(2)


def _conv(
    channels: int, out: int, kernel: int, downsample: bool = False, activate: bool = True
) -> nn.Sequential:
    """Return a convolution with an optional blur before it and an optional activation after it."""
    layers: list[nn.Module] = [_Blur(kernel)] if downsample else []
    stride, padding = (2, 0) if downsample else (1, kernel // 2)
    layers.append(_ScaledConv(channels, out, kernel, stride, padding))
    if activate:
        layers.append(_BiasedLeakyReLU(out))
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
    """Convolution with an equalised learning rate: weights of variance 1, scaled in use."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, channels, kernel, kernel))
        self._scale = 1 / math.sqrt(channels * kernel**2)
        self._stride, self._padding = stride, padding

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B D y x"]:
        return F.conv2d(x, self.weight * self._scale, None, self._stride, self._padding)


class _ScaledLinear(nn.Module):
    """Linear layer with an equalised learning rate."""

    def __init__(self, width: int, out: int, activate: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, width))
        self.bias = nn.Parameter(torch.empty(out))
        self._scale = 1 / math.sqrt(width)
        self._activate = activate

    def forward(self, x: Float[Tensor, "B C"]) -> Float[Tensor, "B D"]:
        x = F.linear(x, self.weight * self._scale, self.bias)
        return _leaky_relu(x) if self._activate else x


class _BiasedLeakyReLU(nn.Module):
    """Bias, LeakyReLU, and a gain that keeps the variance."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C Y X"]:
        return _leaky_relu(x + self.bias.view(-1, 1, 1))


def _leaky_relu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return F.leaky_relu(x, _NEGATIVE_SLOPE) * math.sqrt(2)
