"""``pardalis train``, ``sample`` and ``report``: the stages after the data and the tokenizers."""

from pardalis.cli.common import Commands, add_stage_command

_TRAIN = """\
Train the decoder of a recipe on its prepared shards, and write the bundle.

  pardalis train my-recipe.toml
  torchrun --nproc-per-node 8 -m pardalis train my-recipe.toml --device cuda

Ctrl-C or SIGTERM saves a checkpoint and stops. The same command resumes, with the same numbers as
an uninterrupted run, also on another number of processes. RUN/training has the metrics, one JSON
object per report, in metrics.jsonl, and the alarms in alarms.jsonl.
"""

_SAMPLE = """\
Generate samples with the trained model of a run: images for captions, captions for images, and
interleaved pages.

Prompts come from the recipe's training and held-out sources. The samples are written to
RUN/samples, from which 'pardalis report' reads them.
"""

_REPORT = """\
Evaluate the samples of a run. Writes RUN/report.html, a self-contained page, and RUN/report.json
with the same numbers.
"""


def add_train(commands: Commands) -> None:
    add_stage_command(commands, "train", "train", "train the decoder on prepared shards", _TRAIN)


def add_sample(commands: Commands) -> None:
    summary = "generate images, captions and pages for prompts of the sources"
    add_stage_command(commands, "sample", "sample", summary, _SAMPLE)


def add_report(commands: Commands) -> None:
    summary = "evaluate the samples of a run and write its report"
    add_stage_command(commands, "report", "report", summary, _REPORT)
