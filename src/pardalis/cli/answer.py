"""``pardalis answer``: what a trained model makes of prompts from its sources."""

import argparse

from pardalis.cli.common import Commands, add_command, add_run_arguments, run_stages

_DESCRIPTION = """\
Ask the trained model of a run: pictures for captions, captions for pictures, interleaved pages.

Prompts come from the recipe's sources, those learnt and those held out. The answers go to
RUN/answers, where 'pardalis report' finds them.
"""


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "answer", "draw, caption and write for prompts of the sources", _DESCRIPTION
    )
    add_run_arguments(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    run_stages(options, "answer")
