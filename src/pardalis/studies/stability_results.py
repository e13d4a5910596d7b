"""Results of a stability study, computed from the metrics of its runs.

A study trains *variants* of one recipe at the same learning rates with the same seeds. The final
loss of a stable variant depends little on the learning rate. The *learning rate sensitivity*
(Wortsman et al., arXiv 2309.14322, section 2.2) is the mean over the learning rates of
min(final loss, initial loss) - best final loss.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from pardalis.evaluate.curves import moving_mean
from pardalis.evaluate.metrics_file import Metrics
from pardalis.train.alarms import Alarm

LOSSES = ("loss", "loss_text", "loss_image")

_FINAL_SHARE = 0.1  # share of the steps that the final loss is averaged over
_GOOD_TOLERANCE = 0.01  # relative to the best loss, for good learning rates
_UNSTABLE_TOLERANCE = 0.02  # relative to the loss at the best learning rate, for instability


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRun:
    """One training run of a study."""

    start: dict[str, float]  # losses before the first update
    metrics: Metrics
    alarms: list[Alarm]  # in the order of their steps
    diverged: int | None  # step at which the loss or the state was not finite

    @property
    def seconds(self) -> float:
        """The training time."""
        return self.metrics.last("time_s") or 0.0

    def final(self, name: str, steps: int) -> float:
        """Return the mean over the last tenth of the steps; the initial loss if it diverged."""
        if self.diverged is not None:
            return self.start.get(name, float("nan"))
        curve = zip(*self.metrics.curve(name), strict=True)
        last = [value for step, value in curve if step > (1 - _FINAL_SHARE) * steps]
        return float(np.mean(last)) if last else float("nan")


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Mean and range over the seeds."""

    mean: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float] | Float[np.ndarray, " S"]) -> "Spread":
        return cls(
            mean=float(np.mean(values)), min=float(np.min(values)), max=float(np.max(values))
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The results of one variant."""

    variant: str
    best_learning_rate: float  # that of the lowest mean loss
    losses: dict[str, Spread]  # final losses at the best learning rate
    good_learning_rates: tuple[float, float]  # range with a loss within 1 % of the best
    sensitivity: Spread
    relative_sensitivity: float | None  # relative to the first variant's; None if that is 0
    diverged: int  # number of runs that diverged
    runs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Whether a run became unstable, and whether an alarm preceded it.

    A run is unstable from the report after which its loss never returns to within 2 % of the loss
    of the same variant at its best learning rate, at the same step and with the same seed, both
    smoothed; at the latest from the step of divergence. At learning rates up to the best one a
    higher loss means slow training and does not count.
    """

    variant: str
    learning_rate: float
    seed: int
    unstable_from: int | None  # step
    alarm: int | None  # step of the first alarm, other than alarms of the loss itself
    alarm_name: str | None
    diverged: int | None  # step

    @property
    def lead(self) -> int | None:
        """Steps from the first alarm to instability; negative if the alarm was late."""
        if self.unstable_from is None or self.alarm is None:
            return None
        return self.unstable_from - self.alarm


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """All runs: each variant at each learning rate with each seed."""

    recipe: str
    steps: int
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    high: float  # learning rate at which statistics are compared
    variants: dict[str, tuple[str, ...]]  # name → overrides of the recipe
    runs: dict[tuple[str, float, int], StudyRun]  # by variant, learning rate and seed

    def final(self, variant: str, name: str = "loss") -> Float[np.ndarray, "R S"]:
        """Return the final losses of a variant by learning rate and seed."""
        return np.array(
            [
                [self.runs[variant, rate, seed].final(name, self.steps) for seed in self.seeds]
                for rate in self.learning_rates
            ]
        )

    def diverged(self, variant: str, rate: float) -> int:
        """Return the number of runs of a variant that diverged at a learning rate."""
        return sum(self.runs[variant, rate, seed].diverged is not None for seed in self.seeds)

    def best(self, variant: str) -> float:
        """Return the learning rate of the lowest mean loss."""
        return self.learning_rates[int(self.final(variant).mean(1).argmin())]

    def sensitivity(self, variant: str) -> Float[np.ndarray, " S"]:
        """Return the learning rate sensitivity per seed."""
        start = [
            [self.runs[variant, rate, seed].start["loss"] for seed in self.seeds]
            for rate in self.learning_rates
        ]
        losses = np.minimum(self.final(variant), np.array(start))
        return (losses - losses.min(0)).mean(0)

    def good(self, variant: str) -> tuple[float, float]:
        """Return the range of learning rates around the best with a loss within 1 % of it."""
        losses = self.final(variant).mean(1)
        is_good = losses <= losses.min() * (1 + _GOOD_TOLERANCE)
        first = last = int(losses.argmin())
        while first > 0 and is_good[first - 1]:
            first -= 1
        while last + 1 < len(losses) and is_good[last + 1]:
            last += 1
        return self.learning_rates[first], self.learning_rates[last]

    def summaries(self) -> list[Summary]:
        """Return the results of each variant."""
        return [self._summary(variant) for variant in self.variants]

    def _summary(self, variant: str) -> Summary:
        best = self.learning_rates.index(self.best(variant))
        baseline = self.sensitivity(next(iter(self.variants))).mean()
        sensitivity = self.sensitivity(variant)
        return Summary(
            variant=variant,
            best_learning_rate=self.learning_rates[best],
            losses={name: Spread.of(self.final(variant, name)[best]) for name in LOSSES},
            good_learning_rates=self.good(variant),
            sensitivity=Spread.of(sensitivity),
            relative_sensitivity=float(sensitivity.mean() / baseline) if baseline else None,
            diverged=sum(self.diverged(variant, rate) for rate in self.learning_rates),
            runs=len(self.learning_rates) * len(self.seeds),
        )

    def outcomes(self) -> list[Outcome]:
        """Return the outcomes of runs that became unstable or had an alarm."""
        outcomes = []
        best = {variant: self.best(variant) for variant in self.variants}
        for (variant, rate, seed), run in self.runs.items():
            unstable = run.diverged
            if rate > best[variant]:
                unstable = unstable_from(run, self.runs[variant, best[variant], seed])
            alarm = next((alarm for alarm in run.alarms if alarm.name not in LOSSES), None)
            if unstable is not None or alarm is not None:
                outcomes.append(
                    Outcome(
                        variant=variant,
                        learning_rate=rate,
                        seed=seed,
                        unstable_from=unstable,
                        alarm=alarm.step if alarm else None,
                        alarm_name=alarm.name if alarm else None,
                        diverged=run.diverged,
                    )
                )
        return outcomes

    def growth(
        self, variant: str, rate: float, name: str
    ) -> tuple[list[int], Float[np.ndarray, "P 3"]]:
        """Return the reported steps of a metric, and its mean, minimum and maximum over seeds."""
        values: dict[int, list[float]] = {}
        for seed in self.seeds:
            for step, value in zip(
                *self.runs[variant, rate, seed].metrics.curve(name), strict=True
            ):
                values.setdefault(step, []).append(value)
        steps = sorted(values)
        spread = [(np.mean(values[s]), np.min(values[s]), np.max(values[s])) for s in steps]
        return steps, np.array(spread, dtype=float).reshape(-1, 3)


def unstable_from(run: StudyRun, best: StudyRun) -> int | None:
    """Return the step from which a run is unstable, compared with that at the best learning rate.

    See :class:`Outcome`.
    """
    steps, values = run.metrics.curve("loss")
    good = dict(zip(*best.metrics.curve("loss"), strict=True))
    values = [value for step, value in zip(steps, values, strict=True) if step in good]
    steps = [step for step in steps if step in good]
    half_width = len(good) // 30
    ours = moving_mean(np.array(values), half_width)
    theirs = moving_mean(np.array([good[step] for step in steps]), half_width)
    last_good = max(np.flatnonzero(ours <= theirs * (1 + _UNSTABLE_TOLERANCE)), default=-1)
    if last_good + 1 < len(steps):
        return steps[last_good + 1]
    return run.diverged


def plain(study: Study) -> dict[str, Any]:
    """Return a study as plain values."""
    return {
        "recipe": study.recipe,
        "steps": study.steps,
        "learning_rates": list(study.learning_rates),
        "seeds": list(study.seeds),
        "high_learning_rate": study.high,
        "variants": [_plain_summary(study, summary) for summary in study.summaries()],
        "outcomes": [{**asdict(outcome), "lead": outcome.lead} for outcome in study.outcomes()],
        "seconds": sum(run.seconds for run in study.runs.values()),
    }


def _plain_summary(study: Study, summary: Summary) -> dict[str, Any]:
    def spread(value: Spread) -> dict[str, float | None]:
        return {name: _number(number) for name, number in asdict(value).items()}

    return {
        "name": summary.variant,
        "set": list(study.variants[summary.variant]),
        "best_learning_rate": summary.best_learning_rate,
        "best_losses": {name: spread(value) for name, value in summary.losses.items()},
        "good_learning_rates": list(summary.good_learning_rates),
        "sensitivity": spread(summary.sensitivity),
        "relative_sensitivity": summary.relative_sensitivity,
        "diverged": summary.diverged,
        "runs": summary.runs,
        # By learning rate and seed.
        "final_losses": {
            name: [[_number(v) for v in losses] for losses in study.final(summary.variant, name)]
            for name in LOSSES
        },
    }


def _number(value: float) -> float | None:
    """Return a number for JSON, which has no NaN: the loss of a modality absent from the data."""
    return None if np.isnan(value) else float(value)
