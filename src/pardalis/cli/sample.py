"""``pardalis sample``: completions of a trained model for prompts from its sources."""

from pardalis.cli.common import Commands, add_stage_command

_DESCRIPTION = """\
Generate samples with the trained model of a run: images for captions, captions for images, and
interleaved pages.

Prompts come from the recipe's training and held-out sources. The samples are written to
RUN/samples, from which 'pardalis report' reads them.
"""


def add(commands: Commands) -> None:
    add_stage_command(
        commands,
        "sample",
        "sample",
        "generate images, captions and pages for prompts of the sources",
        _DESCRIPTION,
    )
