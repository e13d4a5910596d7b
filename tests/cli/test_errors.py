"""Errors on the command line: one line, an exit code, flags in place of Python arguments."""

import errno
import re
from pathlib import Path

import pytest

import pardalis
from pardalis.cli import common
from pardalis.cli.common import Parser
from pardalis.cli.main import build_parser, main
from pardalis.errors import ConfigError


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "none.toml"], 2, "No recipe at none.toml"),
        (["quickstart", "--recipe", "none"], 2, "No recipe at none; give the path of a TOML file"),
        (["show", "config", "quikstart"], 2, "did you mean quickstart?"),
        (["generate", "none", "owl"], 4, "No bundle at none"),
        (["show", "bundle", "none"], 4, "No bundle at none"),
        (["show", "image", "none.png"], 3, "none.png does not exist; an image was expected there"),
        (["tokenizer", "show", "none"], 2, "Nothing to show; give --text TEXT or --image PATH"),
        (["data", "look", "none"], 2, "No recipe at none"),
        (["data", "look", ".", "--limit", "0"], 2, "--limit must be at least 1, got 0"),
        (["data", "show", "none", "--position", "1"], 2, "none is not the folder of a run"),
        (["data", "tasks", "-o", "t", "--tasks", "owls"], 2, "--tasks has 'owls'; it must have"),
        (
            ["data", "tasks", "-o", "t", "--packages", "none", "--tasks", "flag_country"],
            3,
            "does not exist; 'pardalis data fetch' downloads it into none",
        ),
        (["export", "none", "-o", "b", "--to", "bundle"], 2, "none is not the folder of a run"),
        (["run", "."], 2, ". is a folder without a recipe.toml"),
        (["show", "config", "."], 2, "a recipe, which 'pardalis init' writes for documents."),
        (["run", "quikstart"], 2, "Those of Pardalis are listed by 'pardalis show recipes'."),
        (
            ["import", "none", "-o", "bundle"],
            4,
            "No folder and no GGUF file at none; give the folder or the file of a checkpoint.",
        ),
        (["export", "none", "-o", "hf", "--to", "hf"], 4, "No bundle at none"),
        (["export", ".", "-o", "hf", "--to", "hf"], 2, "hf is, holds or lies in the source"),
        (["tokenizer", "import-image", "none.ckpt", "-o", "vq"], 4, "none.ckpt is missing"),
        (["study", "serve", "none", "--api-key-file", "a.txt"], 2, "a.txt is no file"),
        (["merge", "none", "none", "-o", "b"], 4, "No bundle at none"),
        (["merge", "none", "-o", "b"], 2, "BUNDLE must be at least two models, got 1."),
        (["retrieval", "search", "none", "owl"], 3, "none does not exist; build an index there"),
        (["retrieval", "search", "none"], 6, "A text or --image is needed to search by"),
        (["retrieval", "search", "none", "a", "--out", "a.html"], 6, "give --bundle too"),
        (["retrieval", "build", "none", "-o", "index"], 2, "--codec is missing: none is no run"),
        (["retrieval", "build", ".", "-o", ".."], 2, "holds no index.json, so it is not replaced"),
        (["generate", "none", "owl", "--documents", "1"], 4, "No bundle at none"),
        (
            ["generate", "none", "owl", "--candidates", "2", "--retrieve", "none"],
            3,
            "none does not exist; build an index",
        ),
        (["generate", "none", "none.png"], 6, "No image at none.png"),
        (["evaluate", "none", "-o", "out", "--limit", "1"], 2, "--limit belongs to --tasks"),
        (
            ["evaluate", "none", "-o", "out", "--tasks", "a.toml", "--images", "1"],
            2,
            "--images does not apply to --tasks",
        ),
        (["evaluate", "none", "-o", "out", "--tasks", ","], 2, "--tasks names nothing"),
        (["evaluate", "none", "-o", "out", "--tasks", "arc_eazy"], 2, "did you mean 'arc_easy'?"),
        (["evaluate", "none", "-o", "out", "--tasks", "a.toml"], 2, "No task at a.toml"),
        (
            ["evaluate", "none", "-o", "out", "--tasks", "a.toml", "--contamination", "none"],
            2,
            "none is not the folder of a run: it has no recipe.toml",
        ),
        (["evaluate", "pair-net", "none.jsonl", "-o", "net"], 3, "none.jsonl does not exist"),
        (
            ["evaluate", "pair-net", ".", "-o", "net", "--reader", "x"],
            2,
            "--reader must be one of",
        ),
        (["evaluate", "pair-net", "a.jsonl", "-o", "n", "--steps", "0"], 2, "--steps must be at"),
        (["evaluate", "compare", "none"], 2, "FOLDER must be at least two folders of results"),
        (["evaluate", "compare", "none", "none", "-o", "a"], 2, "--output must end in .html"),
        (
            ["generate", "none", "owl", "--out", "owl.gif"],
            6,
            "is written as .html, .htm, .md, .png",
        ),
        (
            ["tokenizer", "show", "none", "--text", "a", "--out", "a.foo"],
            2,
            "--out must end in .png",
        ),
    ],
)
def test_errors_are_one_line_with_an_exit_code(
    arguments, code, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("pardalis: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    ["generate RUN owl", "score RUN a.jsonl", "show bundle RUN", "export RUN -o new --to hf"],
)
def test_a_run_without_a_bundle(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "recipe.toml").touch()
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "continuation": "b"}\n')
    assert main(command.split()) == 4
    assert "The run RUN has no bundle yet; run its stage 'pardalis train'" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "arguments",
    [["run", "r.toml", "--out", ""], ["run", ""], ["export", "b", "-o", "", "--to", "hf"]],
)
def test_an_empty_path_is_not_the_current_folder(capsys, arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "the path is empty, perhaps of an unset variable" in capsys.readouterr().err


def test_a_full_disk_is_one_line(monkeypatch, capsys):
    def full(options, *stages):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x/samples")

    monkeypatch.setattr(common, "run_stages", full)
    assert main(["train", "recipe.toml"]) == 1
    shown = capsys.readouterr().err
    assert shown == (
        "pardalis: runs/x/samples could not be written: the disk is full; free space on it. What "
        "was finished before stays.\n"
    )


@pytest.mark.parametrize(
    ("command", "message", "shown"),
    [
        ("generate b", "max_slots must be at least 1, got 0.", "--max-slots must be at least 1"),
        ("generate b", "Leave `max_images` out.", "Leave --max-images out."),
        ("export b -o m --to meta", "`n_ranks` does not", "--ranks does not"),  # another name
        ("import c -o b", "give another `output`", "give another --output"),  # -o, --output
        ("import c -o b", "`source` is a bundle", "PATH is a bundle"),  # a positional
        ("generate b", "Run `import_model` again.", "Run 'pardalis import' again."),
        ("plan r", "Run the stage `image_tokenizer`.",
         "Run the stage 'pardalis tokenizer train-image'."),
        # A name that the command has no option for stays as it is.
        ("show bundle b", "max_slots must be 1; see `max_slots`", "max_slots must be 1; see `max_"),
        # Neither does a place of a recipe or a word within a sentence change.
        ("generate b", "sample.max_images must be 1", "sample.max_images must be 1"),
        ("generate b", "The seed must be 1", "The seed must be 1"),
        ("generate b", "seed", "seed"),
    ],
)  # fmt: skip
def test_flags_replace_argument_names(command, message, shown, monkeypatch, capsys):
    parser = build_parser()
    options = parser.parse_args(command.split())

    def fails(options):
        raise ConfigError(message)

    options.run = fails
    monkeypatch.setattr(Parser, "parse_args", lambda *_: options)
    assert main([]) == 2
    assert capsys.readouterr().err.startswith(f"pardalis: {shown}")


def test_library_messages_name_no_flags():
    """A library's message names Python arguments; only the command line knows flags."""
    package = Path(pardalis.__file__).parent
    found = [
        f"{path.relative_to(package)}: {text}"
        for path in package.rglob("*.py")
        # A report shows commands, and lm-eval's flags are its own.
        if path.parent.name != "cli" and path.name not in ("commands.py", "lm_eval.py")
        for text in re.findall(r"""(?:["'`]| )--[a-z][a-z-]+|'pardalis [a-z]""", path.read_text())
    ]
    # npm's and pip's, and a comment on the form of overrides
    known = ("--ignore-scripts", "--no-deps", "--quiet", "--disable-pip-version-check", " --set")
    assert [text for text in found if not text.endswith(known)] == []


def test_traceback_on_demand():
    with pytest.raises(ConfigError):
        main(["--traceback", "run", "none.toml"])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["generate"],
        ["import", "hf"],
        ["export", "bundle", "-o", "hf"],
        ["export", "bundle", "-o", "hf", "--to", "onnx"],
    ],
)
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: pardalis" in capsys.readouterr().err


