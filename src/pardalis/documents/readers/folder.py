"""Documents from a folder of images, each a caption followed by its image.

A caption stands in a text file beside its image (``owl.png`` and ``owl.txt``), or all captions
stand in one ``captions.jsonl`` or ``metadata.jsonl`` (the "imagefolder" shape), whose lines read

    {"file_name": "owl.png", "text": "an owl"}

Such a list describes its folder wholly, subfolders included.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pardalis.documents.document import Document, Image, Rejection, Text, is_unicode
from pardalis.documents.readers._lines import BadRecordError, find_image, read_lines
from pardalis.errors import DataError
from pardalis.files import found_at, read_text, with_line_feeds

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})

CAPTION_LISTS = ("captions.jsonl", "metadata.jsonl")


def read_folder(path: Path) -> Iterator[Document | Rejection]:
    """Yield a document for each image below the folder, sorted, named by its relative path.

    An image without any caption is a document of its own; it still serves to train an image
    tokenizer.

    Raises:
        DataError: there is no such folder.
    """
    if not path.is_dir():
        raise DataError(f"{path} {found_at(path)}; a folder of images was expected there.")
    return _read(path)


def _read(root: Path) -> Iterator[Document | Rejection]:
    """Yield the items of a folder and of all below it, the first ones first.

    Links are followed, but no folder is read twice: links may lead back to it.
    """
    seen: set[tuple[int, int]] = set()
    rest: list[Path | Rejection] = [root]
    while rest:
        folder = rest.pop()
        if isinstance(folder, Rejection):
            yield folder
            continue
        try:
            status = os.stat(folder)
            entries = sorted(folder.iterdir())
        except OSError as error:
            reason = f"The folder cannot be read: {error.strerror}."
            yield Rejection(str(folder), "unreadable-folder", reason)
            continue
        place = status.st_dev, status.st_ino
        if place in seen:
            continue
        seen.add(place)
        lists = [folder / name for name in CAPTION_LISTS if os.path.isfile(folder / name)]
        if lists:
            yield from read_lines(lists[0], partial(_listed, folder=folder, root=root))
            continue
        images = [e for e in entries if e.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(e)]
        for image in images:
            yield _captioned(image, root)
        illustrated = {image.stem for image in images}
        below: list[Path | Rejection] = []
        for entry in entries:
            if os.path.isdir(entry):  # unlike Path.is_dir, it takes a name of any length
                below.append(entry)
            elif entry.suffix == ".txt" and entry.stem not in illustrated:
                reason = "The caption has no image beside it."
                below.append(Rejection(str(entry), "missing-image", reason))
        rest += reversed(below)


def _captioned(image: Path, root: Path) -> Document | Rejection:
    name = image.relative_to(root).as_posix()
    caption_file = image.with_suffix(".txt")
    if not os.path.isfile(caption_file):
        return Document((Image(image),), name)
    try:
        caption = with_line_feeds(read_text(caption_file)).strip()
    except ValueError as error:
        reason = f"The caption cannot be read: {error}; save it as UTF-8."
        return Rejection(str(caption_file), "bad-caption", reason)
    except OSError as error:
        return Rejection(str(caption_file), "bad-caption", f"The caption cannot be read: {error}.")
    if not caption:
        return Rejection(str(caption_file), "bad-caption", "The caption file is empty.")
    return Document((Text(caption), Image(image, alt=caption)), name)


def _listed(record: dict[str, Any], _: int, folder: Path, root: Path) -> Document:
    file_name, caption = _filled(record.get("file_name")), _filled(record.get("text"))
    if not file_name or not caption:
        raise BadRecordError("bad-record", 'The line needs text under "file_name" and "text".')
    image = find_image(file_name, folder, "The line names the image", root)
    name = (folder.relative_to(root) / file_name).as_posix()
    return Document((Text(caption), Image(image, alt=caption)), name)


def _filled(value: object) -> str:
    return value.strip() if isinstance(value, str) and is_unicode(value) else ""
