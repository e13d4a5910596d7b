"""What a folder of documents holds: which readers read it, and what they find.

The names of all files are listed. Documents are read as a run will read them, up to a number of
each source, and a sample of their images is decoded.
"""

import logging
import os
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from pardalis.data import placed
from pardalis.data.source import read_part
from pardalis.documents import READERS, Document, Image, Omission, Rejection, open_image, reader_of
from pardalis.documents.readers import is_clutter
from pardalis.documents.readers._lists import CAPTION_LISTS, image_folders, is_list, may_be_list
from pardalis.documents.readers.folder import CAPTION_SUFFIXES, image_suffixes
from pardalis.documents.readers.html import PAGE_SUFFIXES, is_page
from pardalis.errors import ConfigError, DataError
from pardalis.files import found_at

logger = logging.getLogger(__name__)

_MOST_READ = 20_000  # documents of a source; a larger one is known by these
_MOST_SOURCES = 8  # above this many folders, one source reads all of a kind
_SAMPLED_IMAGES = 40
_SAMPLED_TEXT = 2_000_000  # characters
_PEEKED_LINES = 20  # of a JSONL file, which tell what it holds
_PEEKED_LISTS = 20  # JSON files that are looked into: a list of conversations is one large file
_LARGEST_LIST = 2**28  # bytes of a JSON file that is looked into, which is read whole
_CONVERSATIONS = ("chat", "sharegpt", "cauldron")
# Readers of folders that take all files of a suffix, whatever stands in them.
# What a site repeats, such as arrows and "Next", is no content; a few pages may repeat by chance.
_SITE_PAGES = 20
_REPEATED = 0.5  # share of the pages
_OF_SUFFIX = ("mhtml", "epub", "csv", "pdf", "markdown", "text", "webdataset")
_OF_RECORDS = (".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zip", ".parquet", ".arrow")
_SPLIT = re.compile(
    r"(train|test|validation|valid|val|dev|eval)\b"
)  # of a dataset, in a file's name
# Files about the others.
_ABOUT = frozenset((
    "readme", "license", "licence", "copying", "notice", "changelog", "contributing", "authors",
    "requirements", "citation", "todo",
))  # fmt: skip
# What belongs to the pages beside it.
_WEB_SUFFIXES = frozenset((".css", ".js", ".svg", ".svgz", ".ico", ".woff", ".woff2", ".map"))
_SHOWN_SUFFIXES = 5
_LONGEST_NAME = 40  # characters
_HELD_OUT_WORDS = ("heldout", "test", "validation", "valid", "val", "dev", "eval")


@dataclass(slots=True)
class FoundSource:
    """A source, and what its first ``_MOST_READ`` documents are."""

    name: str
    reader: str
    path: Path
    is_heldout: bool = False  # its name says that it is for evaluation
    options: dict[str, Any] = field(default_factory=dict)  # of the reader
    n_documents: int = 0
    n_pairs: int = 0  # documents of one text and one image
    n_interleaved: int = 0  # documents of a text that images follow, and more
    n_images: int = 0
    n_characters: int = 0
    is_cut: bool = False  # there are more documents
    rejected: Counter[str] = field(default_factory=Counter)  # by kind
    first_rejection: Rejection | None = None
    places: list[float] = field(default_factory=list)  # of its documents, for the held-out part
    lengths: list[tuple[int, int]] = field(default_factory=list)  # images and characters of each

    def add(self, document: Document, place: float) -> None:
        n_images, n_characters = len(document.images), len(document.text)
        self.n_documents += 1
        self.n_images += n_images
        self.n_characters += n_characters
        self.places.append(place)
        self.lengths.append((n_images, n_characters))
        is_pair = len(document.segments) == 2 and n_images == 1
        has_roles = any(segment.role for segment in document.segments)
        self.n_pairs += is_pair and not has_roles
        self.n_interleaved += not is_pair and n_images > 0 and n_characters > 0


