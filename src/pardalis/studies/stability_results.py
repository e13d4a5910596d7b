"""What a stability study came to: pure numbers from the metrics of its runs.

A study trains *variants* of one recipe at the same learning rates with the same seeds. A variant is
stable where its loss does not depend on the learning rate. *Sensitivity* makes one number of that,
as Wortsman et al. do (arXiv 2309.14322, section 2.2): the mean over the learning rates of
min(final loss, loss at the start) - the best final loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from pardalis.evaluate.curves import moving_mean
from pardalis.train.alarms import Alarm
from pardalis.train.metrics import Line

LOSSES = ("loss", "loss_text", "loss_image")

_LAST = 0.1  # share of the steps whose mean is the final loss
_TOLERANCE = 0.01  # above the best loss, for the good learning rates
_WORSE = 0.02  # above the loss at the best learning rate, for a loss that went bad


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRun:
    """One training run of a study."""

    start: dict[str, float]  # losses before the first update
    lines: list[Line]  # of metrics.jsonl
    alarms: list[Alarm]  # in the order of their steps
    diverged: int | None  # the step at which the loss or the state was not finite

    @property
    def seconds(self) -> float:
        """The time that training took."""
        return float(self.lines[-1]["time_s"]) if self.lines else 0.0

    def final(self, name: str, steps: int) -> float:
        """Return the mean over the last tenth of the steps; of a run that diverged, the start's."""
        if self.diverged is not None:
            return self.start.get(name, float("nan"))
        steps_and_values = zip(*self.curve(name), strict=True)
        last = [value for step, value in steps_and_values if step > (1 - _LAST) * steps]
        return float(np.mean(last)) if last else float("nan")

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Return the steps and values of one number; empty when it was never told."""
        lines = [line for line in self.lines if name in line]
        return [int(line["step"]) for line in lines], [float(line[name]) for line in lines]


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """A number over the seeds."""

    mean: float
    least: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float] | Float[np.ndarray, " S"]) -> "Spread":
        return cls(
            mean=float(np.mean(values)),
            least=float(np.min(values)),
            largest=float(np.max(values)),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What one variant came to."""

    variant: str
    best_learning_rate: float  # of the least mean loss
    losses: dict[str, Spread]  # final ones at the best learning rate
    good_learning_rates: tuple[float, float]  # from, to: the loss is within 1 % of the best one
    sensitivity: Spread
    relative_sensitivity: float | None  # over the first variant's; None where that is 0
    diverged: int  # runs
    runs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Whether a run's loss went bad, and whether an alarm said so before.

    A loss is bad from the report after which it never comes back to within 2 % of the loss that the
    same variant has at its best learning rate, at the same step and with the same seed, both
    smoothed; or, in a run that diverged, from the step where it did so at the latest. At learning
    rates up to the best one a larger loss is slowness, and not counted.
    """

    variant: str
    learning_rate: float
    seed: int
    bad: int | None  # step
    alarm: int | None  # step of the first one of a statistic; one of the loss itself is no warning
    alarm_name: str | None
    diverged: int | None  # step

    @property
    def lead(self) -> int | None:
        """Steps from the first alarm to the bad loss; below 0, the alarm came too late."""
        return None if self.bad is None or self.alarm is None else self.bad - self.alarm


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """All runs; each variant was trained at each learning rate with each seed."""

    recipe: str
    steps: int
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    high: float  # the learning rate at which instability is looked at
    variants: dict[str, tuple[str, ...]]  # name → what it changes in the recipe
    runs: dict[tuple[str, float, int], StudyRun]  # by variant, learning rate and seed

    def final(self, variant: str, name: str = "loss") -> Float[np.ndarray, "R S"]:
        """Return the final losses of a variant, by learning rate and seed."""
        return np.array(
            [
                [self.runs[variant, rate, seed].final(name, self.steps) for seed in self.seeds]
                for rate in self.learning_rates
            ]
        )

    def diverged(self, variant: str, rate: float) -> int:
        """Return how many runs of a variant diverged at a learning rate."""
        return sum(self.runs[variant, rate, seed].diverged is not None for seed in self.seeds)

    def best(self, variant: str) -> float:
        """Return the learning rate of the least mean loss."""
        return self.learning_rates[int(self.final(variant).mean(1).argmin())]

    def sensitivity(self, variant: str) -> Float[np.ndarray, " S"]:
        """Return the learning rate sensitivity of each seed."""
        start = [
            [self.runs[variant, rate, seed].start["loss"] for seed in self.seeds]
            for rate in self.learning_rates
        ]
        losses = np.minimum(self.final(variant), np.array(start))
        return (losses - losses.min(0)).mean(0)

    def good(self, variant: str) -> tuple[float, float]:
        """Return the learning rates around the best one between which the loss is within 1 %."""
        losses = self.final(variant).mean(1)
        is_good = losses <= losses.min() * (1 + _TOLERANCE)
        first = last = int(losses.argmin())
        while first > 0 and is_good[first - 1]:
            first -= 1
        while last + 1 < len(losses) and is_good[last + 1]:
            last += 1
        return self.learning_rates[first], self.learning_rates[last]

    def summaries(self) -> list[Summary]:
        """Return what each variant came to."""
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
        """Return how each run ended whose loss went bad or that had an alarm."""
        outcomes = []
        best = {variant: self.best(variant) for variant in self.variants}
        for (variant, rate, seed), run in self.runs.items():
            bad = run.diverged
            if rate > best[variant]:
                bad = went_bad(run, self.runs[variant, best[variant], seed])
            alarm = next((alarm for alarm in run.alarms if alarm.name not in LOSSES), None)
            if bad is not None or alarm is not None:
                outcomes.append(
                    Outcome(
                        variant=variant,
                        learning_rate=rate,
                        seed=seed,
                        bad=bad,
                        alarm=alarm.step if alarm else None,
                        alarm_name=alarm.name if alarm else None,
                        diverged=run.diverged,
                    )
                )
        return outcomes

    def growth(
        self, variant: str, rate: float, name: str
    ) -> tuple[list[int], Float[np.ndarray, "P 3"]]:
        """Return the steps at which a number was told, and its mean, least and largest value."""
        values: dict[int, list[float]] = {}
        for seed in self.seeds:
            for step, value in zip(*self.runs[variant, rate, seed].curve(name), strict=True):
                values.setdefault(step, []).append(value)
        steps = sorted(values)
        spread = [(np.mean(values[s]), np.min(values[s]), np.max(values[s])) for s in steps]
        return steps, np.array(spread, dtype=float).reshape(-1, 3)


def went_bad(run: StudyRun, best: StudyRun) -> int | None:
    """Return the step from which the loss of a run is bad, beside that of the best learning rate.

    See :class:`Outcome`.
    """
    steps, values = run.curve("loss")
    good = dict(zip(*best.curve("loss"), strict=True))
    values = [value for step, value in zip(steps, values, strict=True) if step in good]
    steps = [step for step in steps if step in good]
    half_width = len(good) // 30
    ours = moving_mean(np.array(values), half_width)
    theirs = moving_mean(np.array([good[step] for step in steps]), half_width)
    last_good = max(np.flatnonzero(ours <= theirs * (1 + _WORSE)), default=-1)
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
        "outcomes": [
            {
                "variant": each.variant,
                "learning_rate": each.learning_rate,
                "seed": each.seed,
                "bad": each.bad,
                "alarm": each.alarm,
                "alarm_name": each.alarm_name,
                "diverged": each.diverged,
                "lead": each.lead,
            }
            for each in study.outcomes()
        ],
        "seconds": sum(run.seconds for run in study.runs.values()),
    }


def _plain_summary(study: Study, summary: Summary) -> dict[str, Any]:
    def spread(value: Spread) -> dict[str, float | None]:
        numbers = {"mean": value.mean, "least": value.least, "largest": value.largest}
        return {name: _number(number) for name, number in numbers.items()}

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
            name: [[_number(v) for v in row] for row in study.final(summary.variant, name)]
            for name in LOSSES
        },
    }


def _number(value: float) -> float | None:
    """Return a number for JSON, which has no NaN: the loss of a modality that no row has."""
    return None if np.isnan(value) else float(value)
