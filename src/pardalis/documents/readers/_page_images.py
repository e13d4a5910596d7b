"""Which image an element of a page shows, and whether it is content."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote

from selectolax.lexbor import LexborHTMLParser, LexborNode

from pardalis.documents import svg
from pardalis.documents.images import from_data_uri, image_size, is_clear, read_source
from pardalis.errors import DataError

Attributes: TypeAlias = dict[str, str | None]

Find: TypeAlias = Callable[[str, str], Path | bytes]
"""The file of an address and of the page's base address; raises :class:`NoImageError`."""


class NoImageError(Exception):
    """An address at which there is no image; ``kind`` is that of its :class:`Rejection`."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


OPEN = float("inf")  # a side that the page does not state
_OTHER_MEDIA = re.compile(r"\bprint\b|prefers-color-scheme\s*:\s*dark", re.IGNORECASE)
_CANDIDATE = re.compile(r"[\s,]*([^\s,][^\s]*)([^,]*),?")
_SPACES = {
    "xmlns": "http://www.w3.org/2000/svg",
    "xmlns:xlink": "http://www.w3.org/1999/xlink",
}

# Attributes in which pages that load images late keep the address of the file. Each library has
# others, such as data-ezsrc and lazy-src; those of a coarse image in its place are no such ones.
_LATE_SET = re.compile(r"(?:data-|lazy).*src-?set|data-original-set|data-bgset")
_LATE = re.compile(
    r"(?:data-|lazy).*src|data-(?:original|lazy|lazyload|image|url|delayed-url|echo|hires)"
)
_COARSE = re.compile(r"low|thumb|tiny|small|blur|place|error|fallback|default|media|type|cache")
_URL = r"""url\(\s*(?:"([^"]*+)"|'([^']*+)'|([^)"']*+))"""
_BACKGROUND = re.compile(
    rf"background(?:-image)?\s*+:[^;:(]*?(?:var\(\s*+(--[\w-]++)|{_URL})", re.IGNORECASE
)
_VARIABLE = re.compile(rf"(--[\w-]++)\s*+:\s*+{_URL}", re.IGNORECASE)


class PageImages:
    """The images of one page, by their addresses.

    Args:
        find: gives the files of addresses.
        min_side: of images that are content, in pixels.
    """

    def __init__(self, tree: LexborHTMLParser, find: Find, base: str, min_side: int) -> None:
        self._tree, self._find, self._base, self._min_side = tree, find, base, min_side
        self._drawn: dict[bytes, bytes] = {}  # drawings that were rendered
        self._variables: dict[str, str] | None = None  # addresses that style sheets have names for

    def behind(self, attributes: Attributes) -> list[str]:
        """Return the address of the image that an element's own style lays behind it, if any.

        SingleFile keeps an image that a page has several times in a variable of its style sheet,
        and puts an empty drawing before it.
        """
        found = _BACKGROUND.search(get(attributes, "style"))
        if found is None:
            return []
        if not found[1]:
            return [(found[2] or found[3] or found[4] or "").strip()]
        if self._variables is None:
            sheets = (each.text() or "" for each in self._tree.css("style"))
            self._variables = {
                each[1]: (each[2] or each[3] or each[4] or "").strip()
                for sheet in sheets
                for each in _VARIABLE.finditer(sheet)
            }
        return [self._variables[found[1]]] if found[1] in self._variables else []

    def source(self, address: str) -> Path | bytes | None:
        """Return the image at an address; None for one that is too small to be content."""
        if address[:5].lower() == "data:":
            try:
                content: Path | bytes = from_data_uri(_padded(address))
            except DataError as error:
                raise NoImageError("bad-base64", str(error)) from error
            is_drawing = address[:14].lower() == "data:image/svg"
        else:
            content = self._find(address, self._base)
            name = content.name if isinstance(content, Path) else address
            is_drawing = _is_drawing_name(name) or (
                isinstance(content, bytes) and svg.is_svg(content)
            )
        try:
            if is_drawing:
                return self.drawing(read_source(content))
            sides = image_size(content)
        except DataError as error:
            kind = "vector-image" if is_drawing else "unreadable-image"
            raise NoImageError(kind, str(error)) from error
        return content if min(sides) >= self._min_side else None

    def drawing(self, content: bytes) -> bytes | None:
        """Render an SVG drawing; None for one that is too small or shows nothing."""
        if min(svg.drawing_size(content)) < self._min_side:
            return None
        if not svg.can_render():
            reason = "SVG drawings are rendered with the extra svg (pip install pardalis[svg])."
            raise NoImageError("vector-image", reason)
        if content not in self._drawn:
            self._drawn[content] = svg.render(content)
        return self._drawn[content] if not is_clear(self._drawn[content]) else None


