"""The bytes of PNG, JPEG and WebP files: those that pixels depend on, and whether all are there.

Decoders refuse files for what does not concern their pixels, and take some of which a part is lost.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from pardalis.errors import DataError

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
_RIFF, _WEBP = b"RIFF", b"WEBP"

_MOST_SCANS = 200  # of a JPEG; a progressive one has ten or so

_CLEAR = {0: range(2, 3), 2: range(6, 7), 3: range(1, 257)}  # bytes of tRNS, by kind of colour

# A marker with a length behind it, or that of the end; neither a stuffed byte nor a restart.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_END = b"\xff\xd9"
_SCAN = 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers that begin an image's header
_HUFFMAN, _PROGRESSIVE = (0xC0, 0xC1), (0xC2, 0xC6, 0xCA, 0xCE)
_ALL = range(64)  # the coefficients of a block
# Behind a scan that is whole the decoder looks ahead at no more than 8 bytes, and uses none.
_AHEAD = 8
# What may stand there: bytes of which some change pixels wherever the scan is not whole.
_FILLINGS = tuple(bytes([byte]) * _AHEAD for byte in (0xFE, 0x55, 0xAA, 0x6B, 0xD2))
_UNWRITTEN = 512  # zeros at the end of a file: a download that stopped, and no part of a scan


def without_metadata(content: bytes) -> bytes | None:
    """Return a PNG, JPEG or WebP without its metadata; None for other files, or if it has none.

    Decoders refuse images for texts, profiles and times that are large, damaged or cut off,
    although the pixels are whole. Those that say how to show the pixels are kept if they are sound.
    Of an animation the first frame is kept.
    """
    if content.startswith(PNG):
        bare = b"".join(_png_chunks(content))
    elif content.startswith(JPEG):
        bare = b"".join(_jpeg_segments(content))
    elif content.startswith(_RIFF) and content[8:12] == _WEBP:
        bare = _WEBP + b"".join(_webp_chunks(content))
        bare = _RIFF + len(bare).to_bytes(4, "little") + bare
    else:
        return None
    return bare if bare != content else None


def _png_chunks(content: bytes) -> Iterator[bytes]:
    """Yield the parts of a PNG that pixels depend on, and the orientation."""
    yield PNG
    at = len(PNG)
    colour = content[25] if len(content) > 25 else 0
    lengths = {b"eXIf": range(2, 1 << 16), b"tRNS": _CLEAR.get(colour, range(0))}
    while len(head := content[at : at + 8]) == 8:
        length, kind = int.from_bytes(head[:4]), head[4:]
        chunk = content[at : at + 12 + length]
        at += 12 + length
        is_critical = not kind[0] & 0x20
        # Without its sum a part that is not needed is damaged.
        is_sound = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
        if is_critical or (length in lengths.get(kind, ()) and is_sound):
            yield chunk
        if kind == b"IEND":
            return


def _jpeg_segments(content: bytes) -> Iterator[bytes]:
    """Yield the parts of a JPEG that pixels depend on, and the orientation."""
    yield content[:2]
    at = 2
    while len(head := content[at : at + 4]) == 4 and head[0] == 0xFF:
        marker, end = head[1], at + 2 + int.from_bytes(head[2:])
        body = content[at + 4 : end]
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        is_needed = body.startswith(b"Exif\0\0") or (body.startswith(b"Adobe") and len(body) >= 12)
        if marker == _SCAN:  # the pixels
            break
        if not is_metadata or is_needed:
            yield content[at:end]
        at = end
    yield content[at:]


def _webp_chunks(content: bytes) -> Iterator[bytes]:
    """Yield the parts of a WebP that the pixels of its first image depend on, and the orientation.

    Their lengths are believed, and not that of the whole file. A part that is cut off remains so.
    """
    at = 12
    has_image = False
    while len(head := content[at : at + 8]) == 8:
        kind, length = head[:4], int.from_bytes(head[4:], "little")
        chunk = content[at : at + 8 + length]
        at += 8 + length + length % 2
        is_image = kind in (b"VP8 ", b"VP8L", b"ANMF")
        is_whole = len(chunk) == 8 + length
        if (kind == b"EXIF" and is_whole) or (
            not has_image and (is_image or kind in (b"VP8X", b"ANIM", b"ALPH"))
        ):
            yield chunk + b"\0" * (length % 2 if is_whole else 0)
        has_image = has_image or is_image


@dataclass(slots=True)
class _Scans:
    """What the headers of the first image of a JPEG say of its scans."""

    kind: int = 0  # the marker of its frame; 0: it has none
    n_scans: int = 0  # or one more than are allowed
    end: int = 0  # where the scans end; at the end of the file if nothing follows
    is_ended: bool = False  # by a marker
    # How many bits each coefficient of each component still lacks; -1: all.
    lacking: dict[int, list[int]] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether there is a scan for every bit of every coefficient."""
        return bool(self.lacking) and not any(any(bits) for bits in self.lacking.values())

    def add_frame(self, kind: int, body: bytes) -> None:
        self.kind = kind
        self.lacking = {number: [-1] * len(_ALL) for number in body[6::3]}

    def add_scan(self, body: bytes) -> None:
        self.n_scans += 1
        if not body or len(body) < 1 + 2 * body[0] + 3:
            return
        first, last, bits = body[1 + 2 * body[0] :][:3]
        if self.kind not in _PROGRESSIVE:
            first, last, bits = 0, 63, 0
        for number in body[1 : 1 + 2 * body[0] : 2]:
            if number in self.lacking:
                for at in _ALL[first : last + 1]:
                    self.lacking[number][at] = bits & 15


