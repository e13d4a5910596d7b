"""``pardalis train``: train the decoder."""

from pardalis.cli.common import Commands, add_stage_command

_DESCRIPTION = """\
Train the decoder of a recipe on its prepared shards, and write the bundle.

  pardalis train my-recipe.toml
  torchrun --nproc-per-node 8 -m pardalis train my-recipe.toml --device cuda

Ctrl-C or SIGTERM saves a checkpoint and stops. The same command resumes, with the same numbers as
an uninterrupted run, also on another number of processes. RUN/training has the metrics, one JSON
object per report, in metrics.jsonl, and the alarms in alarms.jsonl.
"""


def add(commands: Commands) -> None:
    add_stage_command(
        commands, "train", "train", "train the decoder on prepared shards", _DESCRIPTION
    )
