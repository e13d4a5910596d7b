"""SVG drawings as PNG bytes, by resvg (extra ``svg``), in bounded time and memory.

A drawing may name other files, repeat parts of itself without end, or ask for any size. The first
is refused, so that no drawing brings a private file into training; the others are counted before
anything is rendered. Text in a drawing has the fonts of the machine, as in a browser; without any
it would be left out, so such a drawing is refused.
"""

import gzip
import importlib.util
import io
import re
import zlib
from collections import Counter
from functools import cache
from typing import Any

from lxml import etree

from pardalis.documents.images import from_data_uri, image_size, is_clear
from pardalis.errors import DataError

SIDE = 1024  # pixels of the longer side of a drawing that is larger, or states no size

_LEAST = 512  # a smaller drawing is rendered at this size: it has no pixels of its own
_MOST_BYTES = 16 << 20
_MOST_ELEMENTS = 50_000  # with each repetition
_MOST_FILTERS = 200
_UNITS = {"pt": 4 / 3, "pc": 16, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96, "em": 16, "rem": 16}
_REFERENCE = re.compile(r"url\(\s*['\"]?([^'\")]*)")


# Where a drawing names fonts that the machine has not, the first of these is taken that it has.
_FONTS = {
    "serif_family": ("Times New Roman", "Liberation Serif", "DejaVu Serif", "Noto Serif"),
    "sans_serif_family": ("Arial", "Helvetica", "Liberation Sans", "DejaVu Sans", "Noto Sans"),
    "monospace_family": ("Courier New", "Liberation Mono", "DejaVu Sans Mono", "Noto Sans Mono"),
}


@cache
def can_render() -> bool:
    """Whether the extra ``svg`` is installed."""
    return importlib.util.find_spec("resvg_py") is not None


def render(content: bytes) -> bytes:
    """Return a drawing, SVG or gzipped SVG, as PNG bytes; what it leaves clear is clear.

    Raises:
        DataError: it is no sound SVG, needs other files, or would take long to render.
    """
    import resvg_py

    root = _root(_unpacked(content))
    _check(root)
    width, height = _size(root)
    scale = min(SIDE, max(_LEAST, width, height)) / max(width, height)
    if not root.get("viewBox"):
        root.set("viewBox", f"0 0 {width:g} {height:g}")
    root.set("width", str(max(1, round(width * scale))))
    root.set("height", str(max(1, round(height * scale))))
    fonts = _fonts() if any(map(_is_text, root.iter(etree.Element))) else None
    if fonts == {}:
        raise DataError(
            "The SVG drawing has text, and this machine has no font for it; install one, such as "
            "DejaVu."
        )
    markup = etree.tostring(root, encoding="unicode")
    try:
        return bytes(resvg_py.svg_to_bytes(svg_string=markup, **(fonts or {})))
    except ValueError as error:
        raise DataError(f"The SVG drawing cannot be rendered: {error}.") from error


def _is_text(element: etree._Element) -> bool:
    is_text = etree.QName(element).localname == "text"
    return is_text and bool("".join(element.itertext()).strip())


@cache
def _fonts() -> dict[str, Any]:
    """Return a font of each kind that the machine has; none if it has none of those known."""
    found: dict[str, str] = {}
    for kind, names in _FONTS.items():
        if name := next(filter(_has_font, names), ""):
            found[kind] = name
    some = next(iter(found.values()), "")
    return {kind: found.get(kind, some) for kind in _FONTS} if some else {}


def _has_font(name: str) -> bool:
    import resvg_py

    space = "http://www.w3.org/2000/svg"
    text = f'<text y="9" font-family="{name}">I</text>'
    markup = f'<svg xmlns="{space}" width="9" height="9">{text}</svg>'
    # Else the system's font of a kind would be drawn in its place.
    no_other: dict[str, Any] = dict.fromkeys(_FONTS, "-")
    return not is_clear(bytes(resvg_py.svg_to_bytes(svg_string=markup, **no_other)))


def drawing_size(content: bytes) -> tuple[float, float]:
    """Return the width and height of a drawing in its own units; raises as :func:`render`."""
    return _size(_root(_unpacked(content)))


def is_svg(content: bytes) -> bool:
    """Whether bytes begin as SVG does, or are gzipped."""
    return content.startswith(b"\x1f\x8b") or b"<svg" in content[:4096]


def _unpacked(content: bytes) -> bytes:
    if content.startswith(b"\x1f\x8b"):
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                content = file.read(_MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"The SVG drawing is not sound gzip: {error}.") from error
    if len(content) > _MOST_BYTES:
        raise DataError(f"The SVG drawing has more than {_MOST_BYTES >> 20} MiB.")
    return content