def _scans_of(content: bytes) -> _Scans:
    found, at = _Scans(), 2
    while found.n_scans <= _MOST_SCANS and (match := _MARKER.search(content, at)) is not None:
        marker, start = match[0][1], match.end()
        if marker == 0xD9 or (found.n_scans and found.kind in _HUFFMAN and found.is_complete):
            found.end, found.is_ended = match.start(), True
            return found
        at = start + int.from_bytes(content[start : start + 2])
        body = content[start + 2 : at]
        if marker in _FRAMES and not found.kind:
            found.add_frame(marker, body)
        elif marker == _SCAN:
            found.add_scan(body)
    found.end = len(content)
    return found


def damaged(where: str, why: object) -> DataError:
    """Return what tells that pixels of an image are lost."""
    return DataError(f"{where} is truncated or damaged, and could not be decoded: {why}.")


def jpeg_forms(content: bytes, where: str) -> tuple[bytes, ...]:
    """Return the forms in which to decode a JPEG: it is whole if all give the same pixels.

    Decoders show grey in place of what a scan lacks before a marker, and wait for more where none
    follows. So one scan, as most files have, is decoded with a few bytes behind it and no marker.
    If the file has no marker either, which means nothing by itself, these bytes are used to tell
    whether the last ones of the scan are lost. Several scans are decoded as they are if the end is
    marked.

    Raises:
        DataError: it lacks a scan; or it has so many, each decoded as a whole image, that a file of
            a few bytes would take hours.
    """
    scans = _scans_of(content)
    if scans.n_scans > _MOST_SCANS:
        raise DataError(
            f"{where} has more than {_MOST_SCANS} scans, each of which is decoded as a whole "
            "image; save it again."
        )
    is_single = scans.n_scans == 1 and scans.kind in _HUFFMAN and scans.is_complete
    if not scans.n_scans or (scans.is_ended and not is_single):
        return (content,)
    if not scans.is_complete:
        raise damaged(where, "it ends before its last scan")
    scan = content[: scans.end]
    if not scans.is_ended:
        written = scan.rstrip(b"\0")
        scan = written if len(scan) - len(written) >= _UNWRITTEN else scan
    scan = scan.rstrip(b"\xff")  # the beginning of a marker, or fill bytes before one
    if is_single:
        return tuple(scan + each for each in _FILLINGS[: 1 if scans.is_ended else None])
    return tuple(scan + each + _END for each in (b"", *_FILLINGS))
