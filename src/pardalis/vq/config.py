"""The shape of an image tokenizer, with presets from 64-pixel images to Chameleon's.

The network is in :mod:`pardalis.vq.tokenizer`, its training in
:mod:`pardalis.train.image_tokenizer`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pardalis.config import check_at_least
from pardalis.errors import ConfigError

Preprocessing = Literal["chameleon", "transformers"]
QuantizerKind = Literal["vq", "ema", "l2", "simvq", "ibq", "fsq"]

_LEGACY: dict[QuantizerKind, bool] = {"vq": True, "l2": False, "simvq": True}
_MIN_LEVELS, _MIN_CHOSEN_LEVELS, _MAX_LEVELS = 3, 5, 64  # per dimension of fsq


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizerConfig:
    """How vectors become codes; :mod:`pardalis.vq.quantizer` describes the kinds.

    ``vq``, ``ema`` and ``l2`` are initialised from data and have their dead codes restarted
    (:class:`pardalis.vq.CodebookTrainer`).
    """

    kind: QuantizerKind = "vq"
    beta: float = 0.25  # weight of the commitment loss, or of the codebook loss; unused by fsq
    # vq, l2 and simvq: beta weights the codebook loss instead of the commitment loss. None is the
    # choice of the released code of that kind: true for vq (and so Chameleon) and simvq.
    legacy: bool | None = None
    entropy_weight: float = 0.05  # ibq only: weight of the entropy penalty
    levels: tuple[int, ...] | None = None  # fsq only; None: derived from n_codes

    def __post_init__(self) -> None:
        check_at_least(self, beta=0, entropy_weight=0)
        if self.legacy is not None and self.kind not in _LEGACY:
            raise ConfigError(
                f"legacy applies to kinds {', '.join(_LEGACY)}, not {self.kind}; leave it out."
            )
        if self.levels is None:
            return
        if self.kind != "fsq":
            raise ConfigError(f"levels apply to kind fsq, not {self.kind}; leave them out.")
        if not self.levels or not all(_MIN_LEVELS <= n <= _MAX_LEVELS for n in self.levels):
            raise ConfigError(
                f"levels must be a list of counts from {_MIN_LEVELS} to {_MAX_LEVELS}, got "
                f"{list(self.levels)}."
            )

    @property
    def beta_weighs_codebook(self) -> bool:
        return _LEGACY[self.kind] if self.legacy is None else self.legacy


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
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    preprocessing: Preprocessing = "chameleon"  # see pardalis.vq.preprocessing
    has_decoder: bool = True  # False: the tokenizer only encodes

    def __post_init__(self) -> None:
        check_at_least(self, resolution=1, channels=1, n_res_blocks=1, z_channels=1, code_width=1)
        check_at_least(self, n_codes=1, patch_size=1, norm_groups=0)
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise ConfigError(
                "channel_multipliers needs at least one level and multiples of 1 or more, got "
                f"{list(self.channel_multipliers)}."
            )
        if self.resolution % self.downsampling:
            raise ConfigError(
                f"resolution is {self.resolution}, but patch_size {self.patch_size} and "
                f"{len(self.channel_multipliers)} levels downsample by {self.downsampling}; "
                f"choose a multiple of {self.downsampling}."
            )
        if self.quantizer.kind == "fsq" and math.prod(self.fsq_levels) != self.n_codes:
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
        return self.quantizer.levels or levels_for(self.n_codes)


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
        quantizer=QuantizerConfig(kind="ema"),
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
