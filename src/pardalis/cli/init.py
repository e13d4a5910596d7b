"""``pardalis init``: write a recipe for a folder of documents."""

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pardalis.cli.common import Commands, add_command, print_result, set_run

if TYPE_CHECKING:
    from pardalis.pipeline import FirstRecipe

_DESCRIPTION = """\
Write a recipe for the documents in a folder: images with captions beside them, HTML pages with
figures, and JSONL files, in any mixture and any subfolders.

  pardalis init photos -o my-photos.toml --minutes 30
  pardalis run my-photos.toml

It reads the documents, measures some steps of training on this machine for a few seconds, and
chooses the resolution of images, the length of rows, the model and the numbers of steps for the
stated time. The file gives the reasons as comments; every value can be changed. A file that exists
is never overwritten.
"""


def add(commands: Commands) -> None:
    parser = add_command(commands, "init", "write a recipe for a folder of documents", _DESCRIPTION)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of the documents")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="RECIPE",
        help="recipe to write (default: FOLDER.toml, with the folder's name, in this folder)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=30.0,
        metavar="M",
        help="how long the whole run may take on this machine (default: 30)",
    )
    parser.add_argument(
        "--device", default="cpu", help="device of the run: cpu, cuda, cuda:1 (default: cpu)"
    )
    parser.does = "init"
    set_run(parser, _init)


def _init(options: argparse.Namespace) -> None:
    from pardalis.pipeline import init

    made = init(options.folder, options.output, minutes=options.minutes, device=options.device)
    device = "" if options.device == "cpu" else f" --device {options.device}"
    command = f"pardalis run {shlex.quote(str(made.path))}{device}"
    print_result(options, made.to_dict() | {"command": command}, *_lines(made, command))


def _lines(made: "FirstRecipe", command: str) -> Iterator[str]:
    yield f"Found in {made.found.folder}"
    readers = {source.name: source.reader for source in made.found.sources}
    width = max(10, *map(len, readers))
    for name, fact in made.facts.items():
        yield f"  {name:<{width}}  reader {readers[name]!r}: {fact}"
    if made.found.n_undecodable:
        yield (
            f"  {made.found.n_undecodable} of {made.found.n_sampled} sampled images cannot be "
            "decoded; a run leaves such images out and counts them."
        )
    for note in made.found.notes:
        yield f"  {note}"
    yield "\nChosen"
    for name, reason in made.reasons.items():
        yield f"  {name:<{width}}  {reason}"
    for warning in made.choice.warnings:
        yield f"! {warning}"
    yield f"\n{made.path} is written. Read it, change what you like, and run it:"
    yield f"  {command}"
