"""The image tokenizer: images to grids of codes and back.

It knows images and codes only. :mod:`pardalis.codec` maps codes to token ids, and
:mod:`pardalis.train.image_tokenizer` trains the weights.

    images -> preprocess -> pixels -> encode -> codes -> decode -> pixels -> to_images -> images
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, Int, UInt8
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from pardalis import config as configs
from pardalis import files
from pardalis.documents.document import ImageSource
from pardalis.errors import BundleError, ConfigError, RequestError
from pardalis.vq import bands
from pardalis.vq.config import ImageTokenizerConfig, from_version_1, from_version_2
from pardalis.vq.network import Decoder, Encoder
from pardalis.vq.preprocessing import open_square, to_images, to_pixels
from pardalis.vq.quantizer import build_quantizer
from pardalis.weights import load_module

_CONFIG_FILE = "config.json"
_WEIGHTS_FILE = "model.safetensors"
_FORMAT = "pardalis-image-tokenizer"
_VERSION = 3
# One image of 512 x 512 or 64 of 64 x 64; on a GPU 16 times as many.
_PIXELS_PER_PASS = {"cpu": 1 << 18, "cuda": 1 << 22}

_MISSING_COLOUR = (128, 128, 128)

_Network = TypeVar("_Network", Encoder, Decoder)
_T = TypeVar("_T")


@dataclass(frozen=True)
class TokenizerOutput:
    """The result of one training pass."""

    reconstruction: Float[Tensor, "B 3 Y X"]
    quantizer_loss: Float[Tensor, ""]
    codes: Int[Tensor, "B G"]
    latents: Float[Tensor, "B Z y x"]  # the encoder's output before quantization


class ImageTokenizer(nn.Module):
    """Encoder, codebook and decoder, with the parameter names of the original VQ-GAN.

    Without a decoder (``config.has_decoder``) it only encodes; methods that need the decoder raise
    RequestError.
    """

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config) if config.has_decoder else None
        self.quantize = build_quantizer(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_width, 1)
        self.post_quant_conv = nn.Conv2d(config.code_width, config.z_channels, 1)
        _to_channels_last(self)
        self.compute_in(torch.float32)

    def compute_in(self, dtype: torch.dtype, compiled: bool = False) -> "ImageTokenizer":
        """Set how the networks compute without gradients; returns the tokenizer.

        The default is the fastest on a CPU, where :mod:`pardalis.vq.bands` computes.

        Args:
            dtype: of the convolutions; ``bfloat16`` is for GPUs. The last convolutions before
                codes and pixels, and the code search, keep the precision of the weights.
            compiled: use ``torch.compile``, which compiles for each batch size; for GPUs.
        """
        self.compute_dtype = dtype
        self._compiled: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
        if compiled:
            self._compiled[self.encoder] = torch.compile(self.encoder.trunk)
            if self.decoder is not None:
                self._compiled[self.decoder] = torch.compile(self.decoder.trunk)
        return self

    def forward(self, pixels: Float[Tensor, "B 3 Y X"]) -> TokenizerOutput:
        """Reconstruct pixels in [-1, 1] through the codebook, for training."""
        latents = self.latents(pixels)
        quantized = self.quantize(latents)
        return TokenizerOutput(
            reconstruction=self._reconstruct(quantized.latents),
            quantizer_loss=quantized.loss,
            codes=quantized.codes,
            latents=latents,
        )

    def latents(self, pixels: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B Z y x"]:
        """Return the encoder's vectors before quantization."""
        return self.quant_conv(self.encoder(pixels))

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "B 3 Y X"]) -> Int[Tensor, "B G"]:
        """Return the codes of pixels in [-1, 1], in raster order, in passes of bounded memory."""
        passes = torch.split(pixels, self.images_per_pass)
        return torch.cat([self._run_pass(self._encode_pass, some) for some in passes])

    def decode(self, codes: Int[Tensor, "B G"]) -> Float[Tensor, "B 3 Y X"]:
        """Return the pixels of raster-ordered codes, about [-1, 1] (not clamped).

        Without gradients it runs in passes of bounded memory, with them in one.
        """
        if torch.is_grad_enabled():
            return self._reconstruct(self.quantize.latents(codes))
        passes = torch.split(codes, self.images_per_pass)
        return torch.cat([self._run_pass(self._decode_pass, some) for some in passes])

    def preprocess(self, images: Sequence[ImageSource]) -> Float[Tensor, "B 3 Y X"]:
        """Return the pixels of images of any size and kind, about [-1, 1].

        See :mod:`pardalis.vq.preprocessing`.
        """
        return self._pixels(self._squares(images))

    def _squares(self, images: Sequence[ImageSource]) -> UInt8[np.ndarray, "B Y X 3"]:
        side, preprocessing = self.config.resolution, self.config.preprocessing
        return np.stack([open_square(image, side, preprocessing) for image in images])

    def _pixels(self, squares: UInt8[np.ndarray, "B Y X 3"]) -> Float[Tensor, "B 3 Y X"]:
        bytes_ = torch.from_numpy(squares).permute(0, 3, 1, 2)
        return to_pixels(bytes_.to(self.device), self.config.preprocessing)

    def to_images(self, pixels: Float[Tensor, "B 3 Y X"]) -> list[PIL.Image.Image]:
        """Return pixels as images, clamped and truncated as in Chameleon."""
        return to_images(pixels)

    @torch.no_grad()
    def codes_of(self, images: Sequence[ImageSource]) -> Int[Tensor, "B G"]:
        """Return the codes of images of any size, on the CPU, in passes of bounded memory."""
        return self._codes(images, self._squares)

    @torch.no_grad()
    def codes_of_squares(self, squares: Sequence[UInt8[np.ndarray, "Y X 3"]]) -> Int[Tensor, "B G"]:
        """Return the codes of images that :func:`open_square` opened, as :meth:`codes_of` does."""
        return self._codes(squares, np.stack)

    def _codes(
        self, images: Sequence[_T], squares_of: Callable[[Sequence[_T]], np.ndarray]
    ) -> Int[Tensor, "B G"]:
        codes = [torch.empty(0, self.config.codes_per_image, dtype=torch.long)]
        for start in range(0, len(images), self.images_per_pass):
            squares = squares_of(images[start : start + self.images_per_pass])
            codes.append(self.encode(self._pixels(squares)).cpu())
        return torch.cat(codes)

    @torch.no_grad()
    def images_of(self, codes: Int[Tensor, "B G"]) -> list[PIL.Image.Image]:
        """Return the images of codes, in passes of bounded memory."""
        images: list[PIL.Image.Image] = []
        for some in torch.split(codes.to(self.device), self.images_per_pass):
            if len(some):
                images += self.to_images(self.decode(some))
        return images

    def partial_image(self, codes: Sequence[int]) -> PIL.Image.Image:
        """Return the image of its first codes: the complete grid rows, above grey.

        The receptive field of the decoder extends past the known codes. Missing codes are replaced
        by the complete grid rows mirrored, which is closer to the final image than a constant. The
        last part shown still changes a little with the next codes.
        """
        grid = self.config.grid
        rows = len(codes) // grid
        image = PIL.Image.new("RGB", (self.config.resolution,) * 2, _MISSING_COLOUR)
        if not rows:
            return image
        complete = torch.tensor(codes[: rows * grid]).view(rows, grid)
        mirrored = torch.cat([complete, complete.flip(0)])
        whole = mirrored[torch.arange(grid) % len(mirrored)]
        [decoded] = self.images_of(whole.view(1, -1))
        shown = decoded.crop((0, 0, decoded.width, rows * self.config.downsampling))
        image.paste(shown)
        return image

    def fingerprint(self) -> str:
        """Return a hash of config and weights; with an equal hash an image has the same codes."""
        digest = hashlib.sha256(configs.fingerprint(self.config).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into a folder, each file atomically."""
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        files.write_bytes(folder / _WEIGHTS_FILE, save_safetensors(weights))
        self.save_config(folder, self.config)

    @staticmethod
    def save_config(folder: Path, config: ImageTokenizerConfig) -> None:
        """Write only ``config.json``; weights of that shape are written separately."""
        header = {"format": _FORMAT, "version": _VERSION, "config": configs.to_dict(config)}
        files.write_json(folder / _CONFIG_FILE, header)

    @staticmethod
    def load_config(folder: Path) -> ImageTokenizerConfig:
        """Read only the config that :meth:`save` wrote; raises as :meth:`load`."""
        path = folder / _CONFIG_FILE
        if not path.is_file():
            raise BundleError(
                f"{path} is missing; an image tokenizer is a folder with {_CONFIG_FILE} and "
                f"{_WEIGHTS_FILE}."
            )
        try:
            header = files.read_json(path)
            version = header["version"]
            known = type(version) is int and 1 <= version <= _VERSION
            if header["format"] != _FORMAT or not known:
                found = f"{configs.shown(header['format'])} version {configs.shown(version)}"
                raise BundleError(
                    f"{path} says {found}; this Pardalis reads {_FORMAT} versions 1 to {_VERSION}."
                )
            values = header["config"]
            if version == 1:
                values = from_version_1(values)
            if version < _VERSION:
                values = from_version_2(values)
            return configs.from_dict(ImageTokenizerConfig, values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{path} is not an image tokenizer's config: {error!r}.") from error
        except ConfigError as error:
            raise BundleError(f"{path}: {error}") from error

    @classmethod
    def load(cls, folder: Path) -> "ImageTokenizer":
        """Read what :meth:`save` wrote; the tokenizer is in evaluation mode, on the CPU.

        Weights are converted to 32 bits: in 16 bits the nearest code would change.

        Raises:
            BundleError: a file is missing or damaged, or weights do not match the config.
        """
        config = cls.load_config(folder)
        blocks = len(config.channel_multipliers) * config.n_res_blocks
        tokenizer = load_module(lambda: cls(config), folder / _WEIGHTS_FILE, blocks)
        _to_channels_last(tokenizer.float())
        return tokenizer.eval()

    def _reconstruct(self, latents: Float[Tensor, "B Z y x"]) -> Float[Tensor, "B 3 Y X"]:
        return self._require_decoder()(self.post_quant_conv(latents))

    def _encode_pass(self, pixels: Float[Tensor, "B 3 Y X"]) -> Int[Tensor, "B G"]:
        features = self._run_network(self.encoder, bands.encode, pixels)
        return self.quantize.codes(self.quant_conv(features))

    def _decode_pass(self, codes: Int[Tensor, "B G"]) -> Float[Tensor, "B 3 Y X"]:
        latents = self.post_quant_conv(self.quantize.latents(codes))
        return self._run_network(self._require_decoder(), bands.decode, latents)

    def _run_network(
        self, network: _Network, in_bands: Callable[[_Network, Tensor], Tensor], x: Tensor
    ) -> Tensor:
        """Run the encoder or the decoder without gradients, as :meth:`compute_in` set."""
        is_float32 = self.compute_dtype == torch.float32
        if x.device.type == "cpu" and is_float32 and not self._compiled:
            return in_bands(network, x)
        trunk = self._compiled.get(network, network.trunk)
        with torch.autocast(x.device.type, self.compute_dtype, enabled=not is_float32):
            h = trunk(x)
        return network.head(h.to(x.dtype))

    def _run_pass(self, run: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """Run a batch; a single image is run twice where passes are larger than one.

        On a CPU convolutions use another kernel for a single image, so its last bits would depend
        on the other images of a call.
        """
        is_single = len(batch) == 1 < self.images_per_pass
        with _without_tf32():
            return run(torch.cat([batch, batch]) if is_single else batch)[: len(batch)]

    def _require_decoder(self) -> Decoder:
        if self.decoder is None:
            raise RequestError(
                "This image tokenizer has no decoder (Hugging Face's Chameleon folders have none), "
                "so it cannot decode images; import the model again with the original vqgan.ckpt."
            )
        return self.decoder

    @property
    def images_per_pass(self) -> int:
        """Images computed together, which bounds memory."""
        pixels = _PIXELS_PER_PASS.get(self.device.type, _PIXELS_PER_PASS["cpu"])
        return max(1, pixels // self.config.resolution**2)

    @property
    def device(self) -> torch.device:
        return self.quant_conv.weight.device


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Compute convolutions on a GPU in full 32 bits, as matrix products."""
    cudnn = torch.backends.cudnn
    with cudnn.flags(
        cudnn.enabled, cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
    ):
        yield


def _to_channels_last(module: nn.Module) -> None:
    """Convert convolution weights to channels_last, the layout of the feature maps."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
