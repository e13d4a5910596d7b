"""The files of a source that are content: in order, none twice, and none outside its folder."""

import os
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from pardalis.documents.document import Rejection
from pardalis.documents.readers._lines import is_inside, outside
from pardalis.files import pointer_in

# What tools leave in folders that they show, copy or edit. All hidden files are left out, too.
_CLUTTER = frozenset((
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "__macosx",
    "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__",
    "picasa.ini", "folder.dtd", "#recycle", "node_modules",
))  # fmt: skip
_CLUTTER_ENDS = ("~", ".tmp", ".part", ".partial", ".crdownload", ".download", ".swp", ".lock")
_CACHED_FOLDERS = 64

Item = TypeVar("Item")


class Folder(NamedTuple):
    """A folder below the root of a source, and the names of its files that are wanted, sorted."""

    path: Path
    names: list[str]


def is_clutter(name: str) -> bool:
    """Whether a file or folder of this name was left behind by a tool, and is no content."""
    lower = name.lower()
    is_edited = lower.startswith("#") and lower.endswith("#")  # by Emacs
    starts = lower.startswith((".", "~$"))
    return starts or is_edited or lower in _CLUTTER or lower.endswith(_CLUTTER_ENDS)


def walk(
    root: Path,
    wanted: Callable[[str], bool],
    entered: Callable[[str, Container[str]], bool] = lambda name, beside: True,
) -> Iterator[Folder | Rejection]:
    """Yield a folder and all below it, the first ones first.

    Links are followed inside the root, but no folder comes twice: links may lead back to it.

    Args:
        wanted: whether a file of this name is of use to the reader.
        entered: whether a folder of this name is, given all names beside it.
    """
    seen: set[tuple[int, int]] = set()
    rest: list[Path] = [root]
    while rest:
        folder = rest.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            reason = f"The folder cannot be read: {error.strerror}."
            yield Rejection(str(folder), "unreadable-folder", reason)
            continue
        names: list[str] = []
        below: list[Path] = []
        beside = {entry.name for entry in entries}
        for entry in entries:
            if is_clutter(entry.name):
                continue
            path = folder / entry.name
            is_folder = os.path.isdir(path)
            if not (entered(entry.name, beside) if is_folder else wanted(entry.name)):
                continue
            if entry.is_symlink() and not (os.path.exists(path) and is_inside(path, root)):
                yield _outside(path, root)
            elif is_folder:
                below.append(path)
            else:
                names.append(entry.name)
        yield Folder(folder, names)
        rest += reversed(below)


def _outside(path: Path, root: Path) -> Rejection:
    if not os.path.exists(path):
        return Rejection(str(path), "missing-file", "It is a link to what does not exist.")
    reason = f"It is a link to {os.path.realpath(path)[:200]!r}, {outside(root)}."
    return Rejection(str(path), "outside-link", reason)


def files_below(
    path: Path,
    suffixes: Iterable[str],
    entered: Callable[[str, Container[str]], bool] = lambda name, beside: True,
) -> Iterator[Path | Rejection]:
    """Yield a file, or all files of a folder and below whose names end so, sorted by folder."""
    ends = tuple(suffixes)
    return files_where(path, lambda name: name.lower().endswith(ends), entered)


def files_where(
    path: Path,
    wanted: Callable[[str], bool],
    entered: Callable[[str, Container[str]], bool] = lambda name, beside: True,
) -> Iterator[Path | Rejection]:
    """Yield a file, or all files of a folder and below of whose names this holds."""
    if not path.is_dir():
        yield path
        return
    for found in walk(path, wanted, entered):
        if isinstance(found, Rejection):
            yield found
        else:
            yield from (found.path / name for name in found.names)


def of_files(
    path: Path, files: Iterable[Path | Rejection], read: Callable[[Path, Path], Iterator[Item]]
) -> Iterator[Item | Rejection]:
    """Yield what is read of each file of a source, and what was rejected among them, in order.

    Args:
        path: the source, a file or a folder.
        files: such as those of :func:`files_below`.
        read: yields the items of a file, given the folder of the source, too.
    """
    root = path if path.is_dir() else path.parent
    for file in files:
        if isinstance(file, Rejection):
            yield file
        elif pointer := pointer_in(file):
            yield of_pointer(file, pointer)
        else:
            yield from read(file, root)


def of_pointer(file: Path, pointer: str) -> Rejection:
    """Return what tells of a file in whose place there is a pointer to it."""
    return Rejection(str(file), "pointer", f"It is {pointer}.")


class Names:
    """Finds names as those who see them would: the same letters, whatever the bytes.

    A name may be composed on one system and decomposed on another, and differ in case where that
    leaves no doubt.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._exact = {name: name for name in names}
        self._composed = {_composed(name): name for name in self._exact}
        folded: dict[str, str] = {}
        doubtful: set[str] = set()
        for name in self._composed:
            if folded.setdefault(name.casefold(), self._composed[name]) != self._composed[name]:
                doubtful.add(name.casefold())
        self._folded = {key: name for key, name in folded.items() if key not in doubtful}

    def find(self, name: str) -> str | None:
        tables: tuple[tuple[Mapping[str, str], str], ...] = (
            (self._exact, name),
            (self._composed, _composed(name)),
            (self._folded, _composed(name).casefold()),
        )
        return next((table[key] for table, key in tables if key in table), None)


def find_below(folder: Path, name: str) -> Path | None:
    """Return the file that a list of a folder names, by a path with slashes or backslashes."""
    for written in dict.fromkeys((name, name.replace("\\", "/"))):
        if os.path.isfile(folder / written):
            return folder / written
        place: Path | None = folder
        for part in written.split("/"):
            if part in ("", "."):
                continue
            found = ".." if part == ".." else place and _names_of(place, _changed(place)).find(part)
            place = place / found if place and found else None
        if place is not None and os.path.isfile(place):
            return place
    return None


@lru_cache(maxsize=_CACHED_FOLDERS)
def _names_of(folder: Path, changed: int) -> Names:
    try:
        return Names(os.listdir(folder))
    except (OSError, ValueError):
        return Names(())


def _changed(folder: Path) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except (OSError, ValueError):
        return 0


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
