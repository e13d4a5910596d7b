"""Running what a page shows as it stands, in order, in the current folder."""

import contextlib
import importlib.util
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import tomli_w
import torch
import yaml
from docs_workspace import QUICKSTART, ROOT
from documented import Shown, arguments
from short_runs import short_runs
from torch.distributed.run import parse_args

from pardalis.cli.main import build_parser, main
from pardalis.config import from_dict
from pardalis.documents import READERS, Document, open_image, read_jsonl, read_pairs
from pardalis.documents.readers.recognise import layout_of
from pardalis.errors import ConfigError
from pardalis.evaluate.tasks import load_task
from pardalis.inference.mask import is_mask
from pardalis.pipeline import load_recipe
from pardalis.serve import ServeConfig
from pardalis.serve.ray import RayConfig

# What a machine without GPUs and a run of two steps have instead of what is written.
INSTEAD = {"--step 20000": "--step 2", "--infill 100": "--infill 4"}
if not torch.cuda.is_available():
    INSTEAD |= {"--device cuda": "--device cpu", "--nproc-per-node 8": "--nproc-per-node 2"}
# Options of ``pardalis evaluate RUN``, which else scores hundreds of answers.
_FEW = ("--images", "2", "--captions", "2", "--answers", "2")
_DOES_NOT_TRAIN = ("plan", "show")  # these commands show recipes as they are
# Long commands that leave nothing that a later one reads: each runs once, whichever pages show it.
_STUDIES = (
    "pardalis stability",
    "pardalis tokenizer compare",
    "pardalis evaluate runs/assistant",
    "pardalis evaluate runs/drawings",
)
_TORCHRUN_S = 300
_URL = "http://127.0.0.1:8000"  # of a server, as pages write it


class Done:
    """The long work of pages that later ones need not do again.

    Attributes:
        studies: commands that ran.
        runs: folder with the finished runs of the repository's recipes.
    """

    def __init__(self, runs: Path) -> None:
        self.studies: set[str] = set()
        self.runs = runs

    def bring(self, recipe: Path) -> None:
        """Copy the run of a recipe and those of its parents into the current folder's ``runs``.

        The command that makes a run goes through all of its stages, and finds them finished.
        """
        for name in _line_of(recipe):
            if (self.runs / name).exists() and not Path("runs", name).exists():
                shutil.copytree(self.runs / name, Path("runs", name), symlinks=True)

    def keep(self, recipe: Path) -> None:
        """Copy them from there; a run may have more stages than when it was a parent."""
        for name in _line_of(recipe):
            shutil.rmtree(self.runs / name, ignore_errors=True)
            shutil.copytree(Path("runs", name), self.runs / name, symlinks=True)


def _line_of(recipe: Path) -> list[str]:
    """Return the names of a recipe and of those that it starts from."""
    names = []
    while recipe.suffix == ".toml":
        values = tomllib.loads(recipe.read_text())
        names.append(values["name"])
        recipe = recipe.parent / values.get("start_from", "")
    return names


