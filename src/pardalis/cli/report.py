"""``pardalis report``: one page that shows what a run did."""

from pardalis.cli.common import Commands, add_stage_command

_DESCRIPTION = """\
Score the answers of a run and write RUN/report.html, one self-contained page, and RUN/report.json
with the same numbers.
"""


def add(commands: Commands) -> None:
    add_stage_command(
        commands, "report", "report", "score a run's answers and write its report", _DESCRIPTION
    )
