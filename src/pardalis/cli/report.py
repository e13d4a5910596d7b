"""``pardalis report``: one page that shows what a run did."""

import argparse

from pardalis.cli.common import Commands, add_command, add_run_arguments, run_stages

_DESCRIPTION = """\
Score the answers of a run and write RUN/report.html, one self-contained page, and RUN/report.json
with the same numbers.
"""


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "report", "score a run's answers and write its report", _DESCRIPTION
    )
    add_run_arguments(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    run_stages(options, "report")
