"""What a scheduler and a program learn of a failure: the exit code, and one object with --json."""

import errno
import io
import json
import os
import signal
import subprocess
import sys

import pytest

from pardalis import errors
from pardalis.cli.common import Parser, print_result
from pardalis.cli.main import _Terminated, build_parser, main
from pardalis.errors import (
    BundleError,
    ConfigError,
    DataError,
    GrammarError,
    PardalisError,
    QueueFullError,
    TemplateError,
    TrainingError,
)
from pardalis.train.divergence import Diverged
from pardalis.train.loop import Interrupted


def command(monkeypatch, line: str, failure: BaseException) -> None:
    """Let a command print to stdout and fail."""
    options = build_parser().parse_args(line.split())

    def fails(options):
        sys.stdout.write("a library that writes")
        raise failure

    options.run = fails
    monkeypatch.setattr(Parser, "parse_args", lambda *_: options)


FAILURES = [
    (ConfigError("No recipe."), 2, "config"),
    (DataError("No source."), 3, "data"),
    (GrammarError("No image.", 1), 3, "grammar"),
    (TemplateError("No system."), 3, "template"),
    (errors.BundleError("No bundle."), 4, "bundle"),
    (errors.TrainingError("No disk."), 5, "training"),
    (Diverged("Diverged.", "loss", 1, 2), 5, "diverged"),
    (Interrupted(3, 9), 75, "interrupted"),
    (errors.RequestError("No prompt."), 6, "request"),
    (QueueFullError("Full."), 6, "queue_full"),
    (KeyboardInterrupt(), 128 + signal.SIGINT, "interrupted"),
    (_Terminated(signal.SIGTERM), 128 + signal.SIGTERM, "interrupted"),
    (OSError(28, "No space left on device", "runs/x"), 1, "system"),
    (RuntimeError("broken"), 1, "bug"),
]


@pytest.mark.parametrize(("failure", "code", "kind"), FAILURES)
@pytest.mark.parametrize(
    "line", ["run r --json", "show bundle b --json", "--traceback plan r --json"]
)
def test_one_object_on_stdout(monkeypatch, capsys, line, failure, code, kind):
    command(monkeypatch, line, failure)
    assert main([]) == code
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert list(found) == ["error", "kind", "hint"]
    assert found["kind"] == kind
    assert f"pardalis: {found['error']}\n" in err
    assert found["hint"]
    assert "a library that writes" in err
    assert ("Traceback" in err) == ("--traceback" in line or kind == "bug")


@pytest.mark.parametrize(("failure", "code", "kind"), FAILURES[:-1])
def test_the_code_is_the_same_without_json(monkeypatch, capsys, failure, code, kind):
    command(monkeypatch, "run r", failure)
    assert main([]) == code
    assert capsys.readouterr().err.startswith("pardalis: ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_an_object(monkeypatch, capsys, number):
    options = build_parser().parse_args(["show", "bundle", "b", "--json"])
    options.run = lambda options: signal.raise_signal(number)
    monkeypatch.setattr(Parser, "parse_args", lambda *_: options)
    assert signal.getsignal(number) == signal.SIG_DFL
    assert main([]) == 128 + number
    assert signal.getsignal(number) == signal.SIG_DFL
    found = json.loads(capsys.readouterr().out)
    assert (found["error"], found["kind"]) == (f"interrupted by {number.name}.", "interrupted")


def test_under_nohup_the_end_of_a_terminal_has_no_effect(monkeypatch, capsys):
    options = build_parser().parse_args(["show", "bundle", "b", "--json"])
    options.run = lambda options: signal.raise_signal(signal.SIGHUP)
    monkeypatch.setattr(Parser, "parse_args", lambda *_: options)
    found = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main([]) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, found)


