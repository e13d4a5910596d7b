"""``pardalis stability``: training stability over learning rates."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pardalis.cli.common import (
    Commands,
    add_command,
    add_number,
    add_run_arguments,
    print_result,
)

if TYPE_CHECKING:
    from pardalis.studies.stability_results import Study

_DESCRIPTION = """\
Train the variants of a recipe at several learning rates with several seeds in parallel, and compare
their stability: final loss over learning rate, learning rate sensitivity, growth of attention
logits and output norms, and the lead time of alarms. Writes stability.html, stability.png and
stability.json. Can be interrupted; the same command continues.

  pardalis stability stability_parts --jobs 2
"""


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "stability", "compare training stability over learning rates", _DESCRIPTION
    )
    add_run_arguments(parser, _run)
    add_number(parser, "--jobs", "runs in parallel, each with one thread (default: one per core)")


def _run(options: argparse.Namespace) -> None:
    from pardalis.pipeline import load_recipe
    from pardalis.studies.stability import study_stability
    from pardalis.studies.stability_page import FIGURE, FILE, PAGE, counts
    from pardalis.studies.stability_results import plain

    recipe = load_recipe(options.recipe, options.set)
    folder = options.out or Path("runs") / recipe.name
    study = study_stability(options.recipe, folder, options.set, options.device, options.jobs)
    count = counts(study.outcomes())
    lead = "" if count["lead"] is None else f" (median lead {count['lead']:g} steps)"
    outcomes = (
        f"Unstable runs: {count['unstable']}, with an alarm before in {count['warned']}{lead}. "
        f"Other runs with an alarm: {count['false_alarms']}."
    )
    paths = [folder / name for name in (PAGE, FIGURE, FILE)]
    files = ", ".join(str(path) for path in paths if path.exists())
    print_result(options, plain(study), *_summaries(study), "", outcomes, files)


def _summaries(study: "Study") -> Iterator[str]:
    from pardalis.studies.stability_page import rate_name

    width = max(len("variant"), *(len(name) for name in study.variants))
    yield (
        f"{'variant':<{width}}  {'best lr':>8}  {'loss':>6}  {'text':>6}  {'image':>6}"
        f"  {'within 1 %':>10}  {'sensitivity':>11}  {'min-max':>13}  {'relative':>8}"
        f"  {'diverged':>8}"
    )
    for each in study.summaries():
        loss, text, image = (f"{spread.mean:6.3f}" for spread in each.losses.values())
        good = "..".join(map(rate_name, each.good_learning_rates))
        spread = f"{each.sensitivity.min:.3f}-{each.sensitivity.max:.3f}"
        relative = "-" if each.relative_sensitivity is None else f"{each.relative_sensitivity:.2f}"
        yield (
            f"{each.variant:<{width}}  {rate_name(each.best_learning_rate):>8}  {loss}  {text}"
            f"  {image}  {good:>10}  {each.sensitivity.mean:>11.3f}  {spread:>13}  {relative:>8}"
            f"  {each.diverged:>3} of {each.runs}"
        )
