"""``pardalis quickstart`` and ``pardalis run``: all stages of a recipe."""

import argparse
from pathlib import Path

import pardalis
from pardalis.cli.common import (
    Commands,
    add_command,
    add_run_arguments,
    add_stage_options,
    echo,
    run_stages,
)
from pardalis.errors import ConfigError

_DESCRIPTION = """\
Train a small mixed-modal model on real data from installed packages: a demo corpus, two
tokenizers and a decoder. This takes six minutes on two idle cores.

The results are RUN/report.html and RUN/bundle, the model for 'pardalis generate'. If interrupted,
the same command resumes.

This is 'pardalis run' with the recipe quickstart.toml. Each stage is also a command of its own:
data corpus, tokenizer train-text, tokenizer train-image, data prepare, train, sample, report.
"""

_RUN_DESCRIPTION = """\
Run all stages of a recipe: corpus, tokenizers, shards, training, samples, report.

Finished stages are skipped if their recipe and inputs have not changed; interrupted stages resume.
With --dry-run the command lists what it would do with each stage, and why.
"""


def add(commands: Commands) -> None:
    quickstart = add_command(
        commands, "quickstart", "train a small model on real data and write a report", _DESCRIPTION
    )
    quickstart.add_argument(
        "--recipe",
        default="quickstart",
        help="name of a recipe of Pardalis, or a path (default: %(default)s)",
    )
    add_run_arguments(quickstart, _quickstart, recipe=False)
    add_stage_options(quickstart)

    run = add_command(commands, "run", "run all stages of a recipe", _RUN_DESCRIPTION)
    add_run_arguments(run, _run)
    add_stage_options(run)


def _quickstart(options: argparse.Namespace) -> None:
    options.recipe = shipped_recipe(options.recipe)
    _run(options)


def _run(options: argparse.Namespace) -> None:
    folder = run_stages(options)
    if options.json or options.dry_run:
        return
    if (folder / "bundle").is_dir():  # not if it trains tokenizers only
        echo(
            f"\nOpen {folder / 'report.html'}, or use the model:\n"
            f"pardalis generate {folder / 'bundle'} rocket --mode image --out rocket.png"
        )


def shipped_recipe(name: str) -> Path:
    """Find a recipe by its path, or by its name among the recipes of Pardalis."""
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