def _root(content: bytes) -> etree._Element:
    # Entities stay as they are, so that none can multiply.
    parser = etree.XMLParser(resolve_entities=False, no_network=True, remove_comments=True)
    try:
        root = etree.fromstring(content, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise DataError(f"The SVG drawing is not sound XML: {error}.") from error
    if etree.QName(root).localname != "svg":
        raise DataError(f"The drawing's root is <{etree.QName(root).localname}>, not <svg>.")
    return root


def _size(root: etree._Element) -> tuple[float, float]:
    """Return the stated width and height, or those of the view box, or a square."""
    box = re.findall(r"[-+.\deE]+", root.get("viewBox", ""))
    sides = [_number(box[2]), _number(box[3])] if len(box) == 4 else [0.0, 0.0]
    ratio = sides[1] / sides[0] if all(sides) else 0.0
    width, height = _length(root.get("width", "")), _length(root.get("height", ""))
    if ratio:
        width, height = width or height / ratio, height or width * ratio
    return (width or sides[0] or SIDE, height or sides[1] or SIDE)


def _length(text: str) -> float:
    match = re.fullmatch(r"\s*([-+.\deE]+?)\s*(px|pt|em|ex|mm|cm|in|pc|rem)?\s*", text)
    return _number(match[1]) * _UNITS.get(match[2], 1.0) if match else 0.0


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if 1e-6 < number < 1e6 else 0.0


def _check(root: etree._Element) -> None:
    """Raise DataError for a drawing that names other files, or holds too much."""
    named: dict[str, etree._Element] = {}
    styled: list[str] = []  # what style sheets refer to
    for element in root.iter(etree.Element):
        if element.get("id"):
            named.setdefault(element.get("id"), element)
        for name, value in element.attrib.items():
            if etree.QName(name).localname == "href" and etree.QName(element).localname != "a":
                _check_reference(value)
        if etree.QName(element).localname == "foreignObject" and not _has_other(element):
            raise DataError("The SVG drawing holds HTML (foreignObject), which is not rendered.")
        style = element.text or "" if etree.QName(element).localname == "style" else ""
        if "@import" in style:
            raise DataError("The SVG drawing imports a style sheet; only its own are read.")
        styled += [each.strip()[1:] for each in _REFERENCE.findall(style)]
    for name in styled:
        # Which elements the sheet means is not known here, so what it names may name nothing else.
        if any(each.get("class") for each in named.get(name, ())):
            raise DataError("The SVG drawing has style sheets that refer to styled parts.")
    sizes = _expanded(root, named)
    if sizes["elements"] > _MOST_ELEMENTS or sizes["filters"] > _MOST_FILTERS:
        raise DataError("The SVG drawing has too many parts, with their repetitions.")


def _has_other(element: etree._Element) -> bool:
    """Whether a drawing brings something that is shown in place of an element."""
    above = element.getparent()
    return above is not None and etree.QName(above).localname == "switch" and len(above) > 1


def _check_reference(value: str) -> None:
    value = value.strip()
    if value.startswith("#") or not value:
        return
    if not value[:11].lower() == "data:image/" or value[:14].lower() == "data:image/svg":
        raise DataError(f"The SVG drawing refers to {value[:80]!r}; only its own parts are read.")
    image_size(from_data_uri(value))  # refuses what has too many pixels


def _expanded(root: etree._Element, named: dict[str, etree._Element]) -> Counter[str]:
    """Return how many elements and filters a drawing has once all references are followed."""
    known: dict[etree._Element, Counter[str]] = {}
    open_: set[etree._Element] = set()
    stack = [(root, False)]
    while stack:
        element, is_done = stack.pop()
        below = [*element.iterchildren(etree.Element), *_referred(element, named)]
        if is_done:
            is_filter = etree.QName(element).localname.startswith("fe")
            total = Counter({"elements": 1, "filters": int(is_filter)})
            for each in below:
                total += known[each]
                total = Counter({name: min(n, 1 << 40) for name, n in total.items()})
            known[element] = total
            open_.discard(element)
        elif element not in known:
            if any(each in open_ or each is element for each in below):
                raise DataError("The SVG drawing has parts that refer to themselves.")
            open_.add(element)
            stack.append((element, True))
            stack += [(each, False) for each in below if each not in known]
    return known[root]


def _referred(element: etree._Element, named: dict[str, etree._Element]) -> list[etree._Element]:
    names = [
        value.strip()[1:]
        for name, value in element.attrib.items()
        if etree.QName(name).localname == "href" and value.strip().startswith("#")
    ]
    if etree.QName(element).localname == "a":
        names = []
    for value in element.attrib.values():
        if "url(" in value:
            names += [each.strip()[1:] for each in _REFERENCE.findall(value)]
    return [named[name] for name in names if name in named]
