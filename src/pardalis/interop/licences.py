"""Licences of imported weights, which are copied into the bundle."""

import re
from pathlib import Path

from pardalis.bundle import LICENCES
from pardalis.errors import BundleError
from pardalis.files import read_bytes, with_line_feeds

_PATTERNS = ("LICENSE*", "LICENCE*", "USE_POLICY*", "NOTICE*")
_MOST_BYTES = 1 << 24  # of a text; the longest licences have a thousandth of that
_CARD = "README.md"
_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)\n---[ \t]*(?:\n|$)", re.DOTALL)
# A key of the front matter with its value, which may continue on indented lines.
_TERMS = re.compile(r"^license(?:_name|_link)?:.*(?:\n[ \t-].*)*", re.MULTILINE)


def licences_of(*folders: Path) -> str:
    """Return the licence texts in folders as one Markdown text, or a note that there are none.

    Without a licence file, the licence fields of the model card are quoted. The ``LICENCES.md`` of
    a folder that Pardalis exported is such a text already and is copied unchanged.
    """
    found = {p for f in folders for pattern in _PATTERNS for p in f.glob(pattern) if p.is_file()}
    carried = [_read(path).strip() + "\n" for path in sorted(found) if path.name == LICENCES]
    texts = [
        f"## {path.name}\n\n{_read(path).strip()}\n"
        for path in sorted(found)
        if path.name != LICENCES
    ]
    heading = f"# Weights imported from {_name(folders[0].resolve())}\n"
    if not found:
        texts = [f"The folder holds no licence file. {_card(folders)}\n"]
    return "\n".join([*(carried or [heading]), *texts])


def _card(folders: tuple[Path, ...]) -> str:
    for path in (folder / _CARD for folder in folders):
        matter = _FRONT_MATTER.match(_read(path)) if path.is_file() else None
        if matter and (terms := _TERMS.findall(matter[1])):
            quoted = "\n".join(f"    {line}" for line in "\n".join(terms).splitlines())
            return f"Its {_CARD} says:\n\n{quoted}"
    return "The terms of the weights are those of their source."


def _name(folder: Path) -> str:
    """Return a folder's name, or the model's name in the cache of the Hugging Face hub."""
    repository = folder.parent.parent.name
    if re.fullmatch("[0-9a-f]{40}", folder.name) and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return folder.name


def _read(path: Path) -> str:
    try:
        text = read_bytes(path, _MOST_BYTES).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}); copy it again, or remove it."
        ) from error
    return with_line_feeds(text)