def commands(parser, prefix=()):
    for action in parser._subparsers._group_actions if parser._subparsers else ():
        for name, sub in action.choices.items():
            yield (*prefix, name), sub
            yield from commands(sub, (*prefix, name))


COMMANDS = list(commands(build_parser()))


def test_the_list_of_commands():
    assert sorted(" ".join(name) for name, _ in COMMANDS) == [
        "adapter", "adapter merge", "chat", "data", "data corpus", "data fetch", "data look",
        "data prepare", "data show", "data tasks", "evaluate", "evaluate compare",
        "evaluate pair-net", "evaluate tasks", "export", "generate", "import", "init", "merge",
        "plan", "quickstart", "report", "retrieval", "retrieval build", "retrieval search", "run",
        "sample", "score", "serve", "show", "show adapter",
        "show bundle", "show config", "show image", "show recipes", "show template", "stability",
        "study",
        "study new", "study report", "study serve", "tokenizer", "tokenizer compare",
        "tokenizer decode", "tokenizer encode", "tokenizer evaluate", "tokenizer import-image",
        "tokenizer show", "tokenizer train-image", "tokenizer train-text", "train",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parser"), COMMANDS, ids=lambda x: " ".join(x) if type(x) is tuple else ""
)
def test_every_command_has_help(name, parser):
    text = parser.format_help()
    assert len(parser.description.strip()) > 40
    for action in parser._actions:
        if action.option_strings and not text.startswith("usage: pardalis -h"):
            assert action.help, (name, action.option_strings)
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND; pardalis --help lists them"),
        (["show"], "required: COMMAND; pardalis show --help lists them"),
        (["generat"], "; did you mean generate?"),
        (["show", "recipe"], "; did you mean recipes?"),
        (
            ["run", "a.toml", "--dryrun"],
            "unrecognized arguments: --dryrun; did you mean --dry-run?",
        ),
        (["run", "a.toml", "--sett=a=1"], "--sett=a=1; did you mean --set?"),
        (["generate", "b", "owl", "--mode", "picture"], "invalid choice: 'picture'"),
        (["generate", "b", "owl", "--mode", "images"], "; did you mean image?"),
        (["run", "a.toml", "--zzzz"], "unrecognized arguments: --zzzz\n"),
    ],
)
def test_a_misspelt_argument_gets_the_nearest(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
