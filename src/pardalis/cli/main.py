"""``pardalis``: finds the command, runs it, and turns every error of ours into one line and a code.

Results go to stdout, progress and logs to stderr. A command's module imports what it needs only
when it runs, so that ``pardalis --help`` answers at once.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence

import pardalis
from pardalis.cli import (
    convert,
    data,
    generate,
    plan,
    quickstart,
    report,
    sample,
    show,
    stability,
    tokenizer,
    train,
)
from pardalis.cli.common import Parser
from pardalis.errors import PardalisError

_COMMANDS = (
    quickstart,
    tokenizer,
    data,
    plan,
    train,
    stability,
    sample,
    report,
    generate,
    convert,
    show,
)

_DESCRIPTION = """\
Early-fusion mixed-modal models: images become tokens in the vocabulary of text, and one
transformer reads and writes both.

  pardalis quickstart                    everything, on real data, on a laptop, with a report
  pardalis generate BUNDLE rocket        ask a trained model
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    _set_output(options.quiet)
    try:
        options.run(options)
    except PardalisError as error:
        if options.traceback:
            raise
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted.", 128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of our output has had enough
        sys.stderr.close()
    except OSError as error:  # a full disk, a folder that may not be written
        if options.traceback:
            raise
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}; what was finished before stays.", 1)
    return 0


def _set_output(quiet: bool) -> None:
    """Say what is shown: of the processes that torchrun starts, the first one speaks for all."""
    level = logging.WARNING if quiet else logging.INFO
    if os.environ.get("RANK", "0") != "0":
        level = logging.ERROR
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"pardalis: {message}\n")
    return code


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all commands."""
    parser = Parser(
        prog="pardalis",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pardalis {pardalis.__version__}")
    parser.add_argument("--quiet", action="store_true", help="show warnings and errors only")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    return parser
