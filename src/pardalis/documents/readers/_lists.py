"""Lists of captions: which files are such lists, their entries, and where their images lie.

    metadata.jsonl, captions.csv, ...   as Hugging Face's "imagefolder" has them
    captions_train2017.json             of COCO: {"images": [...], "annotations": [...]}
    captions.txt                        of Flickr8k: a table with the header image,caption
    Flickr8k.token.txt                  of Flickr8k and Flickr30k: owl.jpg#0 <tab> an owl

An entry is a table that has a caption under one of :data:`TEXT_NAMES` and the image under one of
:data:`IMAGE_NAMES`.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from pardalis.documents.document import Rejection
from pardalis.documents.readers._columns import IMAGE_NAMES, TEXT_NAMES
from pardalis.documents.readers._packed import opened
from pardalis.documents.readers._records import items_of
from pardalis.documents.readers._tables import read_rows
from pardalis.documents.readers._text import read_decoded, text_lines
from pardalis.documents.readers._walk import is_clutter
from pardalis.files import check_depth, pointer_in

CAPTION_LISTS = (
    "captions.jsonl", "metadata.jsonl", "captions.csv", "metadata.csv", "captions.tsv",
    "metadata.tsv", "metadata.parquet",
)  # fmt: skip

_COCO = re.compile(r"captions_(.*)\.json", re.IGNORECASE)
_TEXTS = re.compile(r"captions\.txt|.*\.token(?:\.txt)?", re.IGNORECASE)
_TOKEN = re.compile(r"(.*\S)#\d+\t(.*)", re.DOTALL)
_COCO_BEGINS = re.compile(
    rb"""\A[^{]{0,9}\{.*?"(?:images|annotations|info)"\s*:\s*[\[{]""", re.DOTALL
)
_PEEKED = 1 << 16  # bytes
_MOST_FOLDERS = 32  # in which the images of a list are looked for

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n\ufeff]*")

Where: TypeAlias = str  # the list and the line, or the number of the entry
Entry: TypeAlias = tuple[Where, Mapping[str, Any]]


def may_be_list(name: str) -> bool:
    """Whether a file of this name is a list of captions, or one if its beginning says so, too."""
    return name.lower() in CAPTION_LISTS or bool(_COCO.fullmatch(name) or _TEXTS.fullmatch(name))


def is_list(path: Path) -> bool:
    """Whether a file is a list of captions, or a pointer to one."""
    return may_be_list(path.name) and (_reading_of(path) is not None or bool(pointer_in(path)))


def entries(path: Path) -> Iterator[Entry | Rejection]:
    """Yield the entries of a list, and what cannot be read of it."""
    read = _reading_of(path)
    return read(path) if read is not None else iter(())


def _reading_of(path: Path) -> Callable[[Path], Iterator[Entry | Rejection]] | None:
    name = path.name.lower()
    if name in CAPTION_LISTS:
        return _of_records if name.endswith((".jsonl", ".parquet")) else _of_table
    try:
        if _COCO.fullmatch(name):
            with opened(path) as file:
                return _of_coco if _COCO_BEGINS.search(file.read(_PEEKED)) else None
        line = str(next(text_lines(path), "")).strip("\ufeff \r\n")
    except (OSError, ValueError):
        return None
    if _TOKEN.fullmatch(line):
        return _of_tokens
    names = {name.strip().casefold() for name in re.split(r"[,\t;|]", line)}
    is_header = names.intersection(TEXT_NAMES) and names.intersection(IMAGE_NAMES)
    return _of_table if is_header else None


def image_folders(path: Path, root: Path) -> list[Path]:
    """Return the folders that the images of a list may be named in, the likeliest first.

    The datasets of research keep their lists apart: ``annotations`` beside ``train2017``.
    """
    own = path.parent
    if path.name.lower() in CAPTION_LISTS:
        return [own]
    above = [own.parent] if own != root else []
    beside = [place for each in (own, *above) for place in _subfolders(each) if place != own]
    split = found[1].lower() if (found := _COCO.fullmatch(path.name)) else ""
    return sorted([own, *above, *beside], key=lambda each: each.name.lower() != split)[
        :_MOST_FOLDERS
    ]


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as found:
            return sorted(Path(e.path) for e in found if e.is_dir() and not is_clutter(e.name))
    except OSError:  # which the search for files tells
        return []


def _of_records(path: Path) -> Iterator[Entry | Rejection]:
    return items_of(path, lambda record, number: (f"{path}:{number}", record))


def _of_table(path: Path) -> Iterator[Entry | Rejection]:
    for row in read_rows(path):
        yield row if isinstance(row, Rejection) else (f"{path}:{row[0]}", row[1])


def _of_tokens(path: Path) -> Iterator[Entry | Rejection]:
    try:
        for number, line in enumerate(text_lines(path), start=1):
            where = f"{path}:{number}"
            if isinstance(line, ValueError):
                yield Rejection(where, "bad-record", f"The line is no text: {line}.")
            elif found := _TOKEN.fullmatch(line.strip("\ufeff \r\n")):
                yield where, {"image": found[1], "caption": found[2]}
            elif line.strip():
                reason = "The line needs the name of an image, #, a number, a tab and a caption."
                yield Rejection(where, "bad-record", reason)
    except ValueError as error:
        yield Rejection(str(path), "long-line", f"The file cannot be read further: {error}.")
    except OSError as error:
        yield Rejection(str(path), "unreadable-file", f"The file cannot be read: {error}.")


def _of_coco(path: Path) -> Iterator[Entry | Rejection]:
    """Yield an entry for each annotation; of the file the text is in memory, and the names."""
    names: dict[int | str, Any] = {}
    try:
        text = read_decoded(path).text
        for image in _items(text, "images"):
            if isinstance(image, dict) and isinstance(number := image.get("id"), int | str):
                names[number] = image.get("file_name")
        for count, each in enumerate(_items(text, "annotations"), start=1):
            where = f"{path}:{count}"
            key = each.get("image_id") if isinstance(each, dict) else None
            if isinstance(key, int | str) and key in names:
                yield where, {"file_name": names[key], "caption": each.get("caption")}
            else:
                reason = 'The annotation needs under "image_id" the "id" of one of the images.'
                yield Rejection(where, "bad-record", reason)
    except (OSError, ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        reason = f"The file is no list of captions in the layout of COCO: {why}."
        yield Rejection(str(path), "bad-json", reason)


def _items(text: str, name: str) -> Iterator[Any]:
    """Yield the items of a list in a JSON object, one in memory at a time; raises ValueError."""
    at = _after(text, 0, "{")
    while True:
        key, at = _value(text, at)
        at = _after(text, at, ":")
        if key == name and text[at : at + 1] == "[":
            break
        _, at = _value(text, at)
        if text[at : at + 1] != ",":
            raise ValueError(f'it has no list under "{name}"')
        at = _after(text, at, ",")
    at = _after(text, at, "[")
    while text[at : at + 1] != "]":
        item, at = _value(text, at)
        yield item
        if text[at : at + 1] != "]":
            at = _after(text, at, ",")


def _value(text: str, at: int) -> tuple[Any, int]:
    value, end = _DECODER.raw_decode(text, at)
    check_depth(value)
    return value, _skipped(text, end)


def _after(text: str, at: int, sign: str) -> int:
    at = _skipped(text, at)
    if text[at : at + 1] != sign:
        raise ValueError(f"{sign!r} is missing at character {at:,}")
    return _skipped(text, at + 1)


def _skipped(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def place_of(name: str, folders: Iterable[Path]) -> Path | None:
    """Return the first of several folders that has a file of this name; None: none has."""
    return next((each for each in folders if os.path.isfile(each / name)), None)
