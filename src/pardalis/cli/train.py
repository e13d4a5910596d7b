"""``pardalis train``: the decoder."""

from pardalis.cli.common import Commands, add_stage_command

_DESCRIPTION = """\
Train the decoder of a recipe on its prepared shards, and write the bundle.

  pardalis train my-recipe.toml
  torchrun --nproc-per-node 8 -m pardalis train my-recipe.toml --device cuda

Ctrl-C or SIGTERM saves and stops; the same command goes on, with the same numbers as a run that was
never interrupted, also on another number of processes. In RUN/training metrics.jsonl has a line per
report, and alarms.jsonl one per rule that they broke.
"""


def add(commands: Commands) -> None:
    add_stage_command(
        commands, "train", "train", "train the decoder on prepared shards", _DESCRIPTION
    )
