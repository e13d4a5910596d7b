"""Variants of a recipe that are trained and compared."""

from dataclasses import dataclass

from pardalis.data import check_name
from pardalis.errors import ConfigError

_SWEPT = ("training.schedule.learning_rate", "training.seed")  # set by the study


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantConfig:
    """One variant."""

    name: str  # its name in tables, and that of its folder
    set: tuple[str, ...] = ()  # overrides of the recipe, in the form of --set

    def __post_init__(self) -> None:
        check_name(self.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class StabilityConfig:
    """A stability study: every variant at every learning rate with every seed."""

    learning_rates: tuple[float, ...]  # peak learning rates, ascending
    variants: tuple[VariantConfig, ...]  # the first is the baseline
    seeds: tuple[int, ...] = (0, 1, 2)  # seeds of initial weights, data order and dropout
    # Learning rate at which the page compares statistics, besides each variant's best one.
    high_learning_rate: float | None = None  # None: the largest one

    def __post_init__(self) -> None:
        rates = self.learning_rates
        if len(rates) < 2 or rates[0] <= 0 or list(rates) != sorted(set(rates)):
            raise ConfigError(
                "learning_rates must be at least two numbers above 0, each larger than the one "
                f"before, got {list(rates)}."
            )
        if self.high_learning_rate not in (None, *rates):
            raise ConfigError(
                f"high_learning_rate ({self.high_learning_rate}) must be one of learning_rates, "
                f"{list(rates)}."
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(
                f"seeds must be one or more different numbers, got {list(self.seeds)}."
            )
        names = [variant.name for variant in self.variants]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"variants must be one or more with different names, got {names}.")
        for variant in self.variants:
            for change in variant.set:
                _check_change(variant.name, change.partition("=")[0].strip())

    @property
    def high(self) -> float:
        """The learning rate at which statistics are compared."""
        return self.high_learning_rate or self.learning_rates[-1]


def _check_change(variant: str, key: str) -> None:
    if key in _SWEPT:
        raise ConfigError(
            f"variants: {variant!r} sets {key}, which learning_rates and seeds determine; leave "
            "it out."
        )
    if key.partition(".")[0] not in ("model", "training"):
        raise ConfigError(
            f"variants: {variant!r} sets {key}, but all variants use the same data and the same "
            "number of steps; only model and training can differ, so set it in the recipe."
        )
