"""The text of a page's bytes, as a browser decodes it.

In this order decide: a byte order mark, what the sender states, the page's own declaration, UTF-8
if the bytes are that but for few, and a guess. Labels mean what the Encoding Standard says: a page
of ``gb2312`` is GBK, one of ``iso-8859-1`` is windows-1252 (https://encoding.spec.whatwg.org).
"""

import re

import chardet
import webencodings

from pardalis.documents.readers._text import unmarked_utf16

_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))

_SEARCHED = 4096  # bytes in which a declaration stands
_GUESSED = 16_384  # bytes from which an encoding is guessed
_FEWEST = 8  # bytes beyond ASCII that a guess needs

_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_META = re.compile(rb"<meta[\s/]([^>]*)>", re.IGNORECASE)
_ATTRIBUTE = re.compile(rb"""([a-z-]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE)
_CHARSET = re.compile(rb"""charset\s*=\s*["']?\s*([^\s"';]+)""", re.IGNORECASE)
_XML = re.compile(rb"""\s*<\?xml\b[^>]*?\sencoding\s*=\s*["']([^"']+)["']""")
_TAG = re.compile(rb"<[^<>]*>")

_SEQUENCE = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)


def decode(content: bytes, stated: str = "") -> str:
    """Return the text; U+FFFD stands for bytes that are not of the encoding.

    Args:
        stated: the label of an encoding that came with the page, such as that of a header.
    """
    for mark, codec in _MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(codec, "replace")
    codec = _codec(stated) or _declared(content[:_SEARCHED]) or unmarked_utf16(content[:_SEARCHED])
    if not codec:
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            codec = _guessed(content, error.start)
    return content.decode(codec, "replace")


def _codec(label: str) -> str:
    """Return Python's name of the encoding that a label means; "" for a label of none."""
    found = webencodings.lookup(label)
    if found is None or found.name in ("replacement", "x-user-defined"):
        return ""
    return "gb18030" if found.name == "gbk" else str(found.codec_info.name)


def _declared(beginning: bytes) -> str:
    """Return the encoding that the XML declaration or a ``meta`` of a page states, if it does."""
    beginning = _COMMENT.sub(b"", beginning)
    labels = [found[1]] if (found := _XML.match(beginning)) else []
    for tag in _META.finditer(beginning):
        values = {
            each[1].lower(): each[2] or each[3] or each[4] or b""
            for each in _ATTRIBUTE.finditer(tag[1])
        }
        if b"charset" in values:
            labels.append(values[b"charset"])
        elif values.get(b"http-equiv", b"").lower() == b"content-type":
            labels += _CHARSET.findall(values.get(b"content", b""))
    for label in labels:
        if codec := _codec(label.decode("latin-1")):
            # Bytes in which a declaration can be read are not those of UTF-16.
            return "utf-8" if codec.startswith("utf-16") else codec
    return ""


def _guessed(content: bytes, first_bad: int) -> str:
    """Return the encoding of bytes that declare none and are not UTF-8 from an offset on."""
    n_sequences, n_within = 0, 0
    for found in _SEQUENCE.finditer(content):
        n_sequences += 1
        n_within += len(found[0])
    n_high = len(content) - len(content.translate(None, bytes(range(128, 256))))
    if n_sequences > n_high - n_within:  # the others are damage
        return "utf-8"
    if n_high < _FEWEST:
        return "cp1252"
    start = max(0, first_bad - _GUESSED // 2)
    text = _TAG.sub(b" ", content[start : start + _GUESSED])
    era = chardet.EncodingEra.MODERN_WEB
    name = chardet.detect(text, encoding_era=era)["encoding"]
    return "cp1252" if name is None else _codec(name) or name
