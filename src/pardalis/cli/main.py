"""``pardalis``: finds the command, runs it, and turns every PardalisError into one line and a code.

Results go to stdout, progress and logs to stderr. A command's module imports what it needs only
when it runs, so that ``pardalis --help`` stays fast.
"""

import argparse
import io
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress

import pardalis
from pardalis.cli import (
    adapter,
    chat,
    convert,
    data,
    evaluate,
    generate,
    init,
    merge,
    plan,
    quickstart,
    retrieval,
    score,
    serve,
    show,
    stability,
    stages,
    study,
    tokenizer,
)
from pardalis.cli.common import Parser, TwoWordCommands, UsageExit, echo_json, printable
from pardalis.errors import ConfigError, PardalisError
from pardalis.files import why_unwritten
from pardalis.imports import import_named

_DESCRIPTION = """\
Early-fusion mixed-modal models: images become tokens in the vocabulary of text, and one
transformer reads and writes both.

  pardalis quickstart                    train a small model on a laptop, with a report
  pardalis init FOLDER                   write a recipe for your documents
  pardalis generate BUNDLE rocket        generate text and images from a prompt

Exit codes: 0 done; 75 (or 129, 130, 143) interrupted, so run the same command again; 2 usage or
recipe, 3 data, 4 bundle or checkpoint, 5 training (diverged, say), 6 request, 1 anything else: read
the message.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, which :mod:`pardalis.errors` lists."""
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # of any encoding: what it lacks is written \\x..
            stream.reconfigure(errors="backslashreplace")
    parser = build_parser()
    try:
        options = parser.parse_args(arguments)
    except UsageExit as end:
        if "--json" in (sys.argv[1:] if arguments is None else arguments):
            _echo_failure(end.message, ConfigError)
        raise
    _set_output(options.quiet)
    try:
        _run(options)
    except BrokenPipeError:  # the reader of our output closed it
        sys.stderr.close()
    except KeyboardInterrupt as interrupt:
        number = interrupt.args[0] if isinstance(interrupt, _Terminated) else signal.SIGINT
        return _fail(options, f"interrupted by {number.name}.", 128 + number, _Interrupt)
    except Exception as error:
        if options.traceback and not options.json:
            raise
        if isinstance(error, PardalisError):
            message = _with_flags(str(error), options.command, parser)
            kind = _System if _tells_of_system(error) else type(error)
            return _fail(options, message, kind.exit_code, kind)
        if isinstance(error, OSError):  # a full disk, a folder that may not be written
            return _fail(options, _of_system(error), 1, _System)
        if not options.json:
            raise
        options.traceback = True
        return _fail(options, f"{type(error).__name__}: {error}", 1, _Bug)
    return 0


def _open_streams() -> None:
    """Give standard streams that the caller has closed a place where nothing arrives.

    The next file that is opened would take their number, and whatever prints would write into it.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                null = os.open(os.devnull, os.O_RDWR)
                os.dup2(null, number)
                if null != number:
                    os.close(null)
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _run(options: argparse.Namespace) -> None:
    """Run a command; with ``--json`` stdout holds nothing but its result, or its own events."""
    options.stdout = sys.stdout
    with _one_object() if options.json else nullcontext():
        for name in options.imports:
            import_named(name)
        options.run(options)
    if options.json and options.result is not None:
        echo_json(options.result)


def _tells_of_system(error: PardalisError) -> bool:
    """Return whether the error tells of a full disk, say, whatever could not be written to it."""
    why = why_unwritten(error)
    return why is not None and why in str(error)


def _of_system(error: OSError) -> str:
    if why := why_unwritten(error):
        place = error.filename or "The output"
        return f"{place} could not be written: {why}. What was finished before stays."
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or error}{where}; what was finished before stays."


class _Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP outside training, where they set off nothing else."""


@contextmanager
def _one_object() -> Iterator[None]:
    """Send what the block prints to stderr, and let signals raise, so that they can be reported.

    Without ``--json``, and as a rank of torchrun, SIGTERM and SIGHUP end the process at once: a
    rank that waits for others in a call of a library would not raise.
    """
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
    is_main = threading.current_thread() is threading.main_thread()
    raising = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if is_alone and is_main and signal.getsignal(number) == signal.SIG_DFL
    ]

    def end(number: int, frame: object) -> None:
        raise _Terminated(signal.Signals(number))

    for number in raising:
        signal.signal(number, end)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        for number in raising:
            signal.signal(number, signal.SIG_DFL)


class _Interrupt(PardalisError):
    kind = "interrupted"
    hint = "Run the same command again; what was finished before stays."


class _System(PardalisError):
    kind = "system"
    hint = "Correct what the system reports, such as a full disk, and run the same command again."


class _Bug(PardalisError):
    kind = "bug"
    hint = "Report this with the traceback on stderr."


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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable())
    logging.basicConfig(level=level, handlers=[handler])
    for name in ("faiss", "gguf", "torch"):  # they tell each step, and what is in caches
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    # Of files of others, with paths of libraries; what cannot be read is named by Pardalis.
    warnings.filterwarnings("ignore", r"Image size \(\d+ pixels\) exceeds limit")
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("ignore", "Detected pickle protocol")


class _Printable(logging.Formatter):
    """Messages alone, which may quote a file and must not control the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _fail(options: argparse.Namespace, message: str, code: int, kind: type[PardalisError]) -> int:
    """Report a failure on stderr, with ``--json`` also as the one object on stdout."""
    if options.json:
        if options.traceback:
            traceback.print_exc()
        _echo_failure(message, kind, options.result, options.one_line)
    sys.stderr.write(f"pardalis: {printable(message)}\n")
    return code


def _echo_failure(
    message: str, kind: type[PardalisError], result: object = None, one_line: bool = False
) -> None:
    """Print a failure as one object, with the result of a command that failed in part."""
    failure: dict[str, object] = {"error": message, "kind": kind.kind, "hint": kind.hint}
    with suppress(OSError):  # stdout may be what failed: closed by its reader, or on a full disk
        echo_json(failure if result is None else failure | {"result": result}, one_line)


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
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, action=TwoWordCommands
    )
    for module in (quickstart, init, tokenizer, data, plan):
        module.add(commands)
    stages.add_train(commands)
    stability.add(commands)
    stages.add_sample(commands)
    stages.add_report(commands)
    for module in (
        retrieval,
        generate,
        chat,
        serve,
        score,
        evaluate,
        study,
        convert,
        adapter,
        merge,
        show,
    ):
        module.add(commands)
    return parser
