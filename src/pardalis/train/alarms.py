"""Alarms: rules over the lines of metrics that detect instability before the loss diverges.

Alarms are a function of a run's metrics lines, so a resumed run restores them from its metrics
file.
"""

import math
import statistics
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pardalis.config import check_above, check_at_least
from pardalis.train.metrics import Line

_SMOOTHED = 3  # lines whose median is the magnitude of a statistic


@dataclass(frozen=True, kw_only=True, slots=True)
class AlarmConfig:
    """Thresholds of the rules; ``inf`` turns a rule off.

    * The largest attention logit is above ``attention_logit``. A softmax then attends to a single
      position; runs diverged near ten times this value (arXiv 2309.14322, section 3.1.1).
    * The output of the last block, over all positions or those of one modality, has an rms above
      ``output_rms`` and still grows: it is at least ``growth`` times what it was at half as many
      steps. In a stable run it converges; unbounded growth preceded Chameleon's divergences (arXiv
      2405.09818, section 2.3).
    * The magnitude of a modality's mean log Z is above ``log_z`` and still grows.
    * The norm of the gradient is above ``grad_norm_spike`` times its median over the previous
      ``window`` lines.
    * The loss is more than ``loss_spike`` nats above its median over the previous ``window`` lines.

    A run has diverged when its loss is more than ``loss_explosion`` nats above that of the first
    line. The rules for the loss are for losses per token: an image tokenizer's loss has no scale.
    """

    attention_logit: float = 1e3
    output_rms: float = 20.0
    log_z: float = 30.0
    growth: float = 1.5  # while the number of steps doubles
    grad_norm_spike: float = 10.0
    loss_spike: float = 1.0  # nats
    loss_explosion: float = 3.0  # nats
    window: int = 10  # lines

    def __post_init__(self) -> None:
        check_at_least(self, window=3)
        check_above(self, growth=1)


@dataclass(frozen=True, slots=True)
class Alarm:
    """A statistic that breaks a rule."""

    name: str  # name of the statistic
    step: int  # step of the line
    value: float
    rule: str  # predicate about the value, such as "is above 1000"


class Alarms:
    """The alarms of a run, from its lines so far.

    Attributes:
        active: alarms whose rule was broken in the last ``window`` lines, oldest first.
    """

    def __init__(self, config: AlarmConfig, lines: Iterable[Line] = ()) -> None:
        self.config = config
        self._series = {name: _Series() for name in _RULES}
        for line in lines:
            self.read(line)

    @property
    def active(self) -> list[Alarm]:
        alarms = [series.alarm for series in self._series.values() if series.alarm]
        return sorted(alarms, key=lambda alarm: alarm.step)

    def read(self, line: Line) -> list[Alarm]:
        """Read the next line and return the alarms that are new."""
        new = []
        for name, series in self._series.items():
            if name not in line or (name == "loss" and not _is_per_token(line)):
                continue
            series.steps.append(int(line["step"]))
            series.values.append(float(line[name]))
            rule = _RULES[name](series, self.config)
            if rule and series.alarm is None:
                series.alarm = Alarm(name, int(line["step"]), float(line[name]), rule)
                new.append(series.alarm)
            series.quiet_lines = 0 if rule else series.quiet_lines + 1
            if series.quiet_lines == self.config.window:
                series.alarm = None
        return new

    def has_diverged(self, line: Line) -> bool:
        """Return whether the run has diverged at a line, so that it should not continue."""
        losses = self._series["loss"].values
        start = losses[0] if losses else math.inf
        return _is_per_token(line) and line["loss"] > start + self.config.loss_explosion


class _Series:
    """The values of a statistic so far, and its active alarm."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: list[float] = []
        self.alarm: Alarm | None = None
        self.quiet_lines = 0  # lines since the rule was last broken

    def median_before(self, window: int) -> float:
        """Return the median of the lines before the last; NaN if there are fewer than two."""
        before = self.values[-1 - window : -1]
        return statistics.median(before) if len(before) > 1 else math.nan

    def grows(self, factor: float) -> bool:
        """Return whether the magnitude is ``factor`` times that at half as many steps."""
        half = bisect_right(self.steps, self.steps[-1] / 2)
        if half == 0:
            return False
        now, then = (
            statistics.median(map(abs, self.values[max(0, end - _SMOOTHED) : end]))
            for end in (len(self.values), half)
        )
        return now >= factor * then


def _is_per_token(line: Line) -> bool:
    return "tokens" in line


def _above(series: _Series, limit: float) -> str | None:
    return f"is above {limit:g}" if series.values[-1] > limit else None


def _outgrows(series: _Series, limit: float, growth: float) -> str | None:
    if not (abs(series.values[-1]) > limit and series.grows(growth)):
        return None
    return f"is beyond {limit:g} and at least {growth:g} times what it was at half as many steps"


def _grad_norm(series: _Series, config: AlarmConfig) -> str | None:
    median = series.median_before(config.window)
    return _above(series, config.grad_norm_spike * median) and (
        f"is above {config.grad_norm_spike:g} times its median of {median:.3g}"
    )


def _loss(series: _Series, config: AlarmConfig) -> str | None:
    median = series.median_before(config.window)
    return _above(series, median + config.loss_spike) and (
        f"is more than {config.loss_spike:g} above its median of {median:.3g}"
    )


_RULES: dict[str, Callable[[_Series, AlarmConfig], str | None]] = {
    "attention_logit": lambda series, config: _above(series, config.attention_logit),
    **dict.fromkeys(
        ("output_rms", "output_rms_text", "output_rms_image"),
        lambda series, config: _outgrows(series, config.output_rms, config.growth),
    ),
    **dict.fromkeys(
        ("lse_text", "lse_image"),
        lambda series, config: _outgrows(series, config.log_z, config.growth),
    ),
    "grad_norm": _grad_norm,
    "loss": _loss,
}
