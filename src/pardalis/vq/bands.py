"""Inference of an image tokenizer's networks on a CPU, in horizontal bands that fit its cache.

The computation is that of :mod:`pardalis.vq.network`, whose modules hold the weights. Each
convolution reads a band of a feature map and its halo, normalises it, and writes a band of the next
map. A normalised map never exists as a whole, and a residual block adds to its input in place. So
two maps are in memory instead of five, and each convolution reads and writes a map once.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pardalis.vq.network import Decoder, Encoder, GroupNorm, Level, Mid, ResnetBlock

_BAND_BYTES = 1 << 22  # per image

Map = Float[Tensor, "B _ _ _"]


def encode(encoder: Encoder, pixels: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B C y x"]:
    """Return the output of ``encoder(pixels)``."""
    x = _convolve(F.pixel_unshuffle(pixels, encoder.patch_size), encoder.conv_in)
    for level in encoder.down:
        x = _level(x, cast(Level, level))
    return _convolve(_middle(x, encoder.mid), encoder.conv_out, encoder.norm_out)


def decode(decoder: Decoder, latents: Float[Tensor, "B C y x"]) -> Float[Tensor, "B 3 Y X"]:
    """Return the output of ``decoder(latents)``."""
    x = _middle(_convolve(latents, decoder.conv_in), decoder.mid)
    for level in reversed(decoder.up):
        x = _level(x, cast(Level, level))
    return F.pixel_shuffle(_convolve(x, decoder.conv_out, decoder.norm_out), decoder.patch_size)


def _level(x: Map, level: Level) -> Map:
    for i, block in enumerate(level.block):
        x = _block(x, cast(ResnetBlock, block))
        if level.attn:
            x = level.attn[i](x)
    if level.downsample is not None:
        x = level.downsample(x) if _is_small(x) else _downsample(x, level.downsample.conv)
    if level.upsample is not None:
        x = level.upsample(x) if _is_small(x) else _upsample(x, level.upsample.conv)
    return x


def _middle(x: Map, mid: Mid) -> Map:
    return _block(mid.attn_1(_block(x, mid.block_1)), mid.block_2)


def _block(x: Map, block: ResnetBlock) -> Map:
    """Return the output of a residual block; ``x`` may be overwritten."""
    h = _convolve(x, block.conv1, block.norm1)
    if block.nin_shortcut is not None:
        x = _convolve(x, block.nin_shortcut)
    return _convolve(h, block.conv2, block.norm2, onto=x)


def _convolve(
    x: Map, conv: nn.Conv2d, norm: nn.Module | None = None, onto: Map | None = None
) -> Map:
    """Apply norm and swish (if there is a norm), convolve, and add the result to ``onto``."""
    height, halo = x.shape[2], conv.kernel_size[0] // 2
    prepare = _prepare(x, norm)
    if _is_small(x):
        convolved = conv(prepare(x))
        return convolved if onto is None else onto.add_(convolved)

    def rows(first: int, last: int) -> Map:
        around = prepare(x[:, :, max(first - halo, 0) : last + halo])
        return _pad(around, 0, max(halo - first, 0), max(last + halo - height, 0))

    return _convolve_bands(x, conv, x.shape[2:], rows, onto)


def _downsample(x: Map, conv: nn.Conv2d) -> Map:
    height, width = x.shape[2] // 2, x.shape[3] // 2

    def rows(first: int, last: int) -> Map:
        return _pad(x[:, :, 2 * first : 2 * last + 1], 1, 0, int(last == height))

    return _convolve_bands(x, conv, (height, width), rows)


def _upsample(x: Map, conv: nn.Conv2d) -> Map:
    height, width = 2 * x.shape[2], 2 * x.shape[3]

    def rows(first: int, last: int) -> Map:
        around = x[:, :, max(first // 2 - 1, 0) : last // 2 + 1]
        doubled = F.interpolate(around, scale_factor=2.0, mode="nearest")
        above, below = int(first == 0), int(last == height)
        return _pad(doubled[:, :, 1 - above : doubled.shape[2] - 1 + below], 0, above, below)

    return _convolve_bands(x, conv, (height, width), rows)


def _convolve_bands(
    like: Map,
    conv: nn.Conv2d,
    sides: Sequence[int],
    rows: Callable[[int, int], Map],
    onto: Map | None = None,
) -> Map:
    """Convolve band by band into a new map, or add to ``onto``.

    ``rows(first, last)`` returns the padded input of the output rows from first to last. The size
    of a band does not depend on the batch size, so neither do the last bits of a result.
    """
    if onto is None:
        shape = (len(like), conv.out_channels, *sides)
        out = torch.empty(shape, dtype=like.dtype, memory_format=torch.channels_last)
    else:
        out = onto
    for first, last in _bands(out):
        band = F.conv2d(
            rows(first, last), conv.weight, conv.bias, conv.stride, (0, int(conv.padding[1]))
        )
        if onto is None:
            out[:, :, first:last] = band
        else:
            out[:, :, first:last] += band
    return out


def _prepare(x: Map, norm: nn.Module | None) -> Callable[[Map], Map]:
    """Return the function that prepares a band for its convolution: nothing, or norm and swish."""
    if norm is None:
        return lambda rows: rows
    if not isinstance(norm, GroupNorm):
        return F.silu
    mean = norm.group_mean(x.mean((2, 3)))
    squares = torch.zeros_like(mean)
    for first, last in _bands(x):
        squares += (x[:, :, first:last] - mean).square_().sum((2, 3), keepdim=True)
    variance = norm.group_mean(squares[:, :, 0, 0] / (x.shape[2] * x.shape[3]))
    scale = norm.weight.view(1, -1, 1, 1) * (variance + norm.eps).rsqrt()
    shift = norm.bias.view(1, -1, 1, 1) - mean * scale
    return lambda rows: F.silu(torch.addcmul(shift, rows, scale), inplace=True)


def _bands(x: Map) -> Iterator[tuple[int, int]]:
    """Yield the first row of each band and the row after its last; bands have even heights."""
    height, rows = x.shape[2], max(2, _BAND_BYTES // _row_bytes(x) // 2 * 2)
    return ((first, min(first + rows, height)) for first in range(0, height, rows))


def _is_small(x: Map) -> bool:
    """Tell whether an image's map fits a single band."""
    return x.shape[2] * _row_bytes(x) <= _BAND_BYTES


def _row_bytes(x: Map) -> int:
    return x.shape[1] * x.shape[3] * x.element_size()


def _pad(x: Map, right: int, above: int, below: int) -> Map:
    return F.pad(x, (0, right, above, below)) if right or above or below else x
