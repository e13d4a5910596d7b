"""``pardalis``: finds the command, runs it, and turns every PardalisError into one line and a code.

Results go to stdout, progress and logs to stderr. A command's module imports what it needs only
when it runs, so that ``pardalis --help`` stays fast.
"""

import argparse
import importlib
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pardalis
from pardalis.cli import (
    convert,
    data,
    generate,
    plan,
    quickstart,
    score,
    show,
    stability,
    stages,
    tokenizer,
)
from pardalis.cli.common import Parser
from pardalis.errors import ConfigError, PardalisError

_DESCRIPTION = """\
Early-fusion mixed-modal models: images become tokens in the vocabulary of text, and one
transformer reads and writes both.

  pardalis quickstart                    train a small model on a laptop, with a report
  pardalis generate BUNDLE rocket        generate text and images from a prompt
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    _set_output(options.quiet)
    try:
        for name in options.imports:
            _import(name)
        options.run(options)
    except PardalisError as error:
        if options.traceback:
            raise
        return _fail(_with_flags(str(error), options.command, parser), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted.", 128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of our output closed it
        sys.stderr.close()
    except OSError as error:  # a full disk, a folder that may not be written
        if options.traceback:
            raise
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}; what was finished before stays.", 1)
    return 0


def _import(name: str) -> None:
    """Import a module, or a Python file, that adds parts to the tables of Pardalis."""
    path = Path(name)
    try:
        if path.suffix == ".py":
            if not path.is_file():
                raise ConfigError(f"There is no file {name} to import.")
            sys.path.insert(0, str(path.resolve().parent))
            name = path.stem
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error}; --import takes a module that is installed, or the path of a Python file."
        ) from error


def _with_flags(message: str, command: argparse.ArgumentParser, root: Parser) -> str:
    """Translate a library's message, which names Python arguments, to the command line.

    A bare name at the beginning becomes the flag of the command that has such a dest. So does a
    name in backticks, which may also be a positional, or what a command does. Other names stay as
    they are.
    """
    flags = {a.dest: a.option_strings[-1] for a in command._actions if a.option_strings}
    positionals = {a.dest: str(a.metavar) for a in command._actions if not a.option_strings}
    names = {p.does: f"'{p.prog}'" for p in _parsers(root) if p.does} | positionals | flags
    message = re.sub(r"^\w+(?= )", lambda found: flags.get(found[0], found[0]), message)
    return re.sub(r"`(\w+)`", lambda found: names.get(found[1], found[0]), message)


def _parsers(parser: argparse.ArgumentParser) -> Iterator[Parser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield command
                yield from _parsers(command)


def _set_output(quiet: bool) -> None:
    """Configure logging; under torchrun only rank 0 writes, and the others log errors."""
    level = logging.WARNING if quiet else logging.INFO
    if os.environ.get("RANK", "0") != "0":
        level = logging.ERROR
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"pardalis: {message}\n")
    return code


def build_parser() -> Parser:
    """Return the parser with all commands."""
    parser = Parser(
        prog="pardalis",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pardalis {pardalis.__version__}")
    parser.add_argument("--quiet", action="store_true", help="show warnings and errors only")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module or a .py file that adds parts, such as objectives (docs/extend.md)",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (quickstart, tokenizer, data, plan):
        module.add(commands)
    stages.add_train(commands)
    stability.add(commands)
    stages.add_sample(commands)
    stages.add_report(commands)
    for module in (generate, score, convert, show):
        module.add(commands)
    return parser
