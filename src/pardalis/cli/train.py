"""``pardalis train``: the decoder."""

import argparse

from pardalis.cli.common import Commands, add_command, add_run_arguments, run_stages

_DESCRIPTION = """\
Train the decoder of a recipe on its prepared shards, and write the bundle.

Ctrl-C or SIGTERM saves and stops; the same command goes on, with the same numbers as a run that was
never interrupted. metrics.jsonl in RUN/training has a line per report.
"""


def add(commands: Commands) -> None:
    parser = add_command(commands, "train", "train the decoder on prepared shards", _DESCRIPTION)
    add_run_arguments(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    run_stages(options, "train")
