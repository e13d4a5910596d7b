"""The image tokenizer: pictures to grids of codes and back.

It knows pictures and codes only; which vocabulary id a code has is the business of
:mod:`pardalis.codec`, and how the weights come about that of :mod:`pardalis.train.image_tokenizer`.

    pictures -> preprocess -> pixels -> encode -> codes -> decode -> pixels -> to_images -> pictures
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from pardalis import config as configs
from pardalis import files
from pardalis.errors import BundleError, ConfigError
from pardalis.vq.config import ImageTokenizerConfig
from pardalis.vq.losses import Losses, l1_and_l2
from pardalis.vq.network import Decoder, Encoder
from pardalis.vq.quantizer import VectorQuantizer
from pardalis.weights import load_weights

_CONFIG_FILE = "config.json"
_WEIGHTS_FILE = "model.safetensors"
_FORMAT = "pardalis-image-tokenizer"
_VERSION = 1
_PIXELS_PER_PASS = 1 << 18  # at once: 1 picture of 512 x 512, 64 of 64 x 64
# The rest of a more elongated picture is cut off before scaling, which else would need memory
# for a picture of 10,000 x 1 pixels at 5 million x 512. Only the middle square is kept anyway.
_MOST_ELONGATED = 32


@dataclass(frozen=True)
class TokenizerOutput:
    """What one training pass yields."""

    reconstruction: Float[Tensor, "B 3 Y X"]
    losses: Losses
    codes: Int[Tensor, "B G"]
    latents: Float[Tensor, "B Z y x"]  # the encoder's exit before it is snapped to codes


class ImageTokenizer(nn.Module):
    """Encoder, codebook and decoder, with the parameter names of the original VQ-GAN."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = VectorQuantizer(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_width, 1)
        self.post_quant_conv = nn.Conv2d(config.code_width, config.z_channels, 1)
        _lay_channels_last(self)

    def forward(self, pixels: Float[Tensor, "B 3 Y X"]) -> TokenizerOutput:
        """Reconstruct pixels in [-1, 1] through the codebook, for training."""
        latents = self.latents(pixels)
        quantized = self.quantize(latents)
        reconstruction = self.decoder(self.post_quant_conv(quantized.latents))
        l1, l2 = l1_and_l2(reconstruction, pixels)
        return TokenizerOutput(
            reconstruction=reconstruction,
            losses=Losses(l1=l1, l2=l2, quantizer=quantized.loss),
            codes=quantized.codes,
            latents=latents,
        )

    def latents(self, pixels: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B Z y x"]:
        """Return the encoder's vectors before they are snapped to codes."""
        return self.quant_conv(self.encoder(pixels))

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "B 3 Y X"]) -> Int[Tensor, "B G"]:
        """Return the codes of pixels in [-1, 1], in raster order."""
        return self.quantize.codes(self.latents(pixels))

    def decode(self, codes: Int[Tensor, "B G"]) -> Float[Tensor, "B 3 Y X"]:
        """Return the pixels of raster-ordered codes, about [-1, 1] (not clamped)."""
        return self.decoder(self.post_quant_conv(self.quantize.latents(codes)))

    def preprocess(self, images: Sequence[Image.Image]) -> Float[Tensor, "B 3 Y X"]:
        """Scale the shorter side to the resolution, crop the centre, and map 0..255 to -1..1.

        Chameleon's own policy: Lanczos, sizes rounded to the nearest pixel, crop offsets rounded
        down, 255 exactly 1 (other implementations of it stop at 0.989 and get other codes).
        """
        side = self.config.resolution
        pixels = torch.from_numpy(np.stack([square(image, side) for image in images]))
        return pixels.permute(0, 3, 1, 2).to(self._device).float() / 255 * 2 - 1

    def to_images(self, pixels: Float[Tensor, "B 3 Y X"]) -> list[Image.Image]:
        """Return pictures of pixels, clamped; fractions are cut off, as Chameleon does."""
        scaled = (pixels.detach().float().clamp(-1, 1) + 1) / 2 * 255
        arrays = scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(array) for array in arrays]

    @torch.no_grad()
    def codes_of(self, images: Sequence[Image.Image]) -> Int[Tensor, "B G"]:
        """Return the codes of RGB pictures of any size, on the CPU, in passes of bounded memory."""
        codes = [torch.empty(0, self.config.codes_per_picture, dtype=torch.long)]
        for start in range(0, len(images), self._pass):
            pixels = self.preprocess(images[start : start + self._pass])
            codes.append(self.encode(self._never_alone(pixels))[: len(pixels)].cpu())
        return torch.cat(codes)

    @torch.no_grad()
    def images_of(self, codes: Int[Tensor, "B G"]) -> list[Image.Image]:
        """Return the pictures of codes, in passes of bounded memory."""
        images: list[Image.Image] = []
        for some in torch.split(codes.to(self._device), self._pass):
            images += self.to_images(self.decode(self._never_alone(some))[: len(some)])
        return images

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into a folder, each file atomically."""
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        header = {"format": _FORMAT, "version": _VERSION, "config": configs.to_dict(self.config)}
        files.write_bytes(folder / _WEIGHTS_FILE, save_safetensors(weights))
        files.write_json(folder / _CONFIG_FILE, header)

    @classmethod
    def load(cls, folder: Path) -> "ImageTokenizer":
        """Read what :meth:`save` wrote; the tokenizer is in evaluation mode, on the CPU.

        Raises:
            BundleError: a file is missing or broken, or weights do not fit the config.
        """
        config = _read_config(folder / _CONFIG_FILE)
        with torch.device("meta"):
            tokenizer = cls(config)
        load_weights(tokenizer, folder / _WEIGHTS_FILE)
        _lay_channels_last(tokenizer)
        return tokenizer.eval()

    @property
    def _device(self) -> torch.device:
        return self.quant_conv.weight.device

    @property
    def _pass(self) -> int:
        return max(1, _PIXELS_PER_PASS // self.config.resolution**2)

    def _never_alone(self, batch: Tensor) -> Tensor:
        """Double a batch of one, where passes are larger.

        Convolutions have another kernel for it on CPU, and its last bits would then depend on
        which pictures came along.
        """
        return torch.cat([batch, batch]) if len(batch) == 1 < self._pass else batch


def _lay_channels_last(module: nn.Module) -> None:
    """Order the memory of convolution weights as the network orders its feature maps."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def square(image: Image.Image, side: int) -> np.ndarray:
    """Return the centre of an RGB picture, its shorter side scaled to ``side``, as bytes Y X C."""
    if max(image.size) > _MOST_ELONGATED * min(image.size):
        image = _middle(image, _MOST_ELONGATED * min(image.size))
    scale = side / min(image.size)
    width, height = (round(scale * length) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def _middle(image: Image.Image, length: int) -> Image.Image:
    """Cut a picture down to at most ``length`` pixels a side, around its centre."""
    width, height = (min(length, size) for size in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _read_config(path: Path) -> ImageTokenizerConfig:
    if not path.is_file():
        raise BundleError(f"{path} is missing; an image tokenizer is a folder with {_CONFIG_FILE} "
                          f"and {_WEIGHTS_FILE}.")  # fmt: skip
    try:
        header = json.loads(path.read_text())
        if header["format"] != _FORMAT or header["version"] != _VERSION:
            raise BundleError(
                f"{path} says {header['format']} version {header['version']}; this Pardalis reads "
                f"{_FORMAT} version {_VERSION}."
            )
        return configs.from_dict(ImageTokenizerConfig, header["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is not an image tokenizer's config: {error!r}.") from error
    except ConfigError as error:
        raise BundleError(f"{path}: {error}") from error
