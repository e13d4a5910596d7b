"""``pardalis answer``: what a trained model makes of prompts from its sources."""

from pardalis.cli.common import Commands, add_stage_command

_DESCRIPTION = """\
Ask the trained model of a run: pictures for captions, captions for pictures, interleaved pages.

Prompts come from the recipe's sources, those learnt and those held out. The answers go to
RUN/answers, where 'pardalis report' finds them.
"""


def add(commands: Commands) -> None:
    add_stage_command(
        commands,
        "answer",
        "answer",
        "draw, caption and write for prompts of the sources",
        _DESCRIPTION,
    )
