"""Curricula: mixtures that follow one another, by step.

At a change of stage every source continues where it was. The number of rows that it has served is
computed from its shares of the earlier mixtures, so a position needs no history.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pardalis.config import check_at_least
from pardalis.data.mixture import Mixture
from pardalis.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class CurriculumStage:
    """The mixture from a step on, until the next stage begins.

    Chameleon (arXiv 2405.09818, section 2.2) trains four fifths of its steps on one mixture; then
    it halves those weights and adds better data.
    """

    from_step: int  # the first update of the stage; 0 in the first stage
    weights: dict[str, float]  # shares of rows by source; a source that is left out pauses

    def __post_init__(self) -> None:
        check_at_least(self, from_step=0)


class Curriculum:
    """An endless sequence of sources, interleaved evenly within each stage.

    Args:
        stages: in ascending order of steps, the first from step 0.
        sources: names of all sources.
        batch_rows: positions of a step.

    Raises:
        ConfigError: the stages do not begin at step 0 or do not ascend, one of them names an
            unknown source, a source has no weight in any, or :class:`Mixture` refuses the weights.
    """

    def __init__(
        self, stages: Sequence[CurriculumStage], sources: Collection[str], batch_rows: int
    ) -> None:
        _check(stages, sources)
        self._starts = [stage.from_step * batch_rows for stage in stages]  # positions
        self._mixtures = [Mixture(stage.weights) for stage in stages]
        self._before: list[Counter[str]] = [Counter()]  # rows that sources gave in earlier stages
        for i, end in enumerate(self._starts[1:]):
            served = self._mixtures[i].served(end - self._starts[i])
            self._before.append(self._before[i] + Counter(served))

    def at(self, position: int) -> tuple[str, int]:
        """Return the source that serves a position, and the position in its own sequence."""
        stage = bisect_right(self._starts, position) - 1
        source, own_position = self._mixtures[stage].at(position - self._starts[stage])
        return source, self._before[stage][source] + own_position


def _check(stages: Sequence[CurriculumStage], sources: Collection[str]) -> None:
    steps = [stage.from_step for stage in stages]
    if not steps or steps[0] != 0:
        raise ConfigError(f"The first stage of a curriculum must have from_step = 0, got {steps}.")
    if any(earlier >= later for earlier, later in pairwise(steps)):
        raise ConfigError(f"from_step must grow from stage to stage of a curriculum, got {steps}.")
    for stage in stages:
        if unknown := sorted(set(stage.weights) - set(sources)):
            raise ConfigError(
                f"The mixture from step {stage.from_step} on weighs {unknown[0]!r}, which "
                f"is no source; the sources are {', '.join(sorted(sources))}."
            )
    if resting := sorted(set(sources).difference(*(stage.weights for stage in stages))):
        raise ConfigError(
            f"Source {resting[0]!r} has no weight anywhere; give every source one weight at least, "
            "or leave it out."
        )