def test_closed_streams_are_opened():
    closing = (
        "import os, sys; [os.close(n) for n in (0, 1, 2)]; os.execv(sys.executable, sys.argv[1:])"
    )
    script = (
        "from pardalis.cli.main import main\n"
        "import os, sys\n"
        "code = main(['show', 'recipes'])\n"
        "places = {os.readlink(f'/proc/self/fd/{number}') for number in (0, 1, 2)}\n"
        "os._exit(7 if (code, places) == (0, {os.devnull}) else 8)\n"
    )
    command = [sys.executable, "-c", closing, sys.executable, "-c", script]
    assert subprocess.run(command, check=False).returncode == 7


@pytest.mark.parametrize(("line", "size"), [("show bundle b", "1"), ("show bundle b --json", "2")])
def test_without_json_and_as_a_rank_sigterm_ends_at_once(monkeypatch, line, size):
    options = build_parser().parse_args(line.split())
    found = []
    options.run = lambda options: found.append(signal.getsignal(signal.SIGTERM))
    monkeypatch.setattr(Parser, "parse_args", lambda *_: options)
    monkeypatch.setenv("WORLD_SIZE", size)
    assert main([]) == 0
    assert found == [signal.SIG_DFL]


def test_a_stop_and_a_divergence_are_told_apart():
    assert Interrupted.exit_code != Diverged.exit_code


def test_the_object_names_flags(monkeypatch, capsys):
    command(monkeypatch, "generate b --json", ConfigError("max_slots must be at least 1, got 0."))
    main([])
    assert json.loads(capsys.readouterr().out)["error"].startswith("--max-slots must be")


@pytest.mark.parametrize(
    "line", ["run --json", "run r --json --nonsense", "plan r --gpus x --json"]
)
def test_usage(capsys, line):
    with pytest.raises(SystemExit) as caught:
        main(line.split())
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["kind"] == "config"
    assert "usage: pardalis" in err


def test_a_failure_after_the_result_is_one_object(monkeypatch, capsys):
    options = build_parser().parse_args(["show", "bundle", "b", "--json"])

    def fails(options):
        options.result = {"name": "b"}
        raise OSError(28, "No space left on device")

    options.run = fails
    monkeypatch.setattr(Parser, "parse_args", lambda *_: options)
    assert main([]) == 1
    failure = json.loads(capsys.readouterr().out)
    assert (failure["kind"], failure["result"]) == ("system", {"name": "b"})


@pytest.mark.parametrize("kind", [BundleError, DataError, TrainingError])
def test_a_full_disk_has_one_code_whatever_was_written(monkeypatch, capsys, kind):
    error = kind("It could not be written: the disk is full; free space on it, and go on.")
    error.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    command(monkeypatch, "show bundle b --json", error)
    assert main([]) == 1
    assert json.loads(capsys.readouterr().out)["kind"] == "system"
    other = kind("It is wrong.")  # raised while the disk is full, and not about it
    other.__cause__ = error.__cause__
    command(monkeypatch, "show bundle b --json", other)
    assert main([]) == kind.exit_code


class _Full(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("line", ["show bundle b --json", "show bundle b"])
def test_a_result_for_a_full_disk_is_one_line(monkeypatch, capsys, line):
    options = build_parser().parse_args(line.split())
    options.run = lambda options: print_result(options, {"name": "b"}, "b")
    monkeypatch.setattr(Parser, "parse_args", lambda *_: options)
    monkeypatch.setattr(sys, "stdout", _Full())
    assert main([]) == 1
    error = capsys.readouterr().err
    assert error == (
        "pardalis: The output could not be written: the disk is full; free space on it. What was "
        "finished before stays.\n"
    )


def test_help_names_the_exit_codes(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    codes = {each.exit_code for each in _all(PardalisError)}
    assert {code for code in codes if f"{code} " in shown.partition("Exit codes")[2]} == codes


def _all(error: type[PardalisError]) -> list[type[PardalisError]]:
    return [error, *(each for below in error.__subclasses__() for each in _all(below))]


def test_each_code_is_in_the_tree_of_errors():
    for each in _all(PardalisError):
        if each.__module__.startswith("pardalis.") and not each.__name__.startswith("_"):
            assert each.kind
            assert each.hint
    assert "exit 75" in (errors.__doc__ or "")
