"""The shape of an image tokenizer, with presets from 64-pixel images to Chameleon's.

The network is in :mod:`pardalis.vq.tokenizer`, its training in
:mod:`pardalis.train.image_tokenizer`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from pardalis.config import Kinds, check_at_least, check_at_most, check_finite, shown
from pardalis.errors import ConfigError

Preprocessing = Literal["chameleon", "transformers"]
_MIN_LEVELS, _MIN_CHOSEN_LEVELS, _MAX_LEVELS = 3, 5, 64  # per dimension of fsq
_MOST_LEVELS, _LARGEST_MULTIPLE = 16, 1024  # of channel_multipliers, far above all use


@dataclass(frozen=True, kw_only=True, slots=True)
class _LossConfig:
    beta: float = 0.25  # weight of the commitment loss

    def __post_init__(self) -> None:
        check_at_least(self, beta=0)
        check_finite(self, "beta")


@dataclass(frozen=True, kw_only=True, slots=True)
class VQConfig(_LossConfig):
    """A codebook with the straight-through estimator, initialised from data; dead codes restart."""

    kind: Literal["vq"] = "vq"
    legacy: bool = True  # beta weights the codebook loss instead, as in VQ-GAN's code and Chameleon


@dataclass(frozen=True, kw_only=True, slots=True)
class EMAConfig(_LossConfig):
    """As ``vq``, but entries are moving averages of the vectors assigned to them."""

    kind: Literal["ema"] = "ema"


@dataclass(frozen=True, kw_only=True, slots=True)
class L2Config(_LossConfig):
    """As ``vq``, but vectors and entries have unit length."""

    kind: Literal["l2"] = "l2"
    legacy: bool = False  # beta weights the codebook loss instead


@dataclass(frozen=True, kw_only=True, slots=True)
class SimVQConfig(_LossConfig):
    """Entries are a learned linear map of a frozen random codebook."""

    kind: Literal["simvq"] = "simvq"
    legacy: bool = True  # beta weights the codebook loss instead, as in its released code


@dataclass(frozen=True, kw_only=True, slots=True)
class IBQConfig:
    """The gradient flows through the softmax over all codes to each of them."""

    kind: Literal["ibq"] = "ibq"
    beta: float = 0.25  # weight of the codebook loss
    entropy_weight: float = 0.05  # weight of the entropy penalty

    def __post_init__(self) -> None:
        check_at_least(self, beta=0, entropy_weight=0)
        check_finite(self, "beta", "entropy_weight")


@dataclass(frozen=True, kw_only=True, slots=True)
class FSQConfig:
    """A few dimensions, each bounded and rounded to its levels; no codebook."""

    kind: Literal["fsq"] = "fsq"
    levels: tuple[int, ...] | None = None  # of each dimension; None: derived from n_codes

    def __post_init__(self) -> None:
        if self.levels is None:
            return
        if not self.levels or not all(_MIN_LEVELS <= n <= _MAX_LEVELS for n in self.levels):
            raise ConfigError(
                f"levels must be a list of counts from {_MIN_LEVELS} to {_MAX_LEVELS}, got "
                f"{list(self.levels)}."
            )


# How vectors become codes; :mod:`pardalis.vq.quantizer` has the classes.
QuantizerConfig = VQConfig | EMAConfig | L2Config | SimVQConfig | IBQConfig | FSQConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTokenizerConfig:
    """Shape of the encoder, codebook and decoder."""

    resolution: int  # pixels per side of an image
    channels: int  # width of the first level, which channel_multipliers scales
    channel_multipliers: tuple[int, ...]  # one per level; each after the first halves the side
    n_res_blocks: int  # residual blocks per level of the encoder; the decoder has one more
    z_channels: int  # width of the encoder's output and the decoder's input
    code_width: int  # width of a codebook entry
    n_codes: int  # entries of the codebook
    # Sides of feature maps with attention; mid has it always.
    attention_resolutions: tuple[int, ...] = ()
    patch_size: int = 1  # pixels per side folded into channels of the input; 1 = none
    norm_groups: int = 32  # maximum groups of a GroupNorm (network.normalisation); 0 = no norm
    quantizer: QuantizerConfig = field(default_factory=VQConfig)
    preprocessing: Preprocessing = "chameleon"  # see pardalis.vq.preprocessing
    has_decoder: bool = True  # False: the tokenizer only encodes

    def __post_init__(self) -> None:
        check_at_least(self, resolution=1, channels=1, n_res_blocks=1, z_channels=1, code_width=1)
        check_at_least(self, n_codes=1, patch_size=1, norm_groups=0)
        check_at_most(self, resolution=2**16, channels=2**16, n_res_blocks=2**8, z_channels=2**16)
        check_at_most(self, code_width=2**16, n_codes=2**31 - 1, patch_size=2**10)
        multipliers = self.channel_multipliers
        if not 1 <= len(multipliers) <= _MOST_LEVELS or not all(
            1 <= each <= _LARGEST_MULTIPLE for each in multipliers
        ):
            raise ConfigError(
                "channel_multipliers needs at least one level and multiples of 1 or more, at most "
                f"{_MOST_LEVELS} and {_LARGEST_MULTIPLE}, got {shown(list(multipliers))}."
            )
        if self.resolution % self.downsampling:
            raise ConfigError(
                f"resolution is {self.resolution}, but patch_size {self.patch_size} and "
                f"{len(self.channel_multipliers)} levels downsample by {self.downsampling}; "
                f"choose a multiple of {self.downsampling}."
            )
        if isinstance(self.quantizer, FSQConfig) and math.prod(self.fsq_levels) != self.n_codes:
            raise ConfigError(
                f"n_codes is {self.n_codes}, but quantizer.levels {list(self.fsq_levels)} make "
                f"{math.prod(self.fsq_levels)} codes; make them agree, or leave levels out."
            )

    @property
    def downsampling(self) -> int:
        """Pixels per side of one code."""
        return self.patch_size * 2 ** (len(self.channel_multipliers) - 1)

    @property
    def grid(self) -> int:
        """Codes per side of an image."""
        return self.resolution // self.downsampling

    @property
    def codes_per_image(self) -> int:
        return self.grid**2

    @property
    def fsq_levels(self) -> tuple[int, ...]:
        """Levels of each dimension of FSQ, given or derived; their product is ``n_codes``."""
        given = self.quantizer.levels if isinstance(self.quantizer, FSQConfig) else None
        return given or levels_for(self.n_codes)


def levels_for(n_codes: int) -> tuple[int, ...]:
    """Factor a number of codes into as many levels of 5 or more as possible, as even as possible.

    It reproduces the levels of table 1 of FSQ (arXiv 2309.15505).

    Raises:
        ConfigError: the number has no such factorisation.
    """
    found = list(_factorisations(n_codes, _MAX_LEVELS))
    if not found:
        raise ConfigError(
            f"n_codes is {n_codes}, which is no product of numbers from {_MIN_CHOSEN_LEVELS} to "
            f"{_MAX_LEVELS}; choose another, such as 1000, 1024 or 8192, or set quantizer.levels."
        )
    return max(found, key=lambda levels: (len(levels), -levels[0]))


def _factorisations(n: int, largest: int) -> Iterator[tuple[int, ...]]:
    """Yield the factorisations of n into non-increasing factors of at most ``largest``."""
    if n == 1:
        yield ()
    for factor in range(min(n, largest), _MIN_CHOSEN_LEVELS - 1, -1):
        if n % factor == 0:
            yield from ((factor, *rest) for rest in _factorisations(n // factor, factor))


def from_version_1(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the plain values of a config of format version 1.

    Its kinds were ``gradient`` and ``ema``, each of unit length with ``normalise``. Both with
    ``normalise`` become ``l2``, which gives the same codes and images.

    Raises:
        KeyError: a value is missing.
    """
    old = dict(values["quantizer"])
    is_ema, is_unit = old.pop("kind") == "ema", old.pop("normalise", False)
    legacy = old.pop("legacy") and not is_ema
    if is_ema and not is_unit:
        return {**values, "quantizer": {**old, "kind": "ema"}}
    new = {**old, "kind": "l2" if is_unit else "vq", "legacy": legacy}
    return {**values, "quantizer": new}


