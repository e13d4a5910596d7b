"""What several commands share: arguments of a run, running one of its stages, printing results."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pardalis.errors import ConfigError

if TYPE_CHECKING:
    import torch

Commands = Any  # argparse keeps the type of add_subparsers() private

OVERRIDE_HELP = "change a value of the recipe: --set training_loop.steps=20 (may be repeated)"


class Parser(argparse.ArgumentParser):
    """The parser of a command; the parsed ``options.command`` is that of the command that runs.

    Attributes:
        listed: dest of a positional list that may continue after options.
        does: name of the library's function, or of the stage, that the command runs.
    """

    listed: str | None = None
    does: str | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        options, rest = super().parse_known_args(args, namespace)
        if "command" not in options:  # the innermost parser returns first
            options.command = self
        if rest and self.listed is not None:
            rest_parser = argparse.ArgumentParser(add_help=False)
            rest_parser.add_argument("parts", nargs="*")
            found, rest = rest_parser.parse_known_args(rest)
            getattr(options, self.listed).extend(found.parts)
        return options, rest


def add_command(commands: Commands, name: str, summary: str, description: str) -> Parser:
    """Add a command whose ``--help`` shows its description as it is written."""
    parser: Parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_run_arguments(parser: argparse.ArgumentParser, recipe: bool = True) -> None:
    """Add the recipe, the run folder, overrides, the device and ``--json``."""
    if recipe:
        parser.add_argument(
            "recipe", metavar="RECIPE", type=Path, help="TOML file that describes the run"
        )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="RUN",
        help="folder of the run (default: runs/ and the recipe's name)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help=OVERRIDE_HELP
    )
    parser.add_argument(
        "--device", default="cpu", help="where networks run: cpu, cuda, cuda:1 (default: cpu)"
    )
    add_json(parser)


_COMPUTES = """\
numbers that the decoder computes with: as the bundle stores them (default), 32 bits, or 16, which
halves memory and is slow on most CPUs"""


def add_dtype(parser: argparse._ActionsContainer, meaning: str = _COMPUTES) -> None:
    """Add ``--dtype``, which :func:`chosen_dtype` turns into a type, None for ``stored``."""
    parser.add_argument(
        "--dtype",
        choices=("stored", "float32", "bfloat16"),
        default="stored",
        help=meaning,
    )


def chosen_dtype(options: argparse.Namespace) -> "torch.dtype | None":
    """Return the type of ``--dtype``; None for weights as they are stored."""
    import torch

    known = {"stored": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
    return known[options.dtype]


def add_stage_command(
    commands: Commands, name: str, stage: str, summary: str, description: str
) -> None:
    """Add a command that runs one stage of a recipe."""
    parser = add_command(commands, name, summary, description)
    add_run_arguments(parser)
    parser.does = stage
    parser.set_defaults(run=lambda options: run_stages(options, stage))


def existing_run(folder: Path) -> Path:
    """Return the recipe that a run keeps in its folder; raises ConfigError."""
    if not (folder / "recipe.toml").is_file():
        raise ConfigError(f"{folder} is not the folder of a run: recipe.toml is not in it.")
    return folder / "recipe.toml"


def add_output(parser: argparse.ArgumentParser, metavar: str, meaning: str) -> None:
    """Add ``-o``, a folder that is written whole or not at all."""
    parser.add_argument(
        "-o", "--output", type=Path, metavar=metavar, required=True, help=f"{meaning}, to write"
    )


_READER_OF_SUFFIX = {".jsonl": "jsonl", ".html": "html", ".htm": "html", ".xhtml": "html"}


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add an image tokenizer, images for it, and how they are read: see :func:`reader_of`."""
    add_image_tokenizer(parser)
    parser.add_argument("data", metavar="DATA", type=Path, help="folder of images, JSONL or HTML")
    parser.add_argument(
        "--reader",
        choices=("folder", "jsonl", "html"),
        help="what DATA is (default: by its name's end; a folder holds images)",
    )
    parser.add_argument(
        "--image-fit",
        choices=("crop", "pad"),
        default="crop",
        help="make images square by a centre crop (default) or by white borders",
    )


def add_image_tokenizer(parser: argparse.ArgumentParser) -> None:
    """Add a folder in which ``find_image_tokenizer`` finds one."""
    parser.add_argument(
        "tokenizer", metavar="TOKENIZER", type=Path, help="bundle, run or image tokenizer: a folder"
    )


def reader_of(options: argparse.Namespace) -> Any:
    """Return the name of the reader for DATA."""
    return options.reader or _READER_OF_SUFFIX.get(options.data.suffix.lower(), "folder")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


# The commands of stages that are not called like their stage.
_STAGE_COMMANDS = {
    "corpus": "data corpus",
    "text_tokenizer": "tokenizer train-text",
    "image_tokenizer": "tokenizer train-image",
    "prepare": "data prepare",
}


def run_stages(options: argparse.Namespace, *stages: str) -> Path:
    """Run stages of a recipe and print what they took; returns the run folder."""
    from dataclasses import asdict

    from pardalis.pipeline import StageMissingError, load_recipe, run

    recipe = load_recipe(options.recipe, options.set)
    folder = options.out or Path("runs") / recipe.name
    try:
        records = run(recipe, folder, stages, options.device)
    except StageMissingError as error:
        command = _STAGE_COMMANDS.get(error.stage, error.stage)
        raise ConfigError(f"{error} That is 'pardalis {command}', or 'pardalis run'.") from error
    shown = [asdict(record) for record in records if not stages or record.name in stages]
    for record in shown:
        del record["inputs"]  # long, and in stages.json
    if options.json:
        print_json({"run": str(folder), "stages": shown})
    else:
        for record in shown:
            seconds, memory = record["seconds"], record["peak_rss_gib"]
            echo(f"{record['name']:<16} {seconds:7.1f} s   {memory:.2f} GiB")
    return folder


def echo(text: str) -> None:
    """Print a line of a result."""
    sys.stdout.write(text + "\n")


def print_json(value: Any) -> None:
    """Print a result for a program."""
    echo(json.dumps(value, indent=2, ensure_ascii=False))
