"""``pardalis plan``: estimate memory, speed and cost of a recipe's training."""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pardalis.cli.common import (
    Commands,
    add_command,
    add_number,
    add_recipe,
    print_result,
    set_run,
)

if TYPE_CHECKING:
    from pardalis.pipeline.plan import MergePlan, RunPlan

_DESCRIPTION = """\
Estimate the training of a recipe's decoder: parameters, FLOPs per token, memory of a rank, the
largest micro-batch that fits, speed, time and cost. Nothing is trained or allocated.

  pardalis plan chameleon_7b --gpus 64 --device h200
  pardalis plan chameleon_34b --gpus 256 --device a100 --price 2
  pardalis plan my-recipe.toml --device cpu --set parallel.activation_checkpointing=full

With --merges it compares what two models of the recipe's shape cost after each kind of merge:

  pardalis plan chameleon_7b --gpus 64 --merges

Devices: a100, h100, h200, b200, l40s, rtx4090, mi300x, and cpu for this machine. Speed follows from
--utilisation, the model FLOPs utilisation (MFU): the fraction of the device's peak rate in dense
bfloat16 that the model uses, communication between ranks included. 0.3 to 0.5 is usual.
"""


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "plan", "estimate memory, speed and cost of training", _DESCRIPTION
    )
    add_recipe(parser)
    add_number(parser, "--gpus", "number of devices (default: the fewest that [parallel] allows)")
    parser.add_argument("--device", default="h200", help="kind of device (default: h200)")
    parser.add_argument(
        "--utilisation", type=float, default=0.4, metavar="U", help="MFU (default: 0.4)"
    )
    parser.add_argument("--price", type=float, metavar="P", help="price of one device for an hour")
    parser.add_argument(
        "--merges", action="store_true", help="compare merges of two such models (docs/merge.md)"
    )
    set_run(parser, _plan)


def _plan(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from pardalis.pipeline import load_recipe
    from pardalis.pipeline.chain import with_bundle
    from pardalis.pipeline.plan import merge_plans, plan

    recipe = load_recipe(options.recipe, options.set)
    recipe = with_bundle(recipe, Path("runs") / recipe.name)
    if options.merges:
        merges = merge_plans(recipe, gpus=options.gpus, device=options.device)
        shown = {"recipe": recipe.name, "merges": [asdict(each) for each in merges]}
        print_result(options, shown, *_merge_lines(merges))
        return
    made = plan(
        recipe,
        gpus=options.gpus,
        device=options.device,
        utilisation=options.utilisation,
        price=options.price,
    )
    print_result(options, asdict(made), *_lines(made))


def _lines(plan: "RunPlan") -> Iterator[str]:
    from dataclasses import asdict

    from pardalis.pipeline.plan import gib

    yield f"{plan.recipe} on {plan.gpus} x {plan.device}"
    yield f"\n{'parameters':<22}{plan.parameters:>18,}"
    for name, number in plan.parts.items():
        yield f"  {name:<20}{number:>18,}"
    if plan.trained != plan.parameters:
        yield f"{'trained':<22}{plan.trained:>18,}"
    yield _fact(
        "work per token", f"{_short(float(plan.flops_per_token))}FLOP, forward and backward"
    )
    yield _fact(
        "ranks", f"{plan.replicate} x {plan.shard} x {plan.tensor}: replicate, shard, tensor"
    )
    tokens = plan.batch_rows * plan.row_tokens
    yield _fact("batch", f"{plan.batch_rows:,} rows of {plan.row_tokens:,}: {tokens:,} tokens")
    parts = f"accumulation_steps = {plan.accumulation_steps}"
    yield _fact("a rank computes", f"{plan.micro_rows:,} of its rows at once, with {parts}")

    yield f"\n{'memory of a rank':<22}{'GiB':>18}"
    for name, size in asdict(plan.memory).items():
        yield f"  {name:<20}{gib(size):>18}"
    yield f"  {'together':<20}{gib(plan.memory_total):>18}"
    usable, whole = gib(plan.memory_usable), gib(plan.memory_of_device)
    yield _fact("fit at once", f"{plan.largest_micro_rows:,} rows, into {usable} of {whole} GiB")

    rate = f"{_short(plan.device_flops)}FLOP/s"
    yield f"\nassuming {plan.utilisation:.0%} of {rate} a device"
    speed = f"{plan.tokens_per_second:,.0f}, {plan.tokens_per_second / plan.gpus:,.0f} a device"
    yield _fact("tokens per second", speed)
    step = _number(plan.seconds_per_step)
    yield _fact(f"{plan.steps:,} steps", f"{_time(3600 * plan.hours)}, {step} s each")
    yield _fact("device time", _time(3600 * plan.hours * plan.gpus))
    if plan.cost is not None:
        yield _fact("cost", f"{plan.cost:,.2f}")
    for warning in plan.warnings:
        yield f"\n! {warning}"


def _merge_lines(merges: "Sequence[MergePlan]") -> Iterator[str]:
    from pardalis.pipeline.plan import gib

    yield f"{'':<10}{'parameters':>18}{'FLOP per token':>16}{'cache, KiB':>12}{'rank, GiB':>11}"
    for each in merges:
        work, cache = _short(float(each.flops_per_token)), each.cache_bytes_per_token / 2**10
        yield (
            f"{each.kind:<10}{each.parameters:>18,}{work:>16}{cache:>12,.0f}"
            f"{gib(each.memory_total):>11}"
        )
    yield "\nFLOP: forward and backward; cache: of a token, in float32; rank: memory in training"


def _fact(name: str, value: str) -> str:
    return f"{name:<22}{value}"


def _time(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{_number(seconds / size)} {unit}"
    return f"{_number(seconds)} s"


def _number(number: float) -> str:
    """Format a number with three significant digits or all integer digits, without exponent."""
    if number >= 100:
        return f"{number:,.0f}"
    places = 2 - math.floor(math.log10(number)) if number > 0 else 0
    return f"{number:.{places}f}"


def _short(number: float) -> str:
    """Format a number with three significant digits and an SI prefix."""
    for letter, size in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number / 1e6:.3g} M"