def from_version_2(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the plain values of format version 2, which had the fields of all kinds in one table.

    Raises:
        KeyError: a value is missing.
    """
    quantizer = dict(values["quantizer"])
    own = {name: {f.name for f in fields(kind)} for name, kind in QUANTIZERS.items()}
    if (kind := quantizer.get("kind")) in own:
        quantizer = {name: value for name, value in quantizer.items() if name in own[kind]}
    return {**values, "quantizer": quantizer}


QUANTIZERS: Mapping[str, type[Any]] = Kinds(*get_args(QuantizerConfig))


def tiny() -> ImageTokenizerConfig:
    """The quickstart's: 64 pixels, 8 x 8 codes; trains on flat art in two minutes on two cores.

    It has no normalisation: GroupNorm divides by statistics of the whole image, and a short run
    does not learn to undo that for flat colours.
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
        quantizer=EMAConfig(),
    )


def small() -> ImageTokenizerConfig:
    """The demo's: 128 pixels, 16 x 16 codes; trains on drawings in an hour on two cores."""
    return replace(tiny(), resolution=128, channels=64, n_codes=2048)


def chameleon() -> ImageTokenizerConfig:
    """Chameleon's release (arXiv 2405.09818): 512 pixels, 32 x 32 codes, 68.7M parameters."""
    return ImageTokenizerConfig(
        resolution=512,
        channels=128,
        channel_multipliers=(1, 1, 2, 2, 4),
        n_res_blocks=2,
        z_channels=256,
        code_width=256,
        n_codes=8192,
    )


PRESETS = {"tiny": tiny, "small": small, "chameleon": chameleon}
