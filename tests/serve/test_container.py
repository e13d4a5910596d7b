"""The Containerfile: what it copies exists, and its commands work on this very server."""

import json
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from pardalis.cli.main import build_parser

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Containerfile with what follows each, in order."""
    text = (ROOT / "Containerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name.upper(), rest.strip()) for name, _, rest in (x.partition(" ") for x in lines)]


def stages() -> list[list[tuple[str, str]]]:
    """Return the instructions of each stage, without those before the first."""
    found: list[list[tuple[str, str]]] = []
    for name, rest in instructions():
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append((name, rest))
    return found


def copied() -> list[str]:
    """Return what is copied from the repository."""
    plain = [rest.split()[:-1] for name, rest in instructions() if name == "COPY"]
    return [source for sources in plain for source in sources if "--from" not in sources[0]]


def only(stage: list[tuple[str, str]], name: str) -> str:
    [rest] = [rest for found, rest in stage if found == name]
    return rest


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a path of the top folder pass: its last line that fits says so."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#") and fnmatch(path, pattern):
            sent = line.startswith("!")
    return sent


def test_what_is_copied_exists_and_is_sent_to_the_builder():
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert is_sent(source), source
    for other in (".venv", ".git", "runs", "tests"):
        assert not is_sent(other)


def test_what_the_package_is_built_from_is_copied():
    project = PROJECT["project"]
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["readme"], *project["license-files"]}
    needed |= {Path(path).parts[0] for path in [*wheel["packages"], *wheel["force-include"]]}
    assert needed <= set(copied())


def test_the_extras_are_those_of_the_package():
    [extras] = [rest.removeprefix("EXTRAS=") for _, rest in instructions() if "EXTRAS=" in rest]
    assert extras == "serve"
    assert any('".[${EXTRAS}]"' in rest for name, rest in instructions() if name == "RUN")
    [shown] = re.findall(r"EXTRAS=(\S+)", (ROOT / "docs" / "serving.md").read_text())
    assert {"serve", "safety", "credentials"} == set(shown.split(","))
    assert set(shown.split(",")) <= PROJECT["project"]["optional-dependencies"].keys()


def test_its_python_is_one_that_the_package_takes():
    [version] = [rest.partition("=")[2] for _, rest in instructions() if rest.startswith("PYTHON=")]
    least = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert tuple(map(int, version.split("."))) >= tuple(map(int, least.split(".")))


def test_the_image_has_a_server_and_no_more():
    build, final = stages()
    command = json.loads(only(final, "ENTRYPOINT"))
    options = build_parser().parse_args(command[1:])
    assert command[:2] == ["pardalis", "serve"]
    assert (options.bundle, options.host) == (Path("/model"), "0.0.0.0")
    assert options.port == int(only(final, "EXPOSE"))
    assert options.device == "cpu"
    more = build_parser().parse_args([*command[1:], "--max-slots", "32", "--device", "cuda"])
    assert (more.max_slots, more.device) == (32, "cuda")  # options follow the name of the image
    assert int(only(final, "USER")) > 0  # not root
    assert any("whl/cpu" in rest for name, rest in build if name == "ARG")
    assert not [rest for name, rest in final if name == "RUN" and re.search(r"\bpip\b|apt", rest)]


@pytest.mark.parametrize("is_ready", [True, False])
def test_the_health_check(server, is_ready):
    [program, *arguments] = json.loads(only(stages()[-1], "HEALTHCHECK").partition("CMD ")[2])
    assert program == "python"
    assert "http://127.0.0.1:8000" in arguments[-1]
    arguments[-1] = arguments[-1].replace("http://127.0.0.1:8000", server.url)
    server.service.accepting = is_ready
    try:
        done = subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    finally:
        server.service.accepting = True
    assert (done.returncode == 0) is is_ready
