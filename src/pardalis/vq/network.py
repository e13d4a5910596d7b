"""The convolutional encoder and decoder of VQ-GAN (arXiv 2012.09841), as Chameleon uses them.

Parameter names are those of the original (``down.0.block.1.norm1`` ...), so published checkpoints
load without renaming. There are three differences. Pixels may be folded into channels of the input
and unfolded from those of the output (``patch_size``), which avoids the costly full-resolution
levels. The groups of a normalisation adapt to widths that 32 does not divide. There is no dropout,
which every published size sets to 0.

    pixels -> [fold] -> conv_in -> down.0 ... down.L -> mid -> norm, swish, conv_out -> latents
    latents -> conv_in -> mid -> up.L ... up.0 -> norm, swish, conv_out -> [unfold] -> pixels
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pardalis.vq.config import ImageTokenizerConfig


def normalisation(channels: int, max_groups: int) -> nn.Module:
    """Return a GroupNorm with the most groups up to ``max_groups`` that divide the channels.

    The published sizes have 32 groups everywhere. Small networks have widths that 32 does not
    divide, or so few channels that 32 groups would remove each one's mean. 0 is no normalisation.
    """
    if max_groups == 0:
        return nn.Identity()
    groups = max(n for n in range(1, max_groups + 1) if channels % n == 0)
    return GroupNorm(groups, channels, eps=1e-6)


class GroupNorm(nn.GroupNorm):
    """Group normalisation that is accurate on the CPU too.

    PyTorch's CPU kernel for channels_last loses precision on large maps. At Chameleon's 512 pixels
    its error was 3e-3 in vectors of size 3.7, which changed one code in 3,000; here it is 1e-5.
    """

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C Y X"]:
        if x.device.type != "cpu":
            return super().forward(x)
        x = x.float() if x.dtype == torch.bfloat16 else x  # as autocast on a GPU
        centred = x - self.group_mean(x.mean((2, 3)))
        scale = (self.group_mean(centred.square().mean((2, 3))) + self.eps).rsqrt()
        weight, bias = (values.view(1, -1, 1, 1) for values in (self.weight, self.bias))
        return torch.addcmul(bias, centred, weight * scale)

    def group_mean(self, means: Float[Tensor, "B C"]) -> Float[Tensor, "B C 1 1"]:
        """Return the mean of each channel's group, from the means of the channels."""
        width = self.num_channels // self.num_groups
        grouped = means.view(len(means), self.num_groups, width).mean(2)
        return grouped.repeat_interleave(width, dim=1)[:, :, None, None]


class ResnetBlock(nn.Module):
    """Residual block of two (norm, swish, convolution); the shortcut is 1x1 if widths differ."""

    def __init__(self, width_in: int, width_out: int, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.norm1 = normalisation(width_in, config.norm_groups)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = normalisation(width_out, config.norm_groups)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else None

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B D Y X"]:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Residual single-head attention over all positions of a feature map."""

    def __init__(self, width: int, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.norm = normalisation(width, config.norm_groups)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C Y X"]:
        h = self.norm(x)
        q, k, v = (
            conv(h).flatten(2).transpose(1, 2).unsqueeze(1) for conv in (self.q, self.k, self.v)
        )
        attended_BGC = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return x + self.proj_out(attended_BGC.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halve the side by a strided convolution, padded at the right and the bottom only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C y x"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the side by nearest-neighbour interpolation, then convolve."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C y x"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Mid(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, width: int, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(width, width, config)
        self.attn_1 = AttnBlock(width, config)
        self.block_2 = ResnetBlock(width, width, config)

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C Y X"]:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The blocks at one resolution, then the step to the next."""

    def __init__(
        self, width_in: int, width_out: int, n_blocks: int, side: int, config: ImageTokenizerConfig
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(width_in if i == 0 else width_out, width_out, config)
            for i in range(n_blocks)
        )
        self.downsample: Downsample | None = None  # set by the encoder except on its last level
        self.upsample: Upsample | None = None  # set by the decoder except on its last level
        with_attention = side in config.attention_resolutions
        self.attn = nn.ModuleList(
            AttnBlock(width_out, config) for _ in range(n_blocks if with_attention else 0)
        )

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B D y x"]:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        if self.downsample is not None:
            x = self.downsample(x)
        if self.upsample is not None:
            x = self.upsample(x)
        return x


class Encoder(nn.Module):
    """Pixels to latents, one vector of ``z_channels`` per code."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        widths = [config.channels * m for m in config.channel_multipliers]
        self.conv_in = nn.Conv2d(3 * config.patch_size**2, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        side = config.resolution // config.patch_size
        width_in = config.channels
        for i, width in enumerate(widths):
            level = Level(width_in, width, config.n_res_blocks, side, config)
            if i + 1 < len(widths):
                level.downsample = Downsample(width)
                side //= 2
            self.down.append(level)
            width_in = width
        self.mid = Mid(width_in, config)
        self.norm_out = normalisation(width_in, config.norm_groups)
        self.conv_out = nn.Conv2d(width_in, config.z_channels, 3, padding=1)

    def forward(self, pixels: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B C y x"]:
        return self.head(self.trunk(pixels))

    def trunk(self, pixels: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B C y x"]:
        """Return the input of :meth:`head`; it may run in 16 bits."""
        h = self.conv_in(_channels_last(F.pixel_unshuffle(pixels, self.patch_size)))
        for level in self.down:
            h = level(h)
        return self.mid(h)

    def head(self, h: Float[Tensor, "B C y x"]) -> Float[Tensor, "B D y x"]:
        """Return latents, in full precision: in 16 bits the nearest code would change."""
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Latents to pixels: the encoder mirrored, with one more block per level."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        widths = [config.channels * m for m in config.channel_multipliers]
        width_in = widths[-1]
        side = config.grid
        self.conv_in = nn.Conv2d(config.z_channels, width_in, 3, padding=1)
        self.mid = Mid(width_in, config)
        levels = []
        for i, width in reversed(list(enumerate(widths))):
            level = Level(width_in, width, config.n_res_blocks + 1, side, config)
            if i > 0:
                level.upsample = Upsample(width)
                side *= 2
            levels.append(level)
            width_in = width
        self.up = nn.ModuleList(reversed(levels))  # up.0: the highest resolution, as published
        self.norm_out = normalisation(width_in, config.norm_groups)
        self.conv_out = nn.Conv2d(width_in, 3 * config.patch_size**2, 3, padding=1)

    def forward(self, latents: Float[Tensor, "B C y x"]) -> Float[Tensor, "B 3 Y X"]:
        return self.head(self.trunk(latents))

    def trunk(self, latents: Float[Tensor, "B C y x"]) -> Float[Tensor, "B D Y X"]:
        """Return the input of :meth:`head`; it may run in 16 bits."""
        h = self.mid(self.conv_in(_channels_last(latents)))
        for level in reversed(self.up):
            h = level(h)
        return h

    def head(self, h: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B 3 _ _"]:
        """Return pixels, in full precision: bfloat16 is too coarse for 256 levels."""
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.patch_size)


def _channels_last(x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C Y X"]:
    """Convert to channels_last, which is faster for convolutions on CPU and GPU."""
    return x.contiguous(memory_format=torch.channels_last)
