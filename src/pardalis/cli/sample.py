"""``pardalis sample``: what a trained model makes of prompts from its sources."""

from pardalis.cli.common import Commands, add_stage_command

_DESCRIPTION = """\
Ask the trained model of a run: images for captions, captions for images, interleaved pages.

Prompts come from the recipe's sources, those learnt and those held out. The samples go to
RUN/samples, where 'pardalis report' finds them.
"""


def add(commands: Commands) -> None:
    add_stage_command(
        commands,
        "sample",
        "sample",
        "draw, caption and write for prompts of the sources",
        _DESCRIPTION,
    )