@dataclass(frozen=True, slots=True)
class Found:
    """All that is known of a folder before a recipe is chosen."""

    folder: Path
    sources: list[FoundSource]
    text: list[str]  # a sample of the texts
    images: list[Image]  # a sample of the images that can be decoded
    sides: list[tuple[int, int]]  # their widths and heights, in pixels
    n_different_images: int
    n_sampled: int  # images that were tried
    decode_s: float  # mean time to decode an image
    notes: list[str]  # what is not read, and why

    @property
    def n_undecodable(self) -> int:
        """Images of the sample that cannot be decoded."""
        return self.n_sampled - len(self.images)

    @property
    def n_images(self) -> int:
        return sum(source.n_images for source in self.sources)

    @property
    def n_characters(self) -> int:
        return sum(source.n_characters for source in self.sources)

    @property
    def n_documents(self) -> int:
        return sum(source.n_documents for source in self.sources)

    @property
    def median_side(self) -> int:
        """The median of the shorter sides of images, in pixels."""
        return round(median(min(sides) for sides in self.sides))

    @property
    def training(self) -> list[FoundSource]:
        return [source for source in self.sources if not source.is_heldout]


def look(folder: Path) -> Found:
    """Find the sources of a folder, and read them.

    Raises:
        DataError: the folder does not exist or is a file, nothing in it can be read, there is no
            image, or none of a sample of the images can be decoded.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder} {found_at(folder)}; `folder` must be a folder that holds documents."
        )
    files = _Files.of(folder)
    sources = list(_sources(files))
    notes = list(_unread(files, sources))
    if not sources:
        raise _nothing(files, notes)
    texts, images = _read(sources)
    kept = [source for source in sources if source.n_documents]
    notes += _bare(files, sources, images)
    notes += [
        f"{_shown(source.path, folder)} has no usable document, and is left out: "
        f"{_why_none(source)}"
        for source in sources
        if not source.n_documents
    ]
    notes += [
        f"The first that is left out of {_shown(source.path, folder)}, {_first_rejection(source)}"
        for source in kept
        if source.first_rejection
    ]
    if not any(not source.is_heldout for source in kept):
        raise DataError(
            f"Nothing in {folder} can be used: {' '.join(notes) or 'its documents are empty.'}"
        )
    if not images:
        raise DataError(
            f"The documents in {folder} hold no image, and a model of text and images needs some; "
            "add images with captions, or pages with figures that lie beside them."
        )
    readable, sides, error, decode_s = _decoded(images)
    if not readable:
        raise DataError(
            f"None of {min(len(images), _SAMPLED_IMAGES)} sampled images in {folder} can be "
            f"decoded; the first: {error}"
        )
    return Found(
        folder=folder,
        sources=kept,
        text=texts,
        images=readable,
        sides=sides,
        n_different_images=len(images),
        n_sampled=min(len(images), _SAMPLED_IMAGES),
        decode_s=decode_s,
        notes=notes,
    )


def reader_at(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the reader of what is at a path, by the names and the first lines of files.

    With it come the options that a first recipe gives it there.

    Raises:
        ConfigError: files of several kinds are there, or of none that is read.
        DataError: there is nothing at the path, or a folder cannot be read.
    """
    if not path.exists():
        raise DataError(
            f"{path} does not exist; a file or a folder of documents was expected there."
        )
    options: dict[str, Any] = {}
    if path.is_file():
        readers = [reader_of(path)]
    else:
        files = _Files.of(path)
        options = files.options_of("html", path)
        lists = [_holds(each) for each in (*files.lists, *files.json)[:_PEEKED_LISTS]]
        found = [*files.kinds, *(["folder"] if files.bare and not files.kinds else ()), *lists]
        readers = [*dict.fromkeys(filter(None, found))]
    if len(readers) == 1 and readers[0]:
        return readers[0], options if readers[0] == "html" else {}
    what = " and ".join(map(repr, readers)) if readers and readers[0] else "no known reader"
    raise ConfigError(
        f"reader is missing: what is at {path} is for {what}; name one of {', '.join(READERS)}."
    )


