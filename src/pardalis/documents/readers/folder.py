"""Documents from a folder of images, each a caption followed by its image.

A caption stands beside its image in a file of the same name, ``owl.txt`` or ``owl.caption`` (or
``owl.png.txt``), or, where there is none, in ``owl.json`` under ``"caption"`` or a similar key. It
may also stand in a list, ``captions.jsonl``, ``metadata.jsonl`` or ``metadata.csv`` as Hugging
Face's "imagefolder" has it, which describes its folder with all below:

    {"file_name": "owl.png", "text": "an owl"}

or be one of COCO or Flickr (:mod:`._lists`). Lists come first. What they leave out is read from
beside the images, so a list hides nothing; each different caption of an image makes a document, and
none is read twice.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pardalis.documents.document import Document, Image, Omission, Rejection, Text, is_unicode
from pardalis.documents.images import can_read_heic
from pardalis.documents.readers._columns import (
    IMAGE_NAMES,
    TEXT_NAMES,
    Place,
    filled,
    find_named,
    first_of,
    licence_of,
)
from pardalis.documents.readers._lines import BadRecordError
from pardalis.documents.readers._lists import (
    CAPTION_LISTS,
    entries,
    image_folders,
    is_list,
    may_be_list,
    place_of,
)
from pardalis.documents.readers._text import damaged_text, decode, is_utf8, read_decoded
from pardalis.documents.readers._walk import Folder, Names, of_pointer, walk
from pardalis.documents.readers.recognise import expect
from pardalis.files import (
    found_at,
    parse_json,
    pointer_in,
    pointer_of,
    read_bytes,
    with_line_feeds,
)

IMAGE_SUFFIXES = frozenset((
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".gif", ".bmp",
    ".dib", ".tif", ".tiff", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga",
))  # fmt: skip

CAPTION_SUFFIXES = (".txt", ".caption")

_LISTS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")  # of any name

# Formats of images and films that are not read, and what they are called.
_UNREAD = {
    ".heic": "an HEIC image", ".heif": "an HEIC image", ".svg": "an SVG drawing",
    ".svgz": "an SVG drawing", ".psd": "a Photoshop document", ".psb": "a Photoshop document",
    ".xcf": "a GIMP document", ".kra": "a Krita document", ".ai": "an Illustrator document",
    ".eps": "a PostScript drawing", ".exr": "an OpenEXR image", ".hdr": "a Radiance image",
    ".jxl": "a JPEG XL image", ".jxr": "a JPEG XR image", ".dds": "a texture", ".ico": "an icon",
    ".wmf": "a metafile", ".emf": "a metafile", ".mp4": "a film", ".mov": "a film",
    ".webm": "a film", ".avi": "a film", ".mkv": "a film",
    **dict.fromkeys(
        (".arw", ".cr2", ".cr3", ".crw", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw",
         ".rw2", ".sr2", ".srw", ".x3f"),
        "a raw photograph",
    ),
}  # fmt: skip

_HEIC = frozenset((".heic", ".heif"))  # read with an extra

_THUMBNAILS = ("thumbs", "thumbnails", "thumb", "thumbnail")
_SAMPLED = 1 << 16  # bytes of the texts of a folder, by which their encoding is found
_ALIKE = 50  # texts at most that are looked at for them


def read_folder(path: Path) -> Iterator[Document | Rejection]:
    """Yield a document for each caption of an image below the folder, named by its relative path.

    An image without any caption is a document of its own; it still serves to train an image
    tokenizer. What tools leave behind is not content: hidden files, ``Thumbs.db``, ``__MACOSX``,
    thumbnails of the images beside them.

    Raises:
        DataError: there is no such folder.
    """
    expect(path, "a folder of images", is_folder=True)
    return _read(path)


def unread_as(name: str) -> str:
    """Return what a file of this name is if it is of a format that is not read; else ""."""
    return "" if is_image(name) else _UNREAD.get(os.path.splitext(name)[1].lower(), "")


def image_suffixes() -> frozenset[str]:
    """Return the endings of images that are read, in lower case."""
    return IMAGE_SUFFIXES | _HEIC if can_read_heic() else IMAGE_SUFFIXES


def is_image(name: str) -> bool:
    """Whether a file of this name is an image that is read."""
    return os.path.splitext(name)[1].lower() in image_suffixes()


def _read(root: Path) -> Iterator[Document | Rejection]:
    listed = _Listed(root)
    for found in walk(root, may_be_list):
        if isinstance(found, Folder):
            for path in (found.path / name for name in found.names):
                if is_list(path):
                    yield from listed.read(path)
    for found in walk(root, _is_content):
        if isinstance(found, Rejection):
            yield found
        else:
            yield from _of_folder(found, root, listed)


def _is_content(name: str) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    is_text = suffix in CAPTION_SUFFIXES or suffix in _LISTS
    return is_text or suffix in IMAGE_SUFFIXES or suffix in _UNREAD


# ── lists ────────────────────────────────────────────────────────────────────────────────────────


class _Listed:
    """Reads lists of captions, and remembers which captions of which images they had."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._captions: dict[tuple[int, int], tuple[int, ...]] = {}
        self._lists: set[Path] = set()

    def read(self, path: Path) -> Iterator[Document | Rejection]:
        """Yield the documents of a list; lines that repeat others are left out."""
        self._lists.add(path)
        if pointer := pointer_in(path):
            yield of_pointer(path, pointer)
            return
        folders = image_folders(path, self._root)
        for entry in entries(path):
            if isinstance(entry, Rejection):
                yield entry
                continue
            where, record = entry
            try:
                yield from list(self._documents(record, folders))
            except BadRecordError as error:
                yield Rejection(where, error.kind, str(error))

    def _documents(self, record: Mapping[str, Any], folders: list[Path]) -> Iterator[Document]:
        names, value = _file_names(record), first_of(record, TEXT_NAMES)
        captions = [filled(each) for each in (value if isinstance(value, list) else [value])]
        if not names or not any(captions):
            raise BadRecordError("bad-record", 'The line needs text under "file_name" and "text".')
        folder = place_of(names[0], folders) or folders[0]
        place = Place(folder, self._root, "")
        images = [find_named(name, place, "The image of the line") for name in names]
        for caption in filter(None, captions):
            if number := self.add(images[0], caption):
                name = (folder.relative_to(self._root) / names[0]).as_posix()
                shown = (Image(image, alt=caption) for image in images)
                yield Document((Text(caption), *shown), _numbered(name, number), licence_of(record))
            for image in images[1:]:
                self.add(image, caption)

    def is_read(self, path: Path) -> bool:
        """Whether a file is a list that was read."""
        return path in self._lists

    def add(self, image: Path, caption: str) -> int:
        """Note a caption of an image; return how many it has now, 0 if it had this one."""
        key = _key(image)
        before = self._captions.get(key, ())
        found = hash(" ".join(caption.split()))
        if found in before:
            return 0
        self._captions[key] = (*before, found)
        return len(before) + 1

    def has(self, image: Path) -> bool:
        """Whether an image is in a list that was read."""
        return bool(self._captions) and _key(image) in self._captions


