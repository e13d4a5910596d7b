"""``pardalis train``: the decoder."""

from pardalis.cli.common import Commands, add_stage_command

_DESCRIPTION = """\
Train the decoder of a recipe on its prepared shards, and write the bundle.

Ctrl-C or SIGTERM saves and stops; the same command goes on, with the same numbers as a run that was
never interrupted. metrics.jsonl in RUN/training has a line per report.
"""


def add(commands: Commands) -> None:
    add_stage_command(
        commands, "train", "train", "train the decoder on prepared shards", _DESCRIPTION
    )