def get(attributes: Attributes, name: str) -> str:
    return attributes.get(name) or ""


def declared_side(attributes: Attributes, side: str) -> float:
    """Return the declared side in pixels, and infinity when the page leaves it open."""
    match = re.fullmatch(r"(\d+)(?:\.\d+)?(?:\s*px)?", get(attributes, side).strip())
    return float(match[1][:9]) if match else OPEN


def is_late(attributes: Attributes) -> bool:
    return bool(_late(attributes, _LATE) or _late(attributes, _LATE_SET))


def _late(attributes: Attributes, names: re.Pattern[str]) -> list[str]:
    """Return the values of attributes of late loading, data-src first."""
    found = [
        name
        for name, value in attributes.items()
        if value and names.fullmatch(name) and not _COARSE.search(name)
    ]
    return [get(attributes, name) for name in sorted(found, key=lambda name: (len(name), name))]


def _late_set(attributes: Attributes) -> list[str]:
    return [each for value in _late(attributes, _LATE_SET) for each in _of_set(value)]


def addresses(node: LexborNode, attributes: Attributes) -> list[str]:
    """Return the addresses of an image, the one that a browser would load last of all first."""
    found = _late_set(attributes) + _late(attributes, _LATE)
    parent = node.parent
    if parent is not None and parent.tag == "picture":
        for each in parent.css("source"):
            values = each.attributes
            if not _OTHER_MEDIA.search(get(values, "media")):
                found += _late_set(values) + _of_set(get(values, "srcset"))
    found += _of_set(get(attributes, "srcset"))
    source = get(attributes, "src") or get(attributes, "href") or get(attributes, "xlink:href")
    return [each for each in dict.fromkeys(map(str.strip, found)) if each] + [source.strip()]


def _of_set(text: str) -> list[str]:
    """Return the addresses of a ``srcset``, the largest first."""
    found = []
    at = 0
    while (match := _CANDIDATE.match(text, at)) is not None and match.end() > at:
        at = match.end()
        address, size = match[1], match[2] or ""
        if address.endswith(","):
            address, size = address.rstrip(","), ""
        number = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)[wx]\s*", size)
        found.append((float(number[1]) if number else 1.0, address))
    return [address for _, address in sorted(found, key=lambda each: -each[0])]


def _padded(uri: str) -> str:
    """Return a data URI with the end of its base64, which browsers do not need."""
    head, comma, body = uri.partition(",")
    if not head.lower().endswith(";base64"):
        return uri
    body = "".join(unquote(body).split()).rstrip("=")
    return f"{head}{comma}{body}{'=' * (-len(body) % 4)}"


def is_image_name(address: str) -> bool:
    return (
        address.partition("?")[0]
        .lower()
        .endswith((".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".avif"))
    )


def _is_drawing_name(name: str) -> bool:
    return name.partition("?")[0].lower().endswith((".svg", ".svgz"))


def standalone(text: str) -> str:
    """Return a drawing of a page as a file of its own."""
    for name, space in _SPACES.items():
        if f"{name}=" not in text.partition(">")[0]:
            text = text.replace("<svg", f'<svg {name}="{space}"', 1)
    return text