def _key(image: Path) -> tuple[int, int]:
    status = os.stat(image)
    return status.st_dev, status.st_ino


def _file_names(record: Mapping[str, Any]) -> list[str]:
    """Return the images of a line of a list, as "imagefolder" names them and others do."""
    value = first_of(record, IMAGE_NAMES)
    if value is None:
        ends = ("_file_name", "_file_names")
        value = next((each for key, each in record.items() if key.lower().endswith(ends)), None)
    values = value if isinstance(value, list) else [value]
    names = [filled(each) for each in values]
    return names if all(names) else []


# ── folders ──────────────────────────────────────────────────────────────────────────────────────


def _of_folder(found: Folder, root: Path, listed: _Listed) -> Iterator[Document | Rejection]:
    folder, names = found.path, Names(found.names)
    texts = _Texts(folder, found.names)
    used: set[str] = set()
    for name in found.names:
        suffix = os.path.splitext(name)[1].lower()
        path = folder / name
        if suffix in _UNREAD and not is_image(name):
            captions = _captions_of(name, names)
            used.update(captions)
            yield _unread(path, suffix, captions)
        elif is_image(name) and not os.path.isfile(path):
            yield Rejection(str(path), "missing-image", f"It {found_at(path)}; an image was meant.")
        elif is_image(name) and (original := _original(path)):
            reason = f"It is a thumbnail of {original}, which is read in its place."
            yield Omission(str(path), "thumbnail", reason)
        elif is_image(name):
            captions = _captions_of(name, names)
            used.update(captions)
            read = [item for each in captions for item in texts.read(each)]
            yield from _of_image(path, root, read, listed)
    for name in found.names:
        if listed.is_read(folder / name):
            continue
        if name.lower().endswith(CAPTION_SUFFIXES) and name not in used:
            reason = "The caption has no image beside it."
            yield Rejection(str(folder / name), "missing-image", reason)
        elif name.lower().endswith(_LISTS) and name not in used and not _is_beside(name, names):
            reason = f"It may list captions, and has none of the names {', '.join(CAPTION_LISTS)}."
            yield Omission(str(folder / name), "unread-list", reason)


def _is_beside(name: str, names: Names) -> bool:
    """Whether a file stands beside an image of its name."""
    stem = os.path.splitext(name)[0]
    return any(names.find(base) for base in (stem, *(stem + end for end in image_suffixes())))


