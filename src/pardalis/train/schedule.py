"""Learning rates as a pure function of the step, without state to save."""

import math
from dataclasses import dataclass
from typing import Literal

from pardalis.config import check_at_least, check_fractions
from pardalis.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """A linear warm-up and the schedule after it."""

    learning_rate: float  # peak
    kind: Literal["warmup_cosine", "warmup_exponential", "constant_then_decay", "constant"] = (
        "warmup_cosine"
    )
    warmup_steps: int = 0  # updates before the peak
    floor_ratio: float = 0.1  # last learning rate over the peak; not for "constant"
    decay_steps: int = 0  # length of the final decay, for "constant_then_decay" only

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(f"learning_rate must be a positive number, got {self.learning_rate}.")
        check_at_least(self, warmup_steps=0)
        check_fractions(self, "floor_ratio")
        if self.kind == "warmup_exponential" and self.floor_ratio == 0:
            raise ConfigError(
                "floor_ratio must be above 0 when kind is warmup_exponential: an exponential never "
                "reaches 0."
            )
        if (self.kind == "constant_then_decay") != (self.decay_steps > 0):
            raise ConfigError(
                "decay_steps must be above 0 when kind is constant_then_decay and 0 otherwise, got "
                f"{self.decay_steps} with {self.kind}."
            )


def learning_rate(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of update ``step``, which runs from 0 to ``total_steps`` - 1.

    Warm-up is linear: update 0 has peak / (warmup_steps + 1), update ``warmup_steps`` has the peak.
    Then the decay, to ``floor_ratio`` times the peak at the last update:

    * ``warmup_cosine``: half a cosine;
    * ``warmup_exponential``: a constant factor per step. Chameleon (arXiv 2405.09818, section 2.3)
      warms up for 4000 steps and decays exponentially "to 0" at an unpublished rate, for which the
      floor is a substitute;
    * ``constant_then_decay``: the peak, then linear over the last ``decay_steps``;
    * ``constant``: the peak, without decay.

    Raises:
        ConfigError: warm-up and decay do not fit into ``total_steps``.
    """
    if config.warmup_steps + max(config.decay_steps, 1) > total_steps:
        raise ConfigError(
            f"warmup_steps ({config.warmup_steps}) and decay_steps ({config.decay_steps}) of a "
            f"{config.kind} schedule do not fit into {total_steps} steps: shorten them, or raise "
            "the steps of the run."
        )
    peak, floor = config.learning_rate, config.floor_ratio
    if step < config.warmup_steps:
        return peak * (step + 1) / (config.warmup_steps + 1)
    last = total_steps - 1
    if config.kind == "constant_then_decay":
        remaining = min((last - step) / config.decay_steps, 1.0)
        return peak * (floor + (1 - floor) * remaining)
    progress = min((step - config.warmup_steps) / max(last - config.warmup_steps, 1), 1.0)
    if config.kind == "warmup_cosine":
        return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
    if config.kind == "warmup_exponential":
        return peak * math.pow(floor, progress)
    return peak
