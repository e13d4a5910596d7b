"""Learning rates as a pure function of the step, without state to save.

Every kind begins with a linear warm-up: update 0 has peak / (warmup_steps + 1), update
``warmup_steps`` has the peak.
"""

import math
from dataclasses import dataclass
from typing import Literal

from pardalis.config import check_at_least, check_fractions
from pardalis.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class _Schedule:
    learning_rate: float  # peak
    warmup_steps: int = 0  # updates before the peak

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(f"learning_rate must be a positive number, got {self.learning_rate}.")
        check_at_least(self, warmup_steps=0)

    def share(self, step: int, last: int) -> float:
        """Return the learning rate of an update after the warm-up, over the peak."""
        return 1.0

    def _progress(self, step: int, last: int) -> float:
        return min((step - self.warmup_steps) / max(last - self.warmup_steps, 1), 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmupCosineConfig(_Schedule):
    """Half a cosine from the peak to the floor."""

    kind: Literal["warmup_cosine"] = "warmup_cosine"
    floor_ratio: float = 0.1  # last learning rate over the peak

    def __post_init__(self) -> None:
        _Schedule.__post_init__(self)
        check_fractions(self, "floor_ratio")

    def share(self, step: int, last: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * self._progress(step, last)))
        return self.floor_ratio + (1 - self.floor_ratio) * cosine


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmupExponentialConfig(_Schedule):
    """A constant factor per step, down to the floor.

    Chameleon (arXiv 2405.09818, section 2.3) warms up for 4000 steps and decays exponentially "to
    0" at an unpublished rate, for which the floor is a substitute.
    """

    kind: Literal["warmup_exponential"] = "warmup_exponential"
    floor_ratio: float = 0.1  # last learning rate over the peak

    def __post_init__(self) -> None:
        _Schedule.__post_init__(self)
        check_fractions(self, "floor_ratio")
        if self.floor_ratio == 0:
            raise ConfigError("floor_ratio must be above 0: an exponential never reaches 0.")

    def share(self, step: int, last: int) -> float:
        return math.pow(self.floor_ratio, self._progress(step, last))


@dataclass(frozen=True, kw_only=True, slots=True)
class ConstantThenDecayConfig(_Schedule):
    """The peak, then a line to the floor over the last ``decay_steps``."""

    kind: Literal["constant_then_decay"] = "constant_then_decay"
    decay_steps: int  # length of the final decay
    floor_ratio: float = 0.1  # last learning rate over the peak

    def __post_init__(self) -> None:
        _Schedule.__post_init__(self)
        check_fractions(self, "floor_ratio")
        check_at_least(self, decay_steps=1)

    def share(self, step: int, last: int) -> float:
        remaining = min((last - step) / self.decay_steps, 1.0)
        return self.floor_ratio + (1 - self.floor_ratio) * remaining


@dataclass(frozen=True, kw_only=True, slots=True)
class ConstantConfig(_Schedule):
    """The peak, without decay."""

    kind: Literal["constant"] = "constant"


ScheduleConfig = (
    WarmupCosineConfig | WarmupExponentialConfig | ConstantThenDecayConfig | ConstantConfig
)


def learning_rate(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of update ``step``, which runs from 0 to ``total_steps`` - 1.

    Raises:
        ConfigError: warm-up and decay do not fit into ``total_steps``.
    """
    decay_steps = config.decay_steps if isinstance(config, ConstantThenDecayConfig) else 0
    if config.warmup_steps + max(decay_steps, 1) > total_steps:
        most = max(0, total_steps - max(decay_steps, 1))
        raise ConfigError(
            f"warmup_steps ({config.warmup_steps}) and decay_steps ({decay_steps}) of a "
            f"{config.kind} schedule do not fit into {total_steps} steps; set "
            f"schedule.warmup_steps to {most} or less, or raise the steps of the run."
        )
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    return config.learning_rate * config.share(step, total_steps - 1)
