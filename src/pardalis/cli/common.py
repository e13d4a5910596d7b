"""Shared by several commands: arguments, running stages of a recipe, printing results."""

import argparse
import difflib
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pardalis.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from pardalis.data import Workers
    from pardalis.pipeline import Decision, Recipe

Commands = Any  # argparse keeps the type of add_subparsers() private
Run = Callable[[argparse.Namespace], object]  # what a command does with its options


class UsageExit(SystemExit):
    """The end of a command whose arguments are wrong; the usage has been printed."""

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


class Parser(argparse.ArgumentParser):
    """The parser of a command; the parsed ``options.command`` is that of the command that runs.

    Attributes:
        listed: dest of a positional list that may continue after options.
        does: name of the library's function, or of the stage, that the command runs.
    """

    listed: str | None = None
    does: str | None = None

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.register("type", Path, _path)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        options, rest = self.parse_known_args(args, namespace)
        if rest:
            known = [text for action in options.command._actions for text in action.option_strings]
            hint = _near(next((text for text in rest if text.startswith("--")), ""), known)
            options.command.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
        return options

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += _near(str(value), map(str, action.choices or ()))
            raise

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit; a text that begins with a dash was taken for an option."""
        is_taken = "ignored explicit" in message or "unrecognized" in message
        if self.listed is not None and is_taken:
            message += f"; a part of the {self.listed} that begins with a dash stands after --"
        elif "expected one argument" in message:
            message += "; a value that begins with a dash is written --option=-value"
        elif message.endswith("required: COMMAND"):
            message += f"; {self.prog} --help lists them"
        self.print_usage(sys.stderr)
        sys.stderr.write(f"{self.prog}: error: {message}\n")
        raise UsageExit(message)

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


def _near(given: str, known: Iterable[str]) -> str:
    """Return a hint at the known name that is nearest to one that was misspelt, if any is near."""
    near = difflib.get_close_matches(given.split("=")[0], list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


class TwoWordCommands(argparse._SubParsersAction):  # type: ignore[type-arg]
    """Commands, of which some have names of two words, such as ``evaluate compare``.

    The command ``evaluate`` takes a folder; one called ``compare`` is given as ``./compare``.
    """

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        if " ".join(values[:2]) in self.choices:
            values = [" ".join(values[:2]), *values[2:]]
        super().__call__(parser, namespace, values, option_string)


def _path(text: str) -> Path:
    """Return the path of an argument; an empty one would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty, perhaps of an unset variable")
    return Path(text)


def add_command(commands: Commands, name: str, summary: str, description: str) -> Parser:
    """Add a command whose ``--help`` keeps the line breaks of its description."""
    parser: Parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_run_arguments(parser: argparse.ArgumentParser, run: Run, recipe: bool = True) -> None:
    """Add the run folder, the device and what runs; with ``recipe``, also the recipe."""
    if recipe:
        add_recipe(parser)
    else:
        add_overrides(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="RUN",
        help="folder of the run (default: runs/NAME, with the recipe's name)",
    )
    parser.add_argument(
        "--device", default="cpu", help="device of all networks: cpu, cuda, cuda:1 (default: cpu)"
    )
    set_run(parser, run)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add the path of a recipe and ``--set``."""
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        type=Path,
        help="TOML file, a name that 'pardalis show recipes' lists, or the folder of a run",
    )
    add_overrides(parser)


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Add the path of a bundle, for ``pardalis.load``."""
    parser.add_argument(
        "bundle", metavar="BUNDLE", type=Path, help="folder of a bundle, or of a run that has one"
    )


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a value of the recipe: --set training_loop.steps=20 (may be repeated)",
    )


_COMPUTES = """\
dtype of the decoder's computation: as stored in the bundle (default), float32, or bfloat16, which
halves memory and is slow on most CPUs"""


def add_dtype(parser: argparse._ActionsContainer, meaning: str = _COMPUTES) -> None:
    """Add ``--dtype``, which :func:`chosen_dtype` returns."""
    parser.add_argument(
        "--dtype",
        choices=("stored", "float32", "bfloat16"),
        default="stored",
        help=meaning,
    )


