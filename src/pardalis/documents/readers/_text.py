"""Text files as their authors saw them, whatever the editor and its encoding.

A byte order mark decides, then UTF-8 if the bytes are that, then what the library chardet finds
most likely among the encodings in use today.
"""

import codecs
import re
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

import chardet

from pardalis.documents.document import Omission
from pardalis.documents.readers._packed import opened, read_packed
from pardalis.files import MOST_BYTES, byte_order_mark, kind_of

_SAMPLE = 1 << 17  # bytes by which the encoding of a file is found
_OF_BYTES = ("windows", "iso-8859", "koi8", "cp125", "mac")  # a byte is a character
_LATIN = "windows-1252"
# Fewer bytes than this that are not ASCII say little, so Windows-1252 needs less to be chosen.
_FEW = 24
_LEAST_SHARE = 0.8  # of the best confidence
# Latin letters beside those of another alphabet, which no author writes in one word.
_MIXED = re.compile(r"[A-Za-z][\u0370-\u06ff]|[\u0370-\u06ff][A-Za-z]")
_VALID = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_OTHERS = re.compile(rb"\x1b\$")  # an escape of ISO-2022-JP
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f]")  # of no text; an escape may be a colour
_OVERSTRUCK = re.compile("[^\n\b]\b")  # a letter and the one that is printed on it
_LEAST_LETTERS = 50  # for each control character; what has fewer is no text
_HAS_CONTROLS = ": it has control characters"


class Decoded(NamedTuple):
    text: str
    n_damaged: int = 0  # bytes without a meaning, for which U+FFFD stands, and controls left out


def decode(content: bytes, alike: bytes = b"") -> Decoded:
    """Return the text of a file.

    Args:
        alike: other content of the same author, which helps where there is little to go by.

    Raises:
        ValueError: it is no text.
    """
    mark = byte_order_mark(content)
    encoding = mark[0] if mark else "utf-8" if is_utf8(content) else _guessed(content, alike)
    text = content[len(mark[1]) if mark else 0 :].decode(encoding, "replace")
    n_damaged = text.count("\ufffd") if "\ufffd".encode() not in content else 0
    if _CONTROLS.search(text):
        text = _OVERSTRUCK.sub("", text).rstrip("\x1a")  # as manuals for terminals, and DOS, end
        text, n_controls = _CONTROLS.subn("", text)
        if n_controls * _LEAST_LETTERS > len(text):
            kind = kind_of(content[:32])
            raise ValueError(f"it is no text{f': it is {kind}' if kind else _HAS_CONTROLS}")
        n_damaged += n_controls
    return Decoded(text, n_damaged)


def damaged_text(path: Path, n_damaged: int) -> Omission:
    """Return what tells of characters that are lost in a text that is kept."""
    reason = (
        f"{n_damaged} bytes of the text are no characters of its encoding, for which U+FFFD "
        "stands, or control characters, which are left out."
    )
    return Omission(str(path), "damaged-text", reason, n_damaged)


def read_decoded(path: Path, alike: bytes = b"") -> Decoded:
    """Return the text of a file, which may be compressed; raises as :func:`decode`, or OSError."""
    return decode(read_packed(path), alike)


def text_lines(path: Path) -> Iterator[str | ValueError]:
    """Yield the lines of a file with their ends, one at a time; an error for one that is no text.

    The file may be compressed.

    Raises:
        OSError: there is no such file, it is not a regular file, it is truncated, or it unpacks to
            far more than texts do.
        ValueError: a line is longer than 256 MiB.
    """
    with opened(path) as file:
        sample = file.read(_SAMPLE)
    mark = byte_order_mark(sample)
    with opened(path) as file:
        file.read(len(mark[1]) if mark else 0)
        if mark and mark[0] not in ("utf-8", "gb18030"):
            yield from _wide_lines(file, mark[0])
            return
        end = b"\n" if b"\n" in sample or b"\r" not in sample else b"\r"  # of old Macs, and Excel
        whole_lines = sample if len(sample) < _SAMPLE else sample[: sample.rfind(end) + 1]
        encoding = (
            mark[0] if mark else "" if is_utf8(whole_lines) else _guessed_or_none(whole_lines)
        )
        if encoding.startswith("utf-16"):
            yield from _wide_lines(file, encoding)
            return
        for line in _byte_lines(file, end):
            yield _line(line, encoding)