# ── files and sources ────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Files:
    """The files of a folder by what they are."""

    folder: Path
    captioned: Counter[Path] = field(default_factory=Counter)  # images with captions, by folder
    bare: Counter[Path] = field(default_factory=Counter)  # images without, by folder
    listed: Counter[str] = field(default_factory=Counter)  # lists of captions, by suffix
    listing: set[Path] = field(default_factory=set)  # folders of lists of captions
    pages: Counter[Path] = field(default_factory=Counter)
    others: dict[str, Counter[Path]] = field(default_factory=dict)  # of suffixes, by reader
    lists: list[Path] = field(default_factory=list)  # files of records, but no lists of captions
    json: list[Path] = field(default_factory=list)
    suffixes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, folder: Path) -> "_Files":
        found = cls(folder)
        listed: set[Path] = set()  # folders that a list of captions describes, with all below

        def unreadable(error: OSError) -> None:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from error

        folders: list[tuple[Path, list[str]]] = []
        for where, subfolders, names in os.walk(folder, onerror=unreadable):
            here = Path(where)
            subfolders[:] = sorted(name for name in subfolders if not is_clutter(name))
            folders.append((here, sorted(name for name in names if not is_clutter(name))))
            for name in folders[-1][1]:
                if may_be_list(name) and is_list(here / name):
                    listed.update(image_folders(here / name, folder))
        for here, names in folders:
            found._add(here, names, bool(listed.intersection((here, *here.parents))))
        return found

    def _add(self, here: Path, names: Sequence[str], is_listed: bool) -> None:
        ends = (*CAPTION_SUFFIXES, ".json")
        stems = {Path(name).stem for name in names if name.lower().endswith(ends)}
        has_images = any(Path(name).suffix.lower() in image_suffixes() for name in names)
        for name in names:
            path = here / name
            if not os.path.isfile(path):  # a pipe, say, or a link that leads nowhere
                continue
            suffix = path.suffix.lower()
            self.suffixes[suffix] += 1
            if suffix in image_suffixes():
                has_caption = is_listed or path.stem in stems
                (self.captioned if has_caption else self.bare)[here] += 1
            elif is_page(path):
                self.pages[here] += 1
            elif is_list(path):
                self.listing.add(here)
                self.listed[suffix] += 1
            elif suffix == ".txt" and has_images:
                continue
            elif name.lower().endswith(_OF_RECORDS):
                self.lists.append(path)
            elif suffix == ".json":
                self.json.append(path)
            elif path.stem.lower() not in _ABOUT and (reader := reader_of(path)) in _OF_SUFFIX:
                self.others.setdefault(reader, Counter())[here] += 1

    def options_of(self, reader: str, path: Path) -> dict[str, Any]:
        """Return the options of the reader of a folder: what most pages of a site repeat goes."""
        n_pages = sum(n for folder, n in self.pages.items() if folder.is_relative_to(path))
        is_site = reader == "html" and n_pages >= _SITE_PAGES
        return {"repeated": _REPEATED} if is_site else {}

    @property
    def kinds(self) -> dict[str, set[Path]]:
        """The folders that the readers of folders would read, by reader."""
        listing = self.listing if self.captioned else set()
        kinds = {"folder": {*self.captioned, *listing}, "html": {*self.pages}}
        kinds |= {reader: {*folders} for reader, folders in self.others.items()}
        return {reader: folders for reader, folders in kinds.items() if folders}


def _sources(files: _Files) -> Iterator[FoundSource]:
    taken: set[str] = set()
    found: list[tuple[str, Path]] = list(_covering(files.folder, files.kinds))
    if len(found) > _MOST_SOURCES:
        found = [(kind, _common(folders)) for kind, folders in files.kinds.items()]
    of_records = list(_of_records(files))
    if not found and not of_records and files.bare:
        found = [("folder", files.folder)]
    for reader, path, split in (*((reader, path, "") for reader, path in found), *of_records):
        name = _name(path, files.folder, reader, taken, split)
        words = name.lower().replace("_", ".").replace("-", ".").split(".")
        is_heldout = (split or words[-1]) in _HELD_OUT_WORDS
        options: dict[str, Any] = {"split": split} if split else {}
        options |= files.options_of(reader, path)
        may_be = bool(split) or path.is_file()
        yield FoundSource(name, reader, path, may_be and is_heldout, options)


def _of_records(files: _Files) -> Iterator[tuple[str, Path, str]]:
    """Yield the reader, the path and the split of sources of records.

    Files of Parquet and Arrow in a folder are one dataset, or one for each split that their names
    begin with; of other formats each file is a source, unless there are many.
    """
    alone: list[tuple[str, Path]] = []
    datasets: dict[tuple[str, Path], list[Path]] = {}
    for path in files.lists:
        reader = _holds(path)
        if reader in ("", "pairs", *_CONVERSATIONS):
            continue
        if path.suffix.lower() in (".parquet", ".arrow"):
            datasets.setdefault((reader, path.parent), []).append(path)
        else:
            alone.append((reader, path))
    for (reader, folder), paths in datasets.items():
        is_whole = all(each in paths for each in files.lists if each.parent == folder)
        splits = {found[0] if (found := _SPLIT.match(path.name)) else "" for path in paths}
        if not is_whole:
            alone += [(reader, path) for path in paths]
        elif reader == "parquet" and len(splits) > 1 and "" not in splits:
            yield from ((reader, folder, split) for split in sorted(splits, key=_is_heldout))
        else:
            yield reader, folder, ""
    if len(alone) > _MOST_SOURCES:
        by_reader: dict[str, set[Path]] = {}
        for reader, path in alone:
            by_reader.setdefault(reader, set()).add(path.parent)
        alone = [(reader, _common(folders)) for reader, folders in by_reader.items()]
    yield from ((reader, path, "") for reader, path in alone)


