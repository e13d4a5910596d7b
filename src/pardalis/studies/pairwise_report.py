"""What the judgements of a pairwise study say: shares, win rates and agreement."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pardalis.evaluate.agreement import krippendorff_alpha
from pardalis.seeds import numpy_generator
from pardalis.studies.pairwise import CHOICES, FULFILMENTS, SIDES, Judgement, Study

_RESAMPLES = 2_000
_INTERVAL = (0.025, 0.975)


def report_study(study: Study, seed: int = 0) -> dict[str, Any]:
    """Return the results of a study, as a value for JSON.

    Raters of an item are reduced to one judgement first. Its fulfilment is the median of theirs,
    which is that of the majority if there is one, and the lower of two. Its choice is that of the
    majority, and "same" if there is none. A win rate counts ties as half. Intervals are 95 %
    bootstrap intervals over items.

    Args:
        seed: of the bootstrap.

    Raises:
        DataError: as :meth:`Study.judgements`.
    """
    judgements, n_damaged = study.judgements()
    of_item: dict[int, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        of_item[judgement.item].append(judgement)
    of_category: dict[str, list[list[Judgement]]] = defaultdict(list)
    for number in sorted(of_item):
        of_category[study.items[number].category].append(of_item[number])
    groups = of_item.values()
    n_raters = Counter(map(len, groups))
    return {
        "models": study.models,
        "items": len(study.items),
        "judged": len(of_item),
        "raters": dict(sorted(Counter(each.rater for each in judgements).items())),
        "items_by_raters": {str(n): n_raters[n] for n in sorted(n_raters)},
        "all": _summary(list(groups), seed, "all"),
        "categories": {
            name: _summary(of_category[name], seed, f"category {name}")
            for name in sorted(of_category)
            if len(of_category) > 1 or name
        },
        "alpha": _agreement(groups),
        "hints": _hints(len(study.items) - len(of_item), n_raters[1], n_damaged),
    }


def _summary(groups: Sequence[Sequence[Judgement]], seed: int, name: str) -> dict[str, Any]:
    """Return shares and win rates of both models over some items."""
    outcomes = Counter(_outcome(group) for group in groups)
    summary: dict[str, Any] = {"items": len(groups)}
    for side in SIDES:
        levels = Counter(_fulfilment(group, side) for group in groups)
        counts = [levels[level] for level in range(len(FULFILMENTS))]
        better = 1 if side == "A" else -1
        results = [outcomes[-better], outcomes[0], outcomes[better]]
        summary[side] = {
            **{
                FULFILMENTS[level]: _mean(counts, np.eye(3)[level], seed, name)
                for level in reversed(range(3))
            },
            "wins": results[2],
            "ties": results[1],
            "losses": results[0],
            "win rate": _mean(results, np.array([0, 0.5, 1]), seed, name),
        }
    return summary


def _outcome(group: Sequence[Judgement]) -> int:
    """Return 1 if the majority of raters takes A, -1 for B, else 0."""
    choices = Counter(judgement.choice for judgement in group)
    return next((CHOICES.index(c) - 1 for c, n in choices.items() if 2 * n > len(group)), 0)


def _fulfilment(group: Sequence[Judgement], side: str) -> int:
    levels = sorted(FULFILMENTS.index(judgement.fulfilment[side]) for judgement in group)
    return levels[(len(levels) - 1) // 2]


def _mean(counts: Sequence[int], values: np.ndarray, seed: int, name: str) -> dict[str, Any]:
    """Return the mean value of items of these counts, and its bootstrap interval."""
    n = sum(counts)
    if n == 0:
        return {"value": None, "interval": None}
    share = np.array(counts) / n
    # Items are drawn with replacement, and only their counts matter: a multinomial.
    drawn = numpy_generator(seed, "bootstrap", name).multinomial(n, share, _RESAMPLES) @ values / n
    return {
        "value": float(share @ values),
        "interval": [float(bound) for bound in np.quantile(drawn, _INTERVAL)],
    }


def _agreement(groups: Iterable[Sequence[Judgement]]) -> dict[str, float | None]:
    choices = [[CHOICES.index(each.choice) for each in group] for group in groups]
    fulfilments = [
        [FULFILMENTS.index(each.fulfilment[side]) for each in group]
        for group in groups
        for side in SIDES
    ]
    return {
        "fulfilment, nominal": krippendorff_alpha(fulfilments, 3, "nominal"),
        "fulfilment, ordinal": krippendorff_alpha(fulfilments, 3, "ordinal"),
        "choice, nominal": krippendorff_alpha(choices, 3, "nominal"),
        "choice, ordinal": krippendorff_alpha(choices, 3, "ordinal"),
    }


def _hints(n_open: int, n_single: int, n_damaged: int) -> list[str]:
    hints = []
    if n_open:
        hints.append(f"Items that nobody has judged yet: {n_open:,}.")
    if n_single:
        hints.append(
            f"Items with one rater: {n_single:,}; agreement needs two, and a majority three."
        )
    if n_damaged:
        hints.append(f"Damaged lines of judgements that were left out: {n_damaged:,}.")
    return hints
