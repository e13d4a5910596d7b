"""Documents from WebDataset archives: the members of one key are a text and then its images.

    owls/0001.jpg   owls/0001.txt   owls/0001.json

The key is the name up to the first dot after the last slash, and members of one key follow each
other. Texts are ``.txt``, ``.text`` and ``.caption``, or, where there is none, the caption in
``.json``; images are all members that end as image files do (``.left.png`` too), in their order.
Other members, such as ``.cls`` and ``.npy``, are no content. Archives are ``.tar``, alone or
compressed by gzip, bzip2 or xz. Nothing is unpacked to a disk, and links in an archive are not
followed.
"""

import bz2
import gzip
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any, cast

from pardalis.documents.document import Document, Image, Rejection, Segment, Text
from pardalis.documents.readers._columns import TEXT_NAMES, filled, first_of, licence_of
from pardalis.documents.readers._packed import PACKED, packed_as
from pardalis.documents.readers._text import damaged_text, decode
from pardalis.documents.readers._walk import files_below, is_clutter, of_files
from pardalis.documents.readers.folder import is_image, unread_as
from pardalis.documents.readers.recognise import expect
from pardalis.files import MOST_BYTES, parse_json, with_line_feeds

SUFFIXES = (".tar", ".tgz", *(".tar" + end for end in PACKED))

_TEXTS = (".txt", ".text", ".caption")
_KEY = re.compile(r"((?:.*/|)[^./][^/.]*)\.([^/]*)")
_META = re.compile(r"__[^/]*__(?:$|/)")  # of the format itself
_MOST_HEADER = 1 << 20  # bytes of a long name, or of other facts about a member
_BLOCK = 1 << 16
_OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def read_webdataset(path: Path) -> Iterator[Document | Rejection]:
    """Yield the document of each key of an archive, or of all archives below a folder.

    Raises:
        DataError: there is nothing at the path.
    """
    expect(path, "a WebDataset archive, or a folder of such files,")
    return of_files(path, files_below(path, SUFFIXES), _archive)


