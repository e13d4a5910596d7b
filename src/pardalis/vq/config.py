"""The shape of an image tokenizer, from the quickstart's 64-pixel pictures up to Chameleon's own.

Plain values only: what is built from them is in :mod:`pardalis.vq.tokenizer`, how it is trained in
:mod:`pardalis.train.image_tokenizer`.
"""

from dataclasses import dataclass, field
from typing import Literal

from pardalis.errors import ConfigError

Preprocessing = Literal["chameleon", "transformers"]


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizerConfig:
    """How the codebook learns.

    ``gradient``: it is a weight with a loss, as Chameleon's. ``ema``: each entry follows the mean
    of the vectors that choose it. Either starts from data and has its unused entries restarted
    (:class:`pardalis.vq.LiveCodebook`).
    """

    kind: Literal["gradient", "ema"] = "gradient"
    beta: float = 0.25  # weight of the commitment; of the codebook's loss instead if legacy
    legacy: bool = True  # gradient only: put beta where Chameleon's code has it, not the paper
    # Vectors and entries are compared, and entries decoded, at length 1, as in ViT-VQGAN
    # (arXiv 2110.04627) and LlamaGen (arXiv 2406.06525).
    normalise: bool = False

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise ConfigError(f"beta must be 0 or more, got {self.beta}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTokenizerConfig:
    """Shape of the encoder, codebook and decoder."""

    resolution: int  # pixels per side of a picture
    channels: int  # width of the first level; the others are multiples of it
    channel_multipliers: tuple[int, ...]  # one per level; each after the first halves the side
    n_res_blocks: int  # residual blocks per level of the encoder; the decoder has one more
    z_channels: int  # width at the encoder's exit and the decoder's entry
    code_width: int  # width of a codebook entry
    n_codes: int  # entries of the codebook
    attention_resolutions: tuple[int, ...] = ()  # sides of maps with attention, besides the middle
    patch_size: int = 1  # pixels per side folded into channels at the entrance; 1 = none
    norm_groups: int = 32  # most groups of a normalisation (see network.normalisation); 0 = none
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    preprocessing: Preprocessing = "chameleon"  # see pardalis.vq.preprocessing
    has_decoder: bool = True  # without it pictures become codes, and codes no pictures

    def __post_init__(self) -> None:
        for name in (
            "resolution", "channels", "n_res_blocks", "z_channels", "code_width", "n_codes",
            "patch_size",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.norm_groups < 0:
            raise ConfigError(f"norm_groups must be 0 or more, got {self.norm_groups}.")
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise ConfigError(
                "channel_multipliers needs at least one level and multiples of 1 or more, got "
                f"{list(self.channel_multipliers)}."
            )
        if self.resolution % self.downsampling:
            raise ConfigError(
                f"resolution is {self.resolution}, but patch_size {self.patch_size} and "
                f"{len(self.channel_multipliers)} levels shrink a side {self.downsampling} times; "
                f"choose a resolution that {self.downsampling} divides."
            )

    @property
    def downsampling(self) -> int:
        """Pixels per side that one code stands for."""
        return self.patch_size * 2 ** (len(self.channel_multipliers) - 1)

    @property
    def grid(self) -> int:
        """Codes per side of a picture."""
        return self.resolution // self.downsampling

    @property
    def codes_per_picture(self) -> int:
        return self.grid**2


def tiny() -> ImageTokenizerConfig:
    """The quickstart's: 64 pixels, 8 x 8 codes; learns flat art in two minutes on two cores.

    Without normalisation: that of groups divides by statistics of the whole picture, which a
    decoder of flat colours must then undo, and in so short a run it never quite does.
    """
    return ImageTokenizerConfig(
        resolution=64,
        patch_size=4,
        channels=32,
        channel_multipliers=(1, 2),
        n_res_blocks=1,
        norm_groups=0,
        z_channels=128,
        code_width=32,
        n_codes=1024,
        quantizer=QuantizerConfig(kind="ema"),
    )


def chameleon() -> ImageTokenizerConfig:
    """Chameleon's as shipped (arXiv 2405.09818): 512 pixels, 32 x 32 codes, 68.7M parameters."""
    return ImageTokenizerConfig(
        resolution=512,
        channels=128,
        channel_multipliers=(1, 1, 2, 2, 4),
        n_res_blocks=2,
        z_channels=256,
        code_width=256,
        n_codes=8192,
    )


PRESETS = {"tiny": tiny, "chameleon": chameleon}
