"""The terms of imported weights, which go with them."""

import re
from pathlib import Path

from pardalis.bundle import LICENCES

_PATTERNS = ("LICENSE*", "LICENCE*", "USE_POLICY*", "NOTICE*")
_CARD = "README.md"
_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)\n---[ \t]*(?:\n|$)", re.DOTALL)
# A line of the front matter, with those of a list or a longer text below it.
_TERMS = re.compile(r"^license(?:_name|_link)?:.*(?:\n[ \t-].*)*", re.MULTILINE)


def licences_of(*folders: Path) -> str:
    """Return the licence texts that lie in folders as one Markdown text, or say that none does.

    Where there is none, what the model card says of the licence is quoted. The ``LICENCES.md`` of a
    folder that was exported here is such a text already, and stays as it is.
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
        texts = [f"No licence lay beside them. {_card(folders)}\n"]
    return "\n".join([*(carried or [heading]), *texts])


def _card(folders: tuple[Path, ...]) -> str:
    for path in (folder / _CARD for folder in folders):
        matter = _FRONT_MATTER.match(_read(path)) if path.is_file() else None
        if matter and (terms := _TERMS.findall(matter[1])):
            quoted = "\n".join(f"    {line}" for line in "\n".join(terms).splitlines())
            return f"{_CARD} there says:\n\n{quoted}"
    return "Their terms are those of their source."


def _name(folder: Path) -> str:
    """Return a folder's name; in the cache of Hugging Face's hub, that of the model."""
    repository = folder.parent.parent.name
    if re.fullmatch("[0-9a-f]{40}", folder.name) and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return folder.name


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig", errors="replace")