def _archive(path: Path, root: Path) -> Iterator[Document | Rejection]:
    name = re.sub(
        r"\.(tgz|tar(\.\w+)?)$", "", path.relative_to(root).as_posix(), flags=re.IGNORECASE
    )
    sample: _Sample | None = None
    try:
        if (kind := packed_as(path)) not in ("", *_OPENERS):
            reason = f"It is compressed as {kind} files are; unpack it, or compress it as .tar.gz."
            yield Rejection(str(path), "unread-format", reason)
            return
        with _opened(path) as file:
            for found in _members(file, path):
                if isinstance(found, Rejection):
                    yield found
                    continue
                key, ending, content = found
                if sample is not None and sample.key != key:
                    yield from sample.items(name)
                    sample = None
                sample = sample or _Sample(path, key)
                sample.add(ending, content)
    except (OSError, ValueError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        # The members of the last key may not all be there.
        last = f" in or after {sample.key!r}, which is left out" if sample else ""
        reason = f"The archive is truncated or damaged{last}: {str(error).rstrip('.')}."
        yield Rejection(str(path), "damaged-archive", reason)
    else:
        if sample is not None:
            yield from sample.items(name)


# ── samples ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Sample:
    """The members of one key."""

    path: Path
    key: str
    texts: list[str] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    endings: set[str] = field(default_factory=set)

    def add(self, ending: str, content: bytes) -> None:
        """Take a member that is content."""
        suffix = os.path.splitext(f"x.{ending}")[1]
        if ending in self.endings:
            self.reject(ending, "repeated-member", "The archive has a member of this name before.")
            return
        self.endings.add(ending)
        try:
            if is_image(f"x.{ending}"):
                if content:
                    self.images.append(content)
                else:
                    self.reject(ending, "unreadable-image", "The image holds zero bytes.")
            elif suffix in _TEXTS:
                text, n_damaged = decode(content)
                if n_damaged:
                    where = Path(f"{self.path}: {self.key}.{ending}")
                    self.rejections.append(damaged_text(where, n_damaged))
                self.texts.append(with_line_feeds(text).strip())
            else:
                value = parse_json(decode(content).text)
                self.about.update(value if isinstance(value, dict) else {})
        except ValueError as error:
            self.reject(ending, "bad-caption", f"The caption cannot be read: {error}.")

    def reject(self, ending: str, kind: str, reason: str) -> None:
        self.rejections.append(Rejection(f"{self.path}: {self.key}.{ending}", kind, reason))

    def items(self, archive: str) -> Iterator[Document | Rejection]:
        yield from self.rejections
        texts = [text for text in self.texts if text] or [filled(first_of(self.about, TEXT_NAMES))]
        text = "\n".join(texts)
        segments: list[Segment] = [Text(text)] if text else []
        segments += [Image(content, text) for content in self.images]
        if segments:
            yield Document(tuple(segments), f"{archive}/{self.key}", licence_of(self.about))
        elif not self.rejections:
            reason = "The members of this key have neither text nor images."
            yield Rejection(f"{self.path}: {self.key}", "empty-document", reason)


# ── archives ─────────────────────────────────────────────────────────────────────────────────────


def _members(file: BufferedIOBase, path: Path) -> Iterator[tuple[str, str, bytes] | Rejection]:
    """Yield the key, the ending and the content of each member that is content."""
    with tarfile.open(fileobj=file, mode="r:", tarinfo=_Member) as archive:
        end = -1
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # the list of all would grow
            if archive.offset <= end:
                raise ValueError("a member ends before it begins")
            end = archive.offset
            name = member.name.removeprefix("./")
            found = _KEY.fullmatch(name)
            where = f"{path}: {member.name[:200]}"
            is_left = any(part != ".." and is_clutter(part) for part in name.split("/"))
            if member.isdir() or _META.search(name) or is_left:
                continue
            if reason := _refused(member):
                yield Rejection(where, *reason)
            elif found is None or not _is_content(found[2].lower()):
                if what := unread_as(name):
                    yield Rejection(where, "unread-format", f"It is {what}, which is not read.")
            else:
                content = cast(IO[bytes], archive.extractfile(member)).read()
                if len(content) != member.size:
                    raise ValueError("a member is shorter than its header says")
                yield found[1], found[2].lower(), content
        yield from _rest(file, archive.offset, path)


def _is_content(ending: str) -> bool:
    suffix = os.path.splitext(f"x.{ending}")[1]
    return is_image(f"x.{ending}") or suffix in _TEXTS or suffix == ".json"


def _refused(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """Return the kind and the reason if a member is not read whatever it is called."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "outside-path", "The member's name leads out of the archive."
    if member.issym() or member.islnk():
        shown = member.linkname[:200]
        return "outside-link", f"The member is a link to {shown!r}; links are not followed."
    if not member.isreg() or member.issparse():
        return "no-file", "The member is no plain file."
    if member.size > MOST_BYTES:
        return "large-member", f"The member has {member.size} bytes, too many."
    return None


def _rest(file: BufferedIOBase, at: int, path: Path) -> Iterator[Rejection]:
    """Yield what is wrong behind the last member: no end mark, or more data after it."""
    file.seek(at)
    n_bytes, has_data = 0, False
    while block := file.read(_BLOCK):
        n_bytes += len(block)
        has_data = has_data or block.count(0) < len(block)
    if has_data:
        reason = (
            "The archive has data behind its last member that are no member; it may be damaged."
        )
        yield Rejection(str(path), "damaged-archive", reason)
    elif not n_bytes:
        reason = "The archive has no end mark, so it may be cut off."
        yield Rejection(str(path), "damaged-archive", reason)


class _Member(tarfile.TarInfo):
    """A member whose header may not take much memory, nor lead backwards."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        is_header = self.type in (
            tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        )  # fmt: skip
        if self.size < 0 or (is_header and self.size > _MOST_HEADER):
            raise tarfile.ReadError(f"a header states {self.size} bytes")
        return cast(tarfile.TarInfo, super()._proc_member(archive))


def _opened(path: Path) -> BufferedIOBase:
    opener: Any = _OPENERS.get(packed_as(path), open)
    return cast(BufferedIOBase, opener(path, "rb"))