def _captions_of(image: str, names: Names) -> list[str]:
    """Return the files beside an image that may hold its captions."""
    stem = os.path.splitext(image)[0]
    for suffixes in (CAPTION_SUFFIXES, (".json",)):
        given = [names.find(base + end) for end in suffixes for base in (stem, image)]
        if found := [each for each in dict.fromkeys(given) if each]:
            return found
    return []


def _of_image(
    path: Path, root: Path, captions: Sequence[str | Rejection], listed: _Listed
) -> Iterator[Document | Rejection]:
    name = path.relative_to(root).as_posix()
    in_list = listed.has(path)
    is_read = in_list or _is_link_to_content(path, root)
    n_before = 0
    seen: set[str] = set()
    for caption in captions:
        if isinstance(caption, Rejection):
            yield caption
            continue
        words = " ".join(caption.split())
        if words in seen:
            continue
        seen.add(words)
        number = listed.add(path, caption) if in_list else (n_before := n_before + 1)
        if number:
            image = Image(path, alt=caption)
            yield Document((Text(caption), image), _numbered(name, number))
    if not seen and not is_read:
        yield Document((Image(path),), name)


def _is_link_to_content(path: Path, root: Path) -> bool:
    """Whether an image is a link to one that is read where it lies."""
    if not path.is_symlink():
        return False
    real, folder = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    if not real.is_relative_to(folder) or not is_image(real.name):
        return False
    return not any(part.startswith(".") for part in real.relative_to(folder).parts)


def _original(path: Path) -> str:
    """Return the name of the image that a thumbnail shows, which lies above it; "" for none."""
    if path.parent.name.lower() not in _THUMBNAILS:
        return ""
    names = (path.stem + suffix for suffix in sorted(image_suffixes()))
    return next((name for name in names if os.path.isfile(path.parent.parent / name)), "")


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}#{number}"


def _unread(path: Path, suffix: str, captions: Sequence[str]) -> Rejection:
    lost = f" Its caption {captions[0]} is left out with it." if captions else ""
    what = f"It is {_UNREAD[suffix]}, which"
    reason = f"{what} is not read; save it as PNG or JPEG.{lost}"
    if suffix in _HEIC:
        extra = "pip install pardalis[heic]"
        reason = f"{what} is read with the extra heic ({extra}), or saved as PNG or JPEG.{lost}"
    if _UNREAD[suffix] == "a film":
        reason = f"It is a film, which is not read.{lost}"
    return Rejection(str(path), "unread-format", reason)


class _Texts:
    """Reads the captions of a folder, whose encoding is found by several of them together."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self._names = folder, names
        self._alike: bytes | None = None

    def read(self, name: str) -> Iterator[str | Rejection]:
        """Yield the caption of a file, and what is wrong with it."""
        path = self._folder / name
        try:
            if name.lower().endswith(".json"):
                captions, n_damaged = _of_json(path), 0
            else:
                content = read_bytes(path)
                if pointer := pointer_of(content[:1024].lower(), "file"):
                    raise ValueError(f"it is {pointer}")
                text, n_damaged = decode(content, b"" if is_utf8(content) else self._sample())
                captions = [text]
        except (OSError, ValueError) as error:
            reason = f"The caption cannot be read: {error}."
            yield Rejection(str(path), "bad-caption", reason)
            return
        if n_damaged:
            yield damaged_text(path, n_damaged)
        found = [with_line_feeds(caption).strip() for caption in captions]
        yield from filter(None, found)
        if not any(found):
            yield Rejection(str(path), "bad-caption", "The caption file is empty.")

    def _sample(self) -> bytes:
        """Return what is not ASCII of the first texts of the folder."""
        if self._alike is None:
            sample = b""
            names = [n for n in self._names if n.lower().endswith(CAPTION_SUFFIXES)]
            for name in names[:_ALIKE]:
                try:
                    content = read_bytes(self._folder / name, _SAMPLED)
                except OSError:
                    continue
                if not is_utf8(content) and b"\0" not in content:
                    sample += content + b"\n"
            self._alike = sample[:_SAMPLED]
        return self._alike


def _of_json(path: Path) -> list[str]:
    """Return the captions in a JSON file; raises ValueError if there is none."""
    value = parse_json(read_decoded(path).text)
    value = first_of(value, TEXT_NAMES) if isinstance(value, dict) else value
    values = value if isinstance(value, list) else [value]
    captions = [each for each in values if isinstance(each, str) and is_unicode(each)]
    if not captions:
        shown = ", ".join(f'"{name}"' for name in TEXT_NAMES[:4])
        raise ValueError(f"it has no text under {shown} or a similar key")
    return captions
