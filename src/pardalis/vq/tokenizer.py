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
from pardalis.documents.document import PictureSource
from pardalis.errors import BundleError, ConfigError, RequestError
from pardalis.vq.config import ImageTokenizerConfig
from pardalis.vq.losses import Losses, l1_and_l2
from pardalis.vq.network import Decoder, Encoder
from pardalis.vq.preprocessing import open_square, to_images, to_pixels
from pardalis.vq.quantizer import VectorQuantizer
from pardalis.weights import load_weights

_CONFIG_FILE = "config.json"
_WEIGHTS_FILE = "model.safetensors"
_FORMAT = "pardalis-image-tokenizer"
_VERSION = 1
_PIXELS_PER_PASS = 1 << 18  # at once: 1 picture of 512 x 512, 64 of 64 x 64


@dataclass(frozen=True)
class TokenizerOutput:
    """What one training pass yields."""

    reconstruction: Float[Tensor, "B 3 Y X"]
    losses: Losses
    codes: Int[Tensor, "B G"]
    latents: Float[Tensor, "B Z y x"]  # the encoder's exit before it is snapped to codes


class ImageTokenizer(nn.Module):
    """Encoder, codebook and decoder, with the parameter names of the original VQ-GAN.

    One without a decoder (``config.has_decoder``) turns pictures into codes only; whatever needs
    the decoder raises RequestError.
    """

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config) if config.has_decoder else None
        self.quantize = VectorQuantizer(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_width, 1)
        self.post_quant_conv = nn.Conv2d(config.code_width, config.z_channels, 1)
        _lay_channels_last(self)

    def forward(self, pixels: Float[Tensor, "B 3 Y X"]) -> TokenizerOutput:
        """Reconstruct pixels in [-1, 1] through the codebook, for training."""
        latents = self.latents(pixels)
        quantized = self.quantize(latents)
        reconstruction = self._drawn(quantized.latents)
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
        return self._drawn(self.quantize.latents(codes))

    def preprocess(self, pictures: Sequence[PictureSource]) -> Float[Tensor, "B 3 Y X"]:
        """Return the pixels of pictures of any size and kind, about [-1, 1].

        What is done to them is in :mod:`pardalis.vq.preprocessing`.
        """
        side, preprocessing = self.config.resolution, self.config.preprocessing
        squares = np.stack([open_square(picture, side, preprocessing) for picture in pictures])
        bytes_ = torch.from_numpy(squares).permute(0, 3, 1, 2)
        return to_pixels(bytes_.to(self._device), preprocessing)

    def to_images(self, pixels: Float[Tensor, "B 3 Y X"]) -> list[Image.Image]:
        """Return pictures of pixels, clamped; fractions are cut off, as Chameleon does."""
        return to_images(pixels)

    @torch.no_grad()
    def codes_of(self, pictures: Sequence[PictureSource]) -> Int[Tensor, "B G"]:
        """Return the codes of pictures of any size, on the CPU, in passes of bounded memory."""
        codes = [torch.empty(0, self.config.codes_per_picture, dtype=torch.long)]
        for start in range(0, len(pictures), self._pass):
            pixels = self.preprocess(pictures[start : start + self._pass])
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
        files.write_bytes(folder / _WEIGHTS_FILE, save_safetensors(weights))
        self.save_config(folder, self.config)

    @staticmethod
    def save_config(folder: Path, config: ImageTokenizerConfig) -> None:
        """Write only ``config.json``, for whoever brings weights of that shape."""
        header = {"format": _FORMAT, "version": _VERSION, "config": configs.to_dict(config)}
        files.write_json(folder / _CONFIG_FILE, header)

    @staticmethod
    def load_config(folder: Path) -> ImageTokenizerConfig:
        """Read only the config of what :meth:`save` wrote; raises as :meth:`load`."""
        return _read_config(folder / _CONFIG_FILE)

    @classmethod
    def load(cls, folder: Path) -> "ImageTokenizer":
        """Read what :meth:`save` wrote; the tokenizer is in evaluation mode, on the CPU.

        It computes in 32 bits, whatever the file stores: in 16, near codes change places.

        Raises:
            BundleError: a file is missing or broken, or weights do not fit the config.
        """
        config = cls.load_config(folder)
        with torch.device("meta"):
            tokenizer = cls(config)
        load_weights(tokenizer, folder / _WEIGHTS_FILE)
        _lay_channels_last(tokenizer.float())
        return tokenizer.eval()

    def _drawn(self, latents: Float[Tensor, "B Z y x"]) -> Float[Tensor, "B 3 Y X"]:
        if self.decoder is None:
            raise RequestError(
                "This image tokenizer has no decoder (Hugging Face's Chameleon folders have none), "
                "so it cannot draw; import the model again with the original vqgan.ckpt."
            )
        return self.decoder(self.post_quant_conv(latents))

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
