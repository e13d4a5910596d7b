"""``pardalis quickstart`` and ``pardalis run``: all stages of a recipe."""

import argparse
from pathlib import Path

from pardalis.cli.common import (
    Commands,
    add_command,
    add_run_arguments,
    add_stage_options,
    add_workers,
    echo,
    run_stages,
)

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
    add_run_arguments(quickstart, _run, recipe=False)
    add_stage_options(quickstart)

    run = add_command(commands, "run", "run all stages of a recipe", _RUN_DESCRIPTION)
    add_run_arguments(run, _run)
    add_stage_options(run)
    add_workers(run)


def _run(options: argparse.Namespace) -> None:
    folder = run_stages(options)
    if options.json or options.dry_run:
        return
    tokenizer = folder / "image_tokenizer"
    if (folder / "bundle").is_dir():
        from pardalis.evaluate.commands import commands_of, quoted

        page = folder / "report.html"
        lead = f"Open {page}. " if page.is_file() else ""
        echo(f"\n{lead}The model is {folder / 'bundle'}; use it:")
        bundle = quoted(str(folder / "bundle"))
        unprompted = f"pardalis generate {bundle} '' --out page.html"
        if _converses(folder):
            unprompted = f"pardalis chat {bundle}"
        for command in (*(commands_of(folder) or [unprompted]), f"pardalis serve {bundle}"):
            echo(command)
    elif tokenizer.is_dir():  # the recipe has no model
        import shlex

        run = shlex.quote(str(folder))
        lead = f"Open {tokenizer / 'progress.html'}. The image tokenizer is {tokenizer / 'final'}"
        echo(f"\n{lead}; evaluate it:")
        echo(f"pardalis tokenizer evaluate {run} IMAGES -o evaluation")


def _converses(run: Path) -> bool:
    """Whether the model of a run was trained to answer."""
    from pardalis.objectives import learnt_roles
    from pardalis.pipeline import load_recipe

    objective = load_recipe(run / "recipe.toml").model_run.training.objective
    return "assistant" in learnt_roles(objective)