def _byte_lines(file: BufferedReader, end: bytes) -> Iterator[bytes]:
    if end == b"\n":
        while line := file.readline(MOST_BYTES + 1):
            _check_length(len(line))
            yield line
        return
    rest: list[bytes] = []
    length = 0
    while content := file.read(_SAMPLE):
        *lines, last = content.split(end)
        for line in lines:
            yield b"".join((*rest, line, b"\n"))
            rest, length = [], 0
        rest.append(last)
        length += len(last)
        _check_length(length)
    if last := b"".join(rest):
        yield last


def _line(line: bytes, encoding: str) -> str | ValueError:
    """Return a line of a file in an encoding, "" for UTF-8; some lines may have another one."""
    try:
        if not encoding or _is_surely_utf8(line, encoding):
            return line.decode("utf-8")
        return line.decode(encoding)
    except UnicodeDecodeError:
        try:
            return decode(line).text
        except ValueError as error:
            return error


def _is_surely_utf8(line: bytes, otherwise: str) -> bool:
    """Whether a line of a file that is not UTF-8 as a whole is, and hardly by chance."""
    least = 1 if otherwise.lower().startswith(_OF_BYTES) else 4
    if line.isascii() or len(_VALID.findall(line)) < least:
        return False
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _wide_lines(file: BufferedReader, encoding: str) -> Iterator[str]:
    """Yield the lines of a file in UTF-16 or UTF-32, in which a line feed is several bytes."""
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    rest: list[str] = []
    length = 0
    while content := file.read(_SAMPLE):
        *lines, last = decoder.decode(content).split("\n")
        for line in lines:
            yield "".join((*rest, line, "\n"))
            rest, length = [], 0
        rest.append(last)
        length += len(last)
        _check_length(length)
    if last := "".join((*rest, decoder.decode(b"", True))):
        yield last


def _check_length(length: int) -> None:
    if length > MOST_BYTES:
        raise ValueError(f"it has a line of more than {MOST_BYTES >> 20} MiB")


def is_utf8(content: bytes) -> bool:
    """Whether a text is UTF-8: all of it, or nearly all that is not ASCII."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        n_valid = len(_VALID.findall(content))
        text = content.decode("utf-8", "replace")
        return n_valid >= 3 * text.count("\ufffd")
    # Of UTF-16 without its mark every second byte is zero, mostly.
    return not _OTHERS.search(content) and content.count(0) * _LEAST_LETTERS <= len(content)


def _guessed_or_none(content: bytes) -> str:
    try:
        return _guessed(content, b"")
    except ValueError:
        return ""


def _guessed(content: bytes, alike: bytes) -> str:
    """Return the encoding of a text that is not UTF-8; raises ValueError if it is no text."""
    sample = (content[:_SAMPLE] + b"\n" + alike)[: 2 * _SAMPLE]
    if wide := unmarked_utf16(sample):
        return wide
    found: dict[str, float] = {}  # the likeliest first; a name stands there for each language
    for each in chardet.detect_all(
        sample, encoding_era=chardet.EncodingEra.MODERN_WEB, max_bytes=2 * _SAMPLE
    ):
        if each["encoding"] is not None:
            found.setdefault(each["encoding"].lower(), each["confidence"])
    if not found:
        kind = kind_of(content[:32])
        what = f": it is {kind}" if kind else " in an encoding that can be found out"
        raise ValueError(f"it is no text{what}")
    encoding, best = next(iter(found.items()))
    if _is_latin(sample, encoding, best, found.get(_LATIN, 0.0)):
        return _LATIN
    # A superset, with which the same bytes are the same characters.
    return {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc-kr": "cp949"}.get(
        encoding, encoding
    )


def unmarked_utf16(beginning: bytes) -> str:
    """Return the kind of UTF-16 if every second byte is zero, mostly; else ""."""
    half = max(1, len(beginning) // 2)
    even, odd = (beginning[start::2].count(0) > 0.4 * half for start in (0, 1))
    if even == odd:
        return ""
    return "utf-16-be" if even else "utf-16-le"


def _is_latin(sample: bytes, encoding: str, best: float, latin: float) -> bool:
    """Whether to take a short text for Windows-1252 although another encoding seems likelier."""
    is_of_bytes = encoding.startswith(_OF_BYTES)
    n_others = sum(byte >= 0x80 for byte in sample)
    if not is_of_bytes or n_others >= _FEW:
        return False
    return latin >= _LEAST_SHARE * best or bool(_MIXED.search(sample.decode(encoding, "replace")))
