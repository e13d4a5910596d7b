"""The shape of an image tokenizer, from the quickstart's 64-pixel images up to Chameleon's own.

Plain values only: what is built from them is in :mod:`pardalis.vq.tokenizer`, how it is trained in
:mod:`pardalis.train.image_tokenizer`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pardalis.errors import ConfigError

Preprocessing = Literal["chameleon", "transformers"]
QuantizerKind = Literal["vq", "ema", "l2", "simvq", "ibq", "fsq"]

_LEGACY: dict[QuantizerKind, bool] = {"vq": True, "l2": False, "simvq": True}
_FEWEST, _FEWEST_CHOSEN, _MOST_LEVELS = 3, 5, 64  # levels of one number of fsq


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizerConfig:
    """How vectors become codes; the kinds are described at :mod:`pardalis.vq.quantizer`.

    ``vq``, ``ema`` and ``l2`` start from data and have their unused entries restarted
    (:class:`pardalis.vq.LiveCodebook`); the others use their codes without that.
    """

    kind: QuantizerKind = "vq"
    beta: float = 0.25  # weight of the commitment, or of the codebook's loss; fsq has neither
    # vq, l2 and simvq: beta weighs the codebook's loss, the wrong way round. Left out, it is as in
    # the code of the kind's authors: true for vq (and so Chameleon) and simvq.
    legacy: bool | None = None
    entropy_weight: float = 0.05  # ibq only: of the penalty that has all codes chosen
    levels: tuple[int, ...] | None = None  # fsq only; left out, they follow from n_codes

    def __post_init__(self) -> None:
        for name in ("beta", "entropy_weight"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}.")
        if self.legacy is not None and self.kind not in _LEGACY:
            raise ConfigError(
                f"legacy applies to kinds {', '.join(_LEGACY)}, not {self.kind}; leave it out."
            )
        if self.levels is None:
            return
        if self.kind != "fsq":
            raise ConfigError(f"levels apply to kind fsq, not {self.kind}; leave them out.")
        if not self.levels or not all(_FEWEST <= n <= _MOST_LEVELS for n in self.levels):
            raise ConfigError(
                f"levels must be a list of counts from {_FEWEST} to {_MOST_LEVELS}, got "
                f"{list(self.levels)}."
            )

    @property
    def beta_weighs_codebook(self) -> bool:
        return _LEGACY[self.kind] if self.legacy is None else self.legacy


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTokenizerConfig:
    """Shape of the encoder, codebook and decoder."""

    resolution: int  # pixels per side of an image
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
    has_decoder: bool = True  # without it images become codes, and codes no images

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
        if self.quantizer.kind == "fsq" and math.prod(self.fsq_levels) != self.n_codes:
            raise ConfigError(
                f"n_codes is {self.n_codes}, but quantizer.levels {list(self.fsq_levels)} make "
                f"{math.prod(self.fsq_levels)} codes; make them agree, or leave levels out."
            )

    @property
    def downsampling(self) -> int:
        """Pixels per side that one code stands for."""
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
        """Levels of each number of an FSQ code, given or chosen; their product is ``n_codes``."""
        return self.quantizer.levels or levels_for(self.n_codes)


def levels_for(n_codes: int) -> tuple[int, ...]:
    """Split a number of codes into levels: as many of 5 or more as can be, and as even.

    Of the numbers in FSQ's table 1 (arXiv 2309.15505) this makes the levels that stand there.

    Raises:
        ConfigError: the number is no such product.
    """
    found = list(_products(n_codes, _MOST_LEVELS))
    if not found:
        raise ConfigError(
            f"n_codes is {n_codes}, which is no product of numbers from {_FEWEST_CHOSEN} to "
            f"{_MOST_LEVELS}; choose another, such as 1000, 1024 or 8192, or set quantizer.levels."
        )
    return max(found, key=lambda levels: (len(levels), -levels[0]))


def _products(n: int, most: int) -> Iterator[tuple[int, ...]]:
    """Yield every way to write n as a product of falling factors, none above ``most``."""
    if n == 1:
        yield ()
    for factor in range(min(n, most), _FEWEST_CHOSEN - 1, -1):
        if n % factor == 0:
            yield from ((factor, *rest) for rest in _products(n // factor, factor))


def from_version_1(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain values of a config that was saved when there were two kinds.

    Those were ``gradient`` and ``ema``, each at length 1 with ``normalise``; of the latter only the
    gradient's is left, which gives the same codes and images.

    Raises:
        KeyError: a value is missing.
    """
    old = dict(values["quantizer"])
    means, unit = old.pop("kind") == "ema", old.pop("normalise", False)
    legacy = old.pop("legacy") and not means
    if means and not unit:
        return {**values, "quantizer": {**old, "kind": "ema"}}
    new = {**old, "kind": "l2" if unit else "vq", "legacy": legacy}
    return {**values, "quantizer": new}


def tiny() -> ImageTokenizerConfig:
    """The quickstart's: 64 pixels, 8 x 8 codes; learns flat art in two minutes on two cores.

    Without normalisation: that of groups divides by statistics of the whole image, which a
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


def small() -> ImageTokenizerConfig:
    """The reference's: 128 pixels, 16 x 16 codes; learns drawings in an hour on two cores."""
    return ImageTokenizerConfig(
        resolution=128,
        patch_size=4,
        channels=64,
        channel_multipliers=(1, 2),
        n_res_blocks=1,
        norm_groups=0,
        z_channels=128,
        code_width=32,
        n_codes=2048,
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


PRESETS = {"tiny": tiny, "small": small, "chameleon": chameleon}
