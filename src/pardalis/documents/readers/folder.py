"""Documents from a folder of images, each a caption followed by its image.

A caption stands in a text file beside its image (``owl.png`` and ``owl.txt``), or all captions
stand in one ``captions.jsonl`` or ``metadata.jsonl`` (the "imagefolder" shape), whose lines read

    {"file_name": "owl.png", "text": "an owl"}

Such a list describes its folder wholly, subfolders included.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pardalis.documents.document import Document, Image, Rejection, Text, is_unicode
from pardalis.documents.readers._lines import BadRecordError, find_image, read_lines
from pardalis.errors import DataError
from pardalis.files import found_at

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
    return _read(path, path)


def _read(folder: Path, root: Path) -> Iterator[Document | Rejection]:
    for name in CAPTION_LISTS:
        if (folder / name).is_file():
            yield from read_lines(folder / name, lambda line, _: _listed(line, folder, root))
            return
    entries = sorted(folder.iterdir())
    images = [e for e in entries if e.suffix.lower() in IMAGE_SUFFIXES and e.is_file()]
    for image in images:
        yield _captioned(image, root)
    illustrated = {image.stem for image in images}
    for entry in entries:
        if entry.is_dir():
            yield from _read(entry, root)
        elif entry.suffix == ".txt" and entry.stem not in illustrated:
            yield Rejection(str(entry), "missing-image", "The caption has no image beside it.")


def _captioned(image: Path, root: Path) -> Document | Rejection:
    name = image.relative_to(root).as_posix()
    caption_file = image.with_suffix(".txt")
    if not caption_file.is_file():
        return Document((Image(image),), name)
    try:
        caption = caption_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        return Rejection(str(caption_file), "bad-caption", f"The caption cannot be read: {error}.")
    if not caption:
        return Rejection(str(caption_file), "bad-caption", "The caption file is empty.")
    return Document((Text(caption), Image(image, alt=caption)), name)


def _listed(record: dict[str, Any], folder: Path, root: Path) -> Document:
    file_name, caption = _filled(record.get("file_name")), _filled(record.get("text"))
    if not file_name or not caption:
        raise BadRecordError("bad-record", 'The line needs text under "file_name" and "text".')
    image = find_image(file_name, folder, "The line names the image", root)
    name = (folder.relative_to(root) / file_name).as_posix()
    return Document((Text(caption), Image(image, alt=caption)), name)


def _filled(value: object) -> str:
    return value.strip() if isinstance(value, str) and is_unicode(value) else ""
