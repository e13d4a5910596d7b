"""``pardalis quickstart`` and ``pardalis run``: all stages of a recipe."""

import argparse
from pathlib import Path

import pardalis
from pardalis.cli.common import Commands, add_command, add_run_arguments, echo, run_stages
from pardalis.errors import ConfigError

_DESCRIPTION = """\
Train a mixed-modal model from raw documents to interleaved answers, and write a report.

Real data from installed packages, two tokenizers, a small decoder; six minutes on two idle cores.
The result is RUN/report.html, and a model in RUN/bundle that 'pardalis generate' uses. Interrupt it
whenever you like: the same command goes on where it was, and skips what is finished.

It is the recipe quickstart.toml run by 'pardalis run'; each stage is also a command of its own:
data corpus, tokenizer train-text, tokenizer train-image, data prepare, train, sample, report.
"""

_RUN_DESCRIPTION = """\
Run all stages of a recipe: corpus, tokenizers, shards, training, samples, report.

Finished stages whose recipe and inputs have not changed are skipped; interrupted ones go on.
"""


def add(commands: Commands) -> None:
    quickstart = add_command(
        commands, "quickstart", "train a small model on real data, with a report", _DESCRIPTION
    )
    quickstart.add_argument(
        "--recipe",
        default="quickstart",
        help="a recipe that comes with Pardalis, or a path (default: %(default)s)",
    )
    add_run_arguments(quickstart, recipe=False)
    quickstart.set_defaults(run=_quickstart)

    run = add_command(commands, "run", "run all stages of a recipe", _RUN_DESCRIPTION)
    add_run_arguments(run)
    run.set_defaults(run=_run)


def _quickstart(options: argparse.Namespace) -> None:
    options.recipe = shipped_recipe(options.recipe)
    _run(options)


def _run(options: argparse.Namespace) -> None:
    folder = run_stages(options)
    if not options.json:
        echo(
            f"\nOpen {folder / 'report.html'}, or ask the model:\n"
            f"pardalis generate {folder / 'bundle'} rocket --mode image --out rocket.png"
        )


def shipped_recipe(name: str) -> Path:
    """Find a recipe by its name among those that come with Pardalis, or by its path."""
    if Path(name).is_file():
        return Path(name)
    package = Path(pardalis.__file__).parent
    folders = (package / "recipes", package.parents[1] / "recipes")  # a wheel; a checkout
    for folder in folders:
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    known = sorted({path.stem for folder in folders for path in folder.glob("*.toml")})
    raise ConfigError(
        f"No recipe {name!r}; there are {', '.join(known)}, or give the path of a file."
    )