def _is_heldout(split: str) -> bool:
    return split in _HELD_OUT_WORDS


def _covering(folder: Path, kinds: dict[str, set[Path]]) -> Iterator[tuple[str, Path]]:
    """Yield for each kind the highest folders below which there is no other kind.

    Where two kinds are in one folder, it is read by both readers.
    """
    inside = {
        kind: {each for each in folders if each.is_relative_to(folder)}
        for kind, folders in kinds.items()
    }
    inside = {kind: folders for kind, folders in inside.items() if folders}
    if len(inside) < 2:
        yield from ((kind, _common(folders)) for kind, folders in inside.items())
        return
    here = [kind for kind, folders in inside.items() if folder in folders]
    yield from ((kind, folder) for kind in here)
    rest = {kind: folders for kind, folders in inside.items() if kind not in here}
    depth = len(folder.parts)
    for name in sorted({each.parts[depth] for folders in rest.values() for each in folders}):
        yield from _covering(folder / name, rest)


def _common(folders: set[Path]) -> Path:
    return Path(os.path.commonpath(folders))


def _name(path: Path, root: Path, reader: str, taken: set[str], split: str = "") -> str:
    """Return a name that a folder may have, from the place of a source; none occurs twice."""
    relative = path.relative_to(root).with_suffix("") if path.is_file() else path.relative_to(root)
    parts = relative.parts or (root.resolve().name,)
    base = name = as_name("-".join((*parts, *([split] if split else []))))
    if name in taken:
        name = (
            f"{base}-{'images' if reader == 'folder' else 'pages' if reader == 'html' else reader}"
        )
    number = 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    taken.add(name)
    return name


def as_name(text: str) -> str:
    """Return a text as the name of a recipe or a source may be."""
    composed = unicodedata.normalize("NFC", text[:_LONGEST_NAME])
    plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in composed)
    return plain.strip("-.") or "documents"


def _holds(path: Path) -> str:
    """Return the reader of a file of records; "" if none reads it."""
    reader = reader_of(path)
    if reader not in READERS or reader == "folder":
        return ""
    first = islice(READERS[reader](path), _PEEKED_LINES)
    return reader if any(isinstance(item, Document) for item in first) else ""


def _unread(files: _Files, sources: Sequence[FoundSource]) -> Iterator[str]:
    """Yield sentences about what no source of the recipe reads."""
    conversations: dict[str, list[Path]] = {}  # by reader
    small = [path for path in files.json if path.stat().st_size <= _LARGEST_LIST]
    for path in small[:_PEEKED_LISTS]:
        if reader := _holds(path):
            conversations.setdefault(reader, []).append(path)
    for path in files.lists:
        match _holds(path):
            case reader if reader in _CONVERSATIONS:
                conversations.setdefault(reader, []).append(path)
            case "pairs":
                yield (
                    f"{_shown(path, files.folder)} holds pairs of completions, which train a "
                    "finished model further (objectives of preference); it is left out."
                )
            case "":
                yield (
                    f"{_shown(path, files.folder)} holds records of a layout that no reader reads; "
                    "it is left out."
                )
    for reader, paths in conversations.items():
        yield _of_conversations(reader, paths, files.folder)
    unread = _unread_suffixes(files, [*conversations.values()])
    if unread and sources:
        yield f"Left out, as files of kinds that are not read: {_counted(unread)}."


def _of_conversations(reader: str, paths: Sequence[Path], folder: Path) -> str:
    """Return what conversations are and what to do with them."""
    path = paths[0] if len(paths) == 1 else _common({path.parent for path in paths})
    return (
        f"{_shown(path, folder)} holds conversations, which train a finished model further and are "
        f"no part of a first recipe; run the recipe 'chat' with start_from = the folder of your "
        f"model, sources.0.reader = {reader!r} and sources.0.path = {str(path.resolve())!r} "
        "(docs/fine-tune.md)."
    )


