"""``pardalis report``: the metrics of a run, and a page."""

from pardalis.cli.common import Commands, add_stage_command

_DESCRIPTION = """\
Evaluate the samples of a run. Writes RUN/report.html, a self-contained page, and RUN/report.json
with the same numbers.
"""


def add(commands: Commands) -> None:
    add_stage_command(
        commands,
        "report",
        "report",
        "evaluate the samples of a run and write its report",
        _DESCRIPTION,
    )
