"""``pardalis evaluate``: scores of a trained model by source."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pardalis.cli.common import (
    Commands,
    add_command,
    add_number,
    add_output,
    existing_run,
    print_result,
    set_run,
)

_DESCRIPTION = """\
Score what the model of a finished run generates, for each of its training and held-out sources:
how often an image is nearer to its original than to 99 others, and how often a caption is right.

  pardalis evaluate RUN -o scores
  pardalis evaluate RUN -o scores --label-before " of "

A document that ends with an image after a text is a task: all before that image is the prompt. With
--label-before the captions begin with a label ("a flat drawing of a deer"): the label of generated
images is tested by a linear probe, scores are split by it, and grid.png shows concepts with all
labels. sources.json holds every number.
"""


def add(commands: Commands) -> None:
    parser = add_command(commands, "evaluate", "score a trained model by source", _DESCRIPTION)
    parser.add_argument("folder", metavar="RUN", type=Path, help="folder of a finished run")
    add_output(parser, "FOLDER", "folder")
    add_number(parser, "--images", "images to generate of each source (default: 100)")
    add_number(parser, "--captions", "captions to generate of each source (default: 50)")
    parser.add_argument(
        "--label-before", metavar="TEXT", help="the text before which the label of a caption ends"
    )
    parser.add_argument(
        "--guidance", type=float, metavar="SCALE", help="of images (default: as in the recipe)"
    )
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="of images (default: as in the recipe)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of prompts and samples")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    set_run(parser, _run)


def _run(options: argparse.Namespace) -> None:
    from pardalis.studies.sources import SourcesConfig, study_sources

    existing_run(options.folder)
    given = {
        name: value
        for name in ("images", "captions", "label_before", "guidance", "temperature", "seed")
        if (value := getattr(options, name)) is not None
    }
    result = study_sources(options.folder, options.output, SourcesConfig(**given), options.device)
    print_result(options, result, *_lines(result), str(options.output))


_COLUMNS = {
    "images": "images",
    "retrieval": "retrieval",
    "retrieval_in_label": "in label",
    "label": "label",
    "captions": "captions",
    "caption_exact": "exact",
    "caption_f1": "F1",
}


def _lines(result: dict[str, Any]) -> Iterator[str]:
    sources = result["sources"]
    width = max(len("source"), *map(len, sources))
    yield f"{'source':<{width}}  " + "  ".join(f"{name:>9}" for name in _COLUMNS.values())
    for name, scores in sources.items():
        yield f"{name:<{width}}  " + "  ".join(f"{_shown(scores.get(key)):>9}" for key in _COLUMNS)
    yield f"Chance of retrieval: {_shown(result['chance'])}."


def _shown(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.0%}" if isinstance(value, float) else str(value)