def _unread_suffixes(files: _Files, used: Sequence[Sequence[Path]]) -> Counter[str]:
    """Count the files that nothing reads, by suffix."""
    read = {
        *image_suffixes(),
        *PAGE_SUFFIXES,
        ".txt",
        *(Path(end).suffix for end in (*_OF_RECORDS, *CAPTION_LISTS, *CAPTION_SUFFIXES)),
        *(suffix for suffix in files.suffixes if reader_of(Path(f"a{suffix}")) in files.others),
        *(_WEB_SUFFIXES if files.pages else ()),
    }
    unread = Counter({s: n for s, n in files.suffixes.items() if s not in read})
    unread[".json"] -= sum(path.suffix.lower() == ".json" for paths in used for path in paths)
    return unread - files.listed


def _bare(files: _Files, sources: Sequence[FoundSource], images: Sequence[Image]) -> Iterator[str]:
    """Yield a sentence about images that are in no document."""
    used = [source.path for source in sources if source.path.is_dir()]
    if not sources or files.pages or files.others or any(source.is_cut for source in sources):
        return
    in_documents = Counter(
        Path(os.path.abspath(image.source)).parent
        for image in images
        if isinstance(image.source, Path)
    )
    n_bare = sum(
        max(0, n - in_documents[Path(os.path.abspath(folder))])
        for folder, n in files.bare.items()
        if not any(folder.is_relative_to(path) for path in used)
    )
    if n_bare:
        yield f"{n_bare:,} images have no caption and are in no document; they are left out."


def _nothing(files: _Files, notes: Sequence[str]) -> DataError:
    found = _counted(files.suffixes)
    what = f"holds {found}, and none of these files can be read" if found else "holds no file"
    return DataError(
        f"{files.folder} {what}; what is read are images with captions beside them, HTML pages "
        "with figures, text, Markdown, tables, PDF, and the layouts of public datasets."
        f"{''.join(f' {note}' for note in notes)}"
    )


def _counted(suffixes: Counter[str]) -> str:
    shown = ", ".join(
        f"{n:,} {suffix or 'without a suffix'}"
        for suffix, n in suffixes.most_common(_SHOWN_SUFFIXES)
    )
    more = len(suffixes) - _SHOWN_SUFFIXES
    return shown + (f" and {more} other kinds" if more > 0 else "")


def _shown(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path != folder else str(folder)


def _why_none(source: FoundSource) -> str:
    if source.first_rejection is None:
        return "it is empty."
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in source.rejected.most_common())
    return f"{kinds}. The first, {_first_rejection(source)}"


def _first_rejection(source: FoundSource) -> str:
    assert source.first_rejection is not None
    return f"{source.first_rejection.where}: {source.first_rejection.reason}"


# ── documents ────────────────────────────────────────────────────────────────────────────────────


def _read(sources: Sequence[FoundSource]) -> tuple[list[str], list[Image]]:
    """Read the documents of sources; return a sample of their texts, and their images."""
    texts: list[str] = []
    images: dict[object, Image] = {}
    n_characters = 0
    for source in sources:
        logger.info("Reading %s with the reader %r.", source.path, source.reader)
        items = placed(read_part(source.path, source.reader, options=source.options))
        for number, (place, item) in enumerate(items):
            if number == _MOST_READ:
                source.is_cut = True
                break
            if isinstance(item, Omission):
                continue
            if isinstance(item, Rejection):
                source.rejected[item.kind] += 1
                source.first_rejection = source.first_rejection or item
                continue
            source.add(item, place)
            for image in item.images:
                images.setdefault(image.source, image)
            if item.text and n_characters < _SAMPLED_TEXT:
                texts.append(item.text)
                n_characters += len(item.text)
    return texts, list(images.values())


def _decoded(
    images: Sequence[Image],
) -> tuple[list[Image], list[tuple[int, int]], str, float]:
    """Decode a sample; return the readable images, their sizes, the first error, and the time."""
    n = min(len(images), _SAMPLED_IMAGES)
    sample = [images[i * len(images) // n] for i in range(n)]
    readable, sides, first_error = [], [], ""
    start = time.perf_counter()
    for image in sample:
        try:
            sides.append(open_image(image.source).size)
        except DataError as error:
            first_error = first_error or str(error)
        else:
            readable.append(image)
    return readable, sides, first_error, (time.perf_counter() - start) / n