def chosen_dtype(options: argparse.Namespace) -> "torch.dtype | None":
    """Return the dtype that ``--dtype`` names; None for ``stored``."""
    import torch

    known = {"stored": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
    return known[options.dtype]


def add_placement(group: argparse._ActionsContainer) -> None:
    """Add where and in which precision a bundle runs: ``--device``, ``--dtype``, ``--weights``."""
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    add_dtype(group)
    group.add_argument(
        "--weights", choices=("stored", "bfloat16", "int8"), default="stored",
        help="weight matrices in the dtype they are loaded in (default), rounded to 16 or 8 bits",
    )  # fmt: skip


def add_adapters(parser: argparse._ActionsContainer, used: str) -> None:
    """Add ``--adapter``, which :func:`chosen_adapters` returns.

    Args:
        used: when an adapter is used.
    """
    parser.add_argument(
        "--adapter",
        dest="adapters",
        action="append",
        default=[],
        metavar="[NAME=]FOLDER",
        help=f"load an adapter that was trained on the bundle's model; {used}",
    )


def chosen_adapters(options: argparse.Namespace) -> dict[str, Path]:
    """Return the folders that ``--adapter`` names, by name; by default that of the folder.

    Raises:
        ConfigError: two have the same name.
    """
    found: dict[str, Path] = {}
    for text in options.adapters:
        name, equals, folder = text.partition("=")
        path = Path(folder if equals else text)
        name = name if equals else path.resolve().name
        if not name or name in found:
            raise ConfigError(
                f"adapters has the name {name!r} twice or without letters; give each a name of "
                "its own, as NAME=FOLDER."
            )
        found[name] = path
    return found


def add_stage_command(
    commands: Commands,
    name: str,
    stage: str,
    summary: str,
    description: str,
    run: Run | None = None,
) -> Parser:
    """Add a command that runs one stage of a recipe, by :func:`run_stages` unless given."""
    parser = add_command(commands, name, summary, description)
    add_run_arguments(parser, run or (lambda options: run_stages(options, stage)))
    add_stage_options(parser)
    parser.does = stage
    return parser


def add_stage_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--with-parents`` and ``--dry-run``, which :func:`run_stages` reads."""
    parser.add_argument(
        "--with-parents",
        action="store_true",
        help="first train the models of the recipes that start_from leads to, if need be",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="list what would run, resume, be kept or be skipped, and why; change nothing",
    )


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add ``--jobs`` and ``--engine``, which :func:`chosen_workers` returns."""
    add_number(
        parser, "--jobs",
        "workers that prepare documents (default: one for each CPU or GPU, if there is work)",
    )  # fmt: skip
    parser.add_argument(
        "--engine",
        choices=("processes", "ray"),
        default="processes",
        help="where workers are: processes of this machine (default), or actors of the Ray cluster "
        "that RAY_ADDRESS names, which needs pardalis[cluster]",
    )


def chosen_workers(options: argparse.Namespace) -> "Workers":
    """Return what encodes documents, as ``add_workers`` lets the user choose."""
    from pardalis.data import Workers

    joins_only = getattr(options, "join", False)
    jobs, engine = getattr(options, "jobs", None), getattr(options, "engine", "processes")
    return Workers(jobs=jobs, engine=engine, joins_only=joins_only)


def existing_run(folder: Path) -> Path:
    """Return the path of a run's recipe; raises ConfigError if the folder has none."""
    if not (folder / "recipe.toml").is_file():
        raise ConfigError(f"{folder} is not the folder of a run: it has no recipe.toml.")
    return folder / "recipe.toml"


def add_output(parser: argparse.ArgumentParser, metavar: str, meaning: str) -> None:
    """Add ``-o``, the folder of the result."""
    parser.add_argument(
        "-o", "--output", type=Path, metavar=metavar, required=True, help=f"{meaning} to write"
    )


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add an image tokenizer, images for it, and their reader: see :func:`reader_of`."""
    add_image_tokenizer(parser)
    parser.add_argument("data", metavar="DATA", type=Path, help="folder or file of documents")
    parser.add_argument(
        "--reader",
        metavar="NAME",
        help="format of DATA (default: as it looks; a folder holds images), see docs/readers.md",
    )
    parser.add_argument(
        "--image-fit",
        choices=("crop", "pad"),
        default="crop",
        help="make images square by a centre crop (default) or by white borders",
    )


def add_image_tokenizer(parser: argparse.ArgumentParser) -> None:
    """Add the path of an image tokenizer, for ``find_image_tokenizer``."""
    parser.add_argument(
        "tokenizer",
        metavar="TOKENIZER",
        type=Path,
        help="folder of a bundle, a run or an image tokenizer",
    )


def reader_of(options: argparse.Namespace) -> str:
    """Return the reader of DATA, given or recognised; raises ConfigError for an unknown name."""
    from pardalis.documents import READERS
    from pardalis.documents import reader_of as recognised
    from pardalis.errors import ConfigError

    if options.reader is None:
        return (not options.data.is_dir() and recognised(options.data)) or "folder"
    if options.reader not in READERS:
        raise ConfigError(f"--reader must be one of {', '.join(READERS)}, got {options.reader!r}.")
    return str(options.reader)


def add_number(parser: argparse._ActionsContainer, flag: str, meaning: str) -> None:
    """Add an option that is a whole number."""
    parser.add_argument(flag, type=int, metavar="N", help=meaning)


def set_run(parser: argparse.ArgumentParser, run: Run) -> None:
    """Set what the command calls, and add ``--json`` for :func:`print_result`."""
    parser.add_argument("--json", action="store_true", help="print the result or failure as JSON")
    parser.set_defaults(run=run, result=None, one_line=False)


def chosen_run(options: argparse.Namespace) -> "tuple[Recipe, Path]":
    """Return the recipe and the folder that :func:`add_run_arguments` lets the user choose."""
    from pardalis.pipeline import load_recipe
    from pardalis.pipeline.shipped import find_recipe

    path = find_recipe(options.recipe)
    recipe = load_recipe(path, options.set)
    return recipe, options.out or (path if path.is_dir() else Path("runs") / recipe.name)


def run_stages(options: argparse.Namespace, *stages: str) -> Path:
    """Run stages of a recipe and print their time and memory; returns the run folder.

    With ``--dry-run`` it prints what would be done with each stage.
    """
    from dataclasses import asdict

    from pardalis.pipeline import StageMissingError, dry_run, run

    recipe, folder = chosen_run(options)
    how = (recipe, folder, stages, options.device)
    chosen = {"with_parents": options.with_parents, "workers": chosen_workers(options)}
    try:
        if options.dry_run:
            _print_decisions(options, folder, dry_run(*how, **chosen))
            return folder
        records = run(*how, **chosen)
    except StageMissingError as error:
        # main() replaces the name of the stage by that of its command.
        raise ConfigError(f"{error} That is `{error.stage}`, or 'pardalis run'.") from error
    shown = [asdict(record) for record in records if not stages or record.name in stages]
    for record in shown:
        del record["inputs"]  # long, and in stages.json
    lines = [
        f"{record['name']:<16} {record['seconds']:7.1f} s   {record['peak_rss_gib']:.2f} GiB"
        for record in shown
    ]
    print_result(options, {"run": str(folder), "stages": shown}, *lines)
    return folder


def _print_decisions(
    options: argparse.Namespace, folder: Path, decisions: "Sequence[Decision]"
) -> None:
    from dataclasses import asdict

    lines, last = [], decisions[-1].recipe
    for each in decisions:
        where = "" if each.recipe == last else f"  (recipe {each.recipe!r})"
        lines.append(f"{each.stage:<16} {each.action:<7} {each.reason}{where}")
    print_result(options, {"run": str(folder), "stages": list(map(asdict, decisions))}, *lines)


# C0 and C1 controls, and the two that show the letters after them in another order.
_CONTROL = {
    code: "\ufffd"
    for code in (*range(32), *range(127, 160), 0x202D, 0x202E)
    if chr(code) not in "\n\t"
}


def printable(text: str) -> str:
    """Return a text that cannot control the terminal, as one from a file or a model could."""
    return text.translate(_CONTROL)


def shown(text: str) -> str:
    """Return a text as it is written to stdout: printable on a terminal, and else as it is."""
    return printable(text) if sys.stdout.isatty() else text


def echo(text: str) -> None:
    sys.stdout.write(shown(text) + "\n")


def print_result(
    options: argparse.Namespace, value: Any, *lines: str, styled: bool = False
) -> None:
    """Print the lines of a result; with ``--json`` keep its value, which ``main`` prints.

    ``main`` prints it when the command has ended, so that stdout holds one object: the result, or
    the failure.

    Args:
        styled: the lines have colours, and nothing else that controls a terminal.
    """
    if options.json:
        options.result = value
    for line in () if options.json else lines:
        sys.stdout.write((line if styled else shown(line)) + "\n")


def echo_json(value: Any, one_line: bool = False) -> None:
    # JSON has escapes of its own for what a terminal cannot show.
    is_unicode = "utf" in (sys.stdout.encoding or "utf-8").lower()
    indent = None if one_line else 2
    echo(json.dumps(_finite(value), indent=indent, ensure_ascii=not is_unicode))


def _finite(value: Any) -> Any:
    """Return a value with null for NaN, which JSON has not, but Python reads from its files."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def add_hosts(parser: argparse._ActionsContainer) -> None:
    """Add the option ``--allow-host``, of a server that a proxy stands before."""
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", dest="allowed_hosts",
        help="answer to this domain name too, as that of a proxy; without keys, a server of this "
        "machine alone answers to none (may be repeated)",
    )  # fmt: skip