class Page:
    """What one page has done so far: the names of its Python, and what its last command printed."""

    def __init__(self, done: Done) -> None:
        self.done = done
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self.printed = ""
        self.server: subprocess.Popen[str] | None = None
        self.url = ""  # of the server

    def close(self) -> None:
        """End what the page has started."""
        if self.server is not None:
            self.server.kill()
            self.server.communicate()

    def run(self, item: Shown) -> None:
        """Run a block or a command; raises AssertionError, or whatever it raises."""
        if item.kind == "block" and not item.commands:
            self._block(item)
        elif item.kind == "inline":
            self._inline(item.text)
        else:
            for command in item.commands or [item.text]:
                self.command(command)

    def _block(self, item: Shown) -> None:
        match item.language:
            case "python":
                text = item.text.replace(_URL, self.url) if self.server else item.text
                code = compile("\n" * item.line + text, item.page, "exec")
                with short_runs(), contextlib.redirect_stdout(io.StringIO()):
                    exec(code, self.namespace)
            case "toml":
                self._toml(item.text)
            case "yaml":
                self._yaml(item.text)
            case "nginx" | "caddyfile":
                _check_proxy(item.text)
            case "json" if '"param"' in item.text:
                self._api_error(json.loads(item.text))
            case "json":
                self._json([json.loads(line) for line in item.text.splitlines()])
            case "":
                shown, printed = (text.rstrip().splitlines() for text in (item.text, self.printed))
                assert shown == printed, (
                    f"This is not what the command before it prints:\n{self.printed}"
                )
            case language:
                raise AssertionError(f"There is no way to run a block of {language}.")

    # ── commands ─────────────────────────────────────────────────────────────────────────────────

    def command(self, text: str) -> None:
        """Run one line of a shell."""
        for written, instead in INSTEAD.items():
            text = text.replace(written, instead)
        program, *rest = arguments(text)
        if text.startswith(_STUDIES):
            if shlex.join(rest) in self.done.studies:
                return
            self.done.studies.add(shlex.join(rest))
        _make_way(rest)
        match Path(program).name:
            case "pardalis":
                self._pardalis(rest)
            case "make":
                self._make(rest)
            case "torchrun":
                self._torchrun(rest)
            case name:
                _CHECKED[name](rest)
        for option, path in pairwise(rest):
            if option in ("-o", "--output", "--out") and program.endswith("pardalis"):
                assert Path(path).exists(), f"{path} was not written"

    def _serve(self, rest: Sequence[str]) -> None:
        """Start a server, on a free port in the place of the one that is written."""
        self.close()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
        self.server = subprocess.Popen(
            [sys.executable, "-m", "pardalis", *rest, "--port", "0"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.server.stdout is not None
        line = self.server.stdout.readline()
        found = re.search(r"http://127.0.0.1:\d+", line)
        assert found, line
        self.url = found[0]
        self.printed = line.replace(self.url, _URL)

    def _api_error(self, shown: Mapping[str, Any]) -> None:
        """Send a request that gets this error."""
        body = {"model": "quickstart", "messages": [{"role": "user", "content": "owl"}]}
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions",
            json.dumps({**body, shown["error"]["param"]: -1.0}).encode(),
            {"Content-Type": "application/json"},
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert json.load(refused.value) == shown

    def _pardalis(self, rest: Sequence[str]) -> None:
        if rest[0] == "serve" or rest[:2] == ["study", "serve"]:
            self._serve(rest)
            return
        if rest[0] == "evaluate" and not {
            "--tasks",
            "--infill",
            "compare",
            "tasks",
            "pair-net",
        } & set(rest):
            rest = [*rest, *_FEW]
        is_shared = rest[0] == "run" and not set(rest[2:]) - {"--with-parents"}
        is_shared = is_shared and Path(rest[1]).parent == Path("recipes")
        if is_shared:
            self.done.bring(Path(rest[1]))
        code, self.printed, said = _called(rest)
        assert code == 0, f"exit code {code}: {said.strip() or self.printed}"
        if is_shared:
            self.done.keep(Path(rest[1]))

    def _torchrun(self, rest: Sequence[str]) -> None:
        """Run whole runs in processes; of other commands, and on more machines, check the words."""
        asked = parse_args(rest)
        ours, is_here = asked.training_script_args, asked.nnodes == "1:1"
        if is_here and ours[0] == "run":
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
            done = subprocess.run(
                [sys.executable, "-m", "torch.distributed.run", *rest],
                env=environment, capture_output=True, text=True, timeout=_TORCHRUN_S, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        elif is_here:
            self._pardalis(ours)
        else:
            assert _parses(ours), ours

    def _make(self, rest: Sequence[str]) -> None:
        """Let make say what it would do; CI does it, and what is ours of it has to parse."""
        done = subprocess.run(
            ["make", "-n", "-C", str(ROOT), *rest], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        for line in done.stdout.splitlines():
            if line.startswith(".venv/bin/pardalis"):
                assert _parses(arguments(line)[1:]), line

    def _inline(self, text: str) -> None:
        """Run a command of a sentence if it is whole; else its words and options have to exist."""
        argv = arguments(text) if "..." not in text else text.split()
        if not text.startswith("pardalis") or _parses(argv[1:]):
            self.command(text)
        else:
            _names_exist(argv[1:])

    # ── TOML and JSON ────────────────────────────────────────────────────────────────────────────

    def _toml(self, text: str) -> None:
        """Run a whole recipe, as the file of its name; load a part of one inside a whole one.

        A task is written where commands look for it.
        """
        values = tomllib.loads(text)
        if {"kind", "data"} <= values.keys():
            Path("my_task.toml").write_text(text)
            load_task(Path("my_task.toml"))
            return
        if "name" not in values:
            _load_part(values)
            if "image_tokenizer_from" in values:  # it takes the place of a stage
                self._pardalis(["run", "part.toml"])
            return
        for source in [*values.get("sources", ()), *values.get("heldout", ())]:
            _bring(source["reader"], Path(source["path"]))
        path = Path(f"{values['name']}.toml")
        path.write_text(text)
        if not {"image_tokenizer", "image_tokenizer_from", "start_from"} & values.keys():
            path.write_text(tomli_w.dumps(_merged(_quickstart(), values)))
        self._pardalis(["run", str(path)])

    def _yaml(self, text: str) -> None:
        """Read applications of Ray Serve, or a container of Kubernetes."""
        values = yaml.safe_load(text)
        for application in values.get("applications", ()):
            Path("serve.yaml").write_text(text)
            module, _, name = application["import_path"].partition(":")
            assert callable(getattr(importlib.import_module(module), name))
            from_dict(RayConfig, application["args"])
        for container in values.get("containers", ()):
            assert _parses(["serve", "/model", *container["args"]])
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert container[kind]["httpGet"]["path"] in ("/health", "/ready")

    def _json(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Read lines with what reads them: documents, prompts of a file, or their answers."""
        if all({"segments", "task"} & line.keys() for line in lines):
            Path("shown.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            documents = list(read_jsonl(Path("shown.jsonl")))
            assert len(documents) == len(lines)
            for document in documents:
                for image in document.images:
                    open_image(image.source)
        elif all(layout_of(line) not in ("", "jsonl", "pairs") for line in lines):
            _converse(lines)
        elif all("chosen" in line for line in lines):
            Path("pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            pairs = list(read_pairs(Path("pairs.jsonl")))
            assert [type(item) for item in pairs] == [Document] * 2 * len(lines)
        elif all("error" in line for line in lines):
            _, printed, _ = _called(["show", "bundle", "none", "--json"])
            assert [json.loads(printed)] == lines
        elif all("index" in line for line in lines):
            wanted = {frozenset(line) for line in lines}
            assert wanted <= {frozenset(record) for record in _answers()}
        elif all("choices" in line for line in lines):
            Path("questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        elif all({"continuation", "answers"} & line.keys() for line in lines):
            text = "".join(json.dumps(line) + "\n" for line in lines)
            name = "continuations" if "continuation" in lines[0] else "questions"
            Path(f"{name}.jsonl").write_text(text)
            self._pardalis(["score", "BUNDLE", f"{name}.jsonl"])
        else:
            assert all("prompt" in line for line in lines), "nothing reads such lines"
            Path("prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            has_masks = any(is_mask(part) for line in lines for part in line["prompt"])
            bundle, out = ("runs/cm3", "of-masks") if has_masks else ("BUNDLE", "of-lines")
            self._pardalis(["generate", bundle, "--prompts", "prompts.jsonl", "--out", out])


_BROUGHT = {
    "folder": "photos", "html": "manual", "jsonl": "unseen.jsonl", "chat": "conversations",
}  # fmt: skip


def _converse(lines: Sequence[Mapping[str, Any]]) -> None:
    """Read conversations with the reader whose layout they have, among the images of a folder."""
    [reader] = {layout_of(line) for line in lines}
    path = Path("conversations", "shown.jsonl")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    try:
        items = list(READERS[reader](path))
        assert [type(item) for item in items] == [Document] * len(lines), items
    finally:
        path.unlink()


def _bring(reader: str, path: Path) -> None:
    """Write documents where a recipe expects a reader's own, if nothing lies there."""
    if not path.exists():
        path.symlink_to(_BROUGHT[reader])


def _called(rest: Sequence[str]) -> tuple[int, str, str]:
    """Run ``pardalis`` in this process; returns the exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    short = contextlib.nullcontext() if rest[0] in _DOES_NOT_TRAIN else short_runs()
    said = patch.object(sys, "stdin", io.StringIO("Rocket?\n"))  # to ``pardalis chat``
    with short, said, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(rest)
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


def _make_way(rest: Sequence[str]) -> None:
    """Remove the stand-in of a word such as BUNDLE where a command is to write it."""
    for option, path in pairwise(rest):
        is_stand_in = Path(path).is_symlink() or rest[0] == "init"  # a recipe stands there already
        if option in ("-o", "--out") and is_stand_in:
            Path(path).unlink(missing_ok=True)


def _check_container(rest: Sequence[str]) -> None:
    """Check what a command of docker names: arguments of the Containerfile, options of ours."""
    text = (ROOT / "Containerfile").read_text()
    if rest[0] == "build":
        assert rest[rest.index("-f") + 1] == "Containerfile"
        for option, value in pairwise(rest):
            if option == "--build-arg":
                assert f"ARG {value.partition('=')[0]}=" in text, value
    else:
        assert _parses(["serve", "/model", *rest[rest.index("pardalis") + 1 :]]), rest


def _check_config_of_ray(rest: Sequence[str]) -> None:
    """Check that Ray gets a file; tests/serve/test_ray.py runs it."""
    assert rest[0] == "run"
    assert Path(rest[1]).is_file()


def _check_proxy(text: str) -> None:
    """Check that a proxy sends requests where a server listens, and lets them and streams pass."""
    assert re.findall(r"127\.0\.0\.1:(\d+)", text)[0] == str(ServeConfig().port)
    assert re.search(r"proxy_buffering off|flush_interval -1", text)
    for size in re.findall(r"client_max_body_size (\d+)m", text):
        assert int(size) >= ServeConfig().max_body_mib
    assert text.count("{") == text.count("}")


class _Parsed(Exception):
    """A script has read its arguments."""


def _parse_script(rest: Sequence[str]) -> None:
    """Let a script of the repository read its arguments, and no more; of a module, find it."""
    import argparse

    read = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *given: Any) -> None:
        read(parser, *given)
        raise _Parsed

    script, *argv = rest
    if script == "-m":  # a module, whose extra may not be installed
        assert importlib.util.find_spec(argv[0]) is not None
        return
    folder = str((ROOT / script).parent)
    with (
        patch.object(argparse.ArgumentParser, "parse_args", stop),
        patch.object(sys, "argv", [script, *argv]),
        patch.object(sys, "path", [folder, *sys.path]),
        contextlib.suppress(_Parsed),
    ):
        runpy.run_path(str(ROOT / script), run_name="__main__")
        raise AssertionError(f"{script} reads no arguments")


def _extras_exist(rest: Sequence[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name in re.findall(r"\[([\w,]+)\]", " ".join(rest)):
        assert name in extras["optional-dependencies"], name


_CHECKED = {
    "docker": _check_container, "pip": _extras_exist, "python": _parse_script,
    "serve": _check_config_of_ray,
}  # fmt: skip


def _parses(argv: Sequence[str]) -> bool:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            build_parser().parse_args(argv)
        except SystemExit:
            return False
    return True


def _names_exist(argv: Sequence[str]) -> None:
    """Check the words and options of a command that leaves out what a reader has to give."""
    words = []
    for word in argv:
        if not re.fullmatch(r"[a-z-]+", word) or word.startswith("-"):
            break
        words.append(word)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        build_parser().parse_args([*words, "--help"])
    assert "usage: pardalis " + " ".join(words) in out.getvalue(), f"no command {words}"
    for option in argv:
        if option.startswith("-"):
            assert option in out.getvalue(), f"{words} has no option {option}"


def _answers() -> list[Mapping[str, Any]]:
    """Return records of answers, one of an answer and one of an error, from a file of prompts."""
    Path("some.jsonl").write_text('{"prompt": "rocket"}\n{"prompt": {"image": "none.png"}}\n')
    _called(
        ["generate", "BUNDLE", "--prompts", "some.jsonl", "--out", "records", "--mode", "image"]
    )
    return [
        json.loads(line) for line in next(Path("records").glob("*.jsonl")).read_text().splitlines()
    ]


def _quickstart() -> dict[str, Any]:
    """Return the quickstart's recipe with images in a folder in place of its corpus."""
    values = tomllib.loads(QUICKSTART.read_text())
    del values["corpus"], values["evaluation"], values["heldout"]
    return values | {"sources": [{"name": "photos", "reader": "folder", "path": "photos"}]}


def _load_part(values: Mapping[str, Any]) -> None:
    """Load a part of a recipe inside the first whole one that can hold it."""
    bases = [_quickstart()]
    bases.append({k: v for k, v in bases[0].items() if not k.startswith("image_tokenizer")})
    bases.append({k: v for k, v in bases[1].items() if k not in ("text_tokenizer", "model")})
    others = sorted((ROOT / "recipes").glob("*.toml"))
    bases += [tomllib.loads(path.read_text()) for path in others]
    said = []
    for base in bases:
        Path("part.toml").write_text(tomli_w.dumps(_merged(base, {"name": "part", **values})))
        try:
            load_recipe(Path("part.toml"))
            return
        except ConfigError as error:
            said.append(f"{base['name']}: {error}")
    raise AssertionError("No recipe can hold this part:\n" + "\n".join(said))


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return tables with others laid over them, at any depth; lists are replaced."""
    merged = dict(base)
    for name, value in changes.items():
        is_table = isinstance(value, dict) and isinstance(base.get(name), dict)
        merged[name] = _merged(base[name], value) if is_table else value
    return merged
