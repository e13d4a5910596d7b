"""What a browser shows of a page: its text and images in reading order.

:class:`Walk` passes once over the tree of a page (:mod:`._tree`) and hands what it finds to an
:class:`~pardalis.documents.readers._assemble.Assembly`. Each rule that leaves something out counts
it, so that nothing is dropped in silence.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from selectolax.lexbor import LexborHTMLParser, LexborNode, SelectolaxError

from pardalis.config import check_at_least, check_fractions
from pardalis.documents.document import Image
from pardalis.documents.readers._assemble import Assembly, Block
from pardalis.documents.readers._cascade import Style, TooMuchError, Tree
from pardalis.documents.readers._counts import Counts
from pardalis.documents.readers._inline import formula, list_marker, lowered, raised
from pardalis.documents.readers._page_images import (
    OPEN,
    Attributes,
    Find,
    NoImageError,
    PageImages,
    addresses,
    declared_side,
    get,
    is_image_name,
    is_late,
    standalone,
)
from pardalis.documents.readers._styles import Sheets
from pardalis.documents.readers._values import Values
from pardalis.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class PageOptions:
    """What of a page is its content."""

    content: str = ""  # CSS selector of the elements that hold it; "": the body
    leave_out: str = ""  # CSS selector of elements that do not belong to it
    # What stands on more than this share of a source's pages is left out: a text of a line or a
    # table cell, in elements of the same kind and class, or an image. 1: nothing is.
    repeated: float = 1.0
    style_sheets: bool = True  # what they hide is left out
    declared_side: int = 48  # pixels: images that declare a smaller width or height are left out
    min_side: int = 8  # pixels: images that have fewer in width or height are left out

    def __post_init__(self) -> None:
        check_at_least(self, declared_side=0, min_side=0)
        check_fractions(self, "repeated")
        for name in ("content", "leave_out"):
            selector = getattr(self, name)
            try:
                LexborHTMLParser("<p>").css(selector or "p")
            except SelectolaxError:
                raise ConfigError(
                    f'{name} must be a CSS selector, such as "main" or "#content .article", got '
                    f"{selector!r}."
                ) from None


# Elements that begin and end a line of their own.
_BLOCKS = frozenset((
    "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details",
    "dialog", "dir", "div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1",
    "h2", "h3", "h4", "h5", "h6", "header", "hgroup", "hr", "legend", "li", "main", "menu", "nav",
    "ol", "p", "pre", "search", "section", "summary", "table", "tbody", "tfoot", "thead", "ul",
    "listing", "xmp", "plaintext",
))  # fmt: skip

# What no browser shows, and nobody misses.
_UNSEEN = frozenset((
    "area", "base", "datalist", "head", "link", "meta", "noembed", "noframes", "param", "rp",
    "source", "style", "template", "title", "track",
))  # fmt: skip

_CONTROLS = frozenset(("button", "input", "meter", "progress", "select", "textarea"))
_MEDIA = frozenset(("audio", "canvas", "embed", "frame", "frameset", "iframe", "applet"))
_CHECKED = frozenset(("nav", "search", "header", "footer", "dialog", *_CONTROLS, *_MEDIA))
_VERBATIM = frozenset(("pre", "listing", "xmp", "plaintext"))
_SECTIONS = frozenset(("article", "aside", "blockquote", "figure", "main", "section", "table"))
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6", "summary", "dt", "legend", "caption"))
_INLINE = frozenset(("a", "b", "em", "i", "span", "strong", "svg", "small", "sup"))
_CELLS = frozenset(("td", "th"))
_LAYOUTS = {
    **dict.fromkeys(_BLOCKS, "block"),
    "tr": "row",
    **dict.fromkeys(_CELLS, "cell"),
}
_LANDMARKS = frozenset(("banner", "contentinfo"))

_LEAST_DRAWING = 2000  # characters; a shorter one that states no size is an icon, mostly
_DRAWN = "path, rect, circle, ellipse, line, polygon, polyline, text, use, foreignObject"
# Of several reasons why an element has no image, the one that is told.
_GRAVITY = (
    "unreadable-image", "bad-base64", "vector-image", "outside-image", "missing-image",
    "remote-image",
)  # fmt: skip

_LETTERS = re.compile(r"[^\W\d_]")
_HIDING = {("display", "none"), ("visibility", "hidden"), ("clip", "all")}
_RENDERED = re.compile(
    r"(?<!\S)(?:MathJax(?:_Preview|_Display|_SVG|_SVG_Display|_CHTML)?|mwe-math-fallback-image\S*)(?!\S)"
)
_LINE_NUMBERS = re.compile(r"(?<!\S)(?:linenos|lineno|line-numbers?|blob-num|gutter)(?!\S)")
_SEPARATOR = re.compile(r"(?<![\w-])(?:sep|separator|divider)(?![\w-])")
_PERMALINKS = frozenset(("", "#", "¶", "§", "🔗", "permalink", "link", "↩", "↩︎"))


@dataclass(slots=True)
class _List:
    """An ordered list that is open: the number of its next item."""

    kind: str
    number: int
    step: int


class Walk:
    """One pass over a page."""

    def __init__(self, tree: LexborHTMLParser, find: Find, options: PageOptions, page: str) -> None:
        self.counts = Counts(page)
        self._tree, self._find, self._options = tree, find, options
        self._assembly = Assembly()
        self._n_sections = 0  # open: a header inside belongs to the article
        self._n_headings = 0
        self._lists: list[_List | None] = []
        self._style = Style(tree, 0)
        self._sheets: Sheets | None = None
        self._is_visible = True  # what is invisible takes part in the lines all the same
        self._is_flex = False  # the element around: its parts stand apart
        self._slotted: dict[int, tuple[list[LexborNode], Style]] = {}  # what a slot shows
        self._recent: list[Path | bytes] = []  # images; a noscript may repeat one
        base = tree.css_first("base[href]")
        self._base = get(base.attributes, "href") if base is not None else ""
        self._images = PageImages(tree, find, self._base, options.min_side)

    def read_sheets(self, sheets: Sheets, n_tags: int) -> None:
        """Read the style sheets of the page.

        Args:
            n_tags: at least as many as it has elements.
        """
        self._sheets = sheets
        self._style = self._style_of_tree(self._tree, n_tags)

    def _style_of_tree(self, tree: Tree, n_tags: int) -> Style:
        if self._sheets is None:
            return Style(tree, n_tags)
        style, unread = self._sheets.style_of(tree, n_tags, self._sheet, self._base)
        for address in unread:
            self.counts.add("unread-style", address)
        return style

    def _sheet(self, address: str, base: str) -> Path | bytes | None:
        try:
            return self._find(address, base)
        except NoImageError:
            return None

    def run(self) -> list[Block]:
        """Return the blocks of the page; raises ValueError if nothing matches the selector."""
        body = self._tree.body
        if body is None:
            return []
        options = self._options
        left_out = frozenset(node.mem_id for node in self._matched(options.leave_out))
        if not options.content:
            self._pass(body, left_out)
            return self._assembly.finish()
        content = self._matched(options.content)
        ids = frozenset(node.mem_id for node in content)
        if not content:
            raise ValueError(f"nothing in it matches the selector {options.content!r}")
        roots = [node for node in content if not _is_below(node, ids)]
        for root in roots:
            self._assembly.line()
            self._pass(root, left_out)
        if n_outside := _n_words(body) - sum(map(_n_words, roots)):
            self.counts.add("outside-content", "", n_outside)
        return self._assembly.finish()

    def _matched(self, selector: str) -> list[LexborNode]:
        return self._tree.css(selector) if selector else []

    def _pass(self, root: LexborNode, left_out: frozenset[int]) -> None:
        """Visit a subtree in order, on a stack of its own."""
        place = ""
        rest: list[Iterator[LexborNode]] = [iter((root,))]  # of each element that is open
        # It, the place and the style around it, and what to undo.
        open_: list[tuple[LexborNode, str, Style, str]] = []
        while rest:
            node = next(rest[-1], None)
            if node is None:
                rest.pop()
                if open_:
                    element, place, self._style, undone = open_.pop()
                    self._leave(element, undone)
            elif node.is_text_node:
                if self._is_visible:
                    self._assembly.write(node.text_content or "", place)
            elif node.is_element_node:
                tag, attributes = node.tag or "", node.attributes
                if node.mem_id in left_out and open_:
                    self.counts.add("left-out", node.text() or "")
                elif (undo := self._enter(node, tag, attributes, not open_)) is not None:
                    open_.append((node, place, self._style, undo))
                    rest.append(self._children(node, tag))
                    if tag in _BLOCKS or tag in _CELLS:
                        place = f"{tag}.{get(attributes, 'class')}"

    def _children(self, node: LexborNode, tag: str) -> Iterator[LexborNode]:
        """Return what stands in an element in the order in which it is shown, and use its style."""
        if tag == "table":
            feet = [each for each in _siblings(node.child) if each.tag == "tfoot"]
            if feet:
                return iter([*(e for e in _siblings(node.child) if e.tag != "tfoot"), *feet])
        if tag == "slot" and node.mem_id in self._slotted:
            nodes, self._style = self._slotted[node.mem_id]
            return iter(nodes)
        return self._shadow(node) or _siblings(node.child)

    def _shadow(self, host: LexborNode) -> Iterator[LexborNode] | None:
        """Return the shadow tree that an element shows in place of its children; None: it has none.

        What stands in the element itself is shown in the slots of that tree.
        """
        template = next(filter(_is_shadow, _siblings(host.child)), None)
        tree = next(iter(template.template_fragments()), None) if template is not None else None
        if tree is None:
            return None
        inside: dict[str, list[LexborNode]] = {}
        for each in _siblings(host.child):
            if each.is_text_node or (each.is_element_node and not _is_shadow(each)):
                inside.setdefault(get(each.attributes, "slot") if each.tag else "", []).append(each)
        for slot in tree.css("slot"):
            if found := inside.pop(get(slot.attributes, "name"), None):
                self._slotted[slot.mem_id] = found, self._style
        for each in (each for others in inside.values() for each in others):
            if (text := each.text() or "").strip():
                self.counts.add("hidden", text)
        self._style = self._style_of_tree(tree, len(tree.css("*")))
        return _siblings(tree.child)

    def _enter(
        self, node: LexborNode, tag: str, attributes: Attributes, is_root: bool
    ) -> str | None:
        """Begin an element; return what :meth:`_leave` undoes, or None if it is not gone into."""
        if tag in _UNSEEN:
            return None
        style = self._style_of(node, tag, attributes)
        if not is_root and self._is_left_out(node, tag, attributes, style):
            return None
        undo = self._begin(node, tag, style, is_root)
        if (special := _SPECIAL.get(tag)) is not None:
            within = special(self, node, attributes) if self._is_visible else None
            if within is None:
                self._leave(node, undo)
                return None
            return undo + within
        if (
            tag in ("span", "i")
            and node.child is None
            and _SEPARATOR.search(get(attributes, "class"))
        ):
            self._assembly.write(" ", "span")  # the style sheet draws a sign there
        if behind := self._images.behind(attributes):
            self.counts.add("background", behind[0])
        if tag in _SECTIONS or get(attributes, "role") in ("main", "article"):
            self._n_sections += 1
            undo += "s"
        if tag in _HEADINGS:
            self._n_headings += 1
            undo += "h"
        if tag in ("ol", "ul", "menu", "dir"):
            self._lists.append(_list_of(node, attributes) if tag == "ol" else None)
            undo += "l"
        elif tag == "li":
            marker = self._marker(attributes)
            if self._is_visible and "b" in undo:
                self._assembly.marker += marker
        return undo

    def _begin(self, node: LexborNode, tag: str, style: Values, is_root: bool) -> str:
        """Begin the line or the cell of an element, and what it hands down to those in it."""
        layout = style.get("display") or _LAYOUTS.get(tag, "inline")
        is_apart = self._is_flex or style.get("float") or style.get("position")
        if is_apart and layout.startswith("inline") and node.child is not None:
            layout = "flex" if layout == "inline-flex" else "block"
        undo = ""
        if layout in ("block", "flex"):
            self._assembly.line()
            undo += "b"
        elif layout == "row":
            self._assembly.row()
            undo += "r"
        elif layout == "cell" and _follows_another(node):
            self._assembly.cell()
        if layout.endswith("flex") != self._is_flex:
            self._is_flex = not self._is_flex
            undo += "f"
        spaces = style.get("white-space") or ("pre" if tag in _VERBATIM else "")
        if spaces and (spaces == "pre") != self._assembly.is_verbatim:
            self._assembly.is_verbatim = not self._assembly.is_verbatim
            undo += "v"
        visibility = style.get("visibility") if not is_root else ""
        if visibility and (visibility == "visible") != self._is_visible:
            self._is_visible = not self._is_visible
            undo += "i"
            if not self._is_visible:
                self.counts.add("hidden", node.text() or "")
        return undo

    def _leave(self, node: LexborNode, undo: str) -> None:
        """End an element."""
        for each in undo:
            if each == "b":
                self._assembly.line()
            elif each == "r":
                self._assembly.row()
            elif each == "f":
                self._is_flex = not self._is_flex
            elif each == "v":
                self._assembly.is_verbatim = not self._assembly.is_verbatim
            elif each == "i":
                self._is_visible = not self._is_visible
            elif each == "s":
                self._n_sections -= 1
            elif each == "h":
                self._n_headings -= 1
            elif each == "l":
                self._lists.pop()
            else:
                self._assembly.join(each)
        if node.tag == "li":
            self._assembly.marker = ""

    def _style_of(self, node: LexborNode, tag: str, attributes: Attributes) -> Values:
        """Return what is said of an element, but of what is shown beside the sheets nothing."""
        try:
            style = self._style.of(node, tag, attributes)
        except TooMuchError as error:
            self.counts.add("unread-style", str(error))
            return {}
        if not style or not (_HIDING & style.items()):
            return style
        # A script shows an image that is loaded late; a formula may be hidden beside its image.
        is_shown = (tag == "img" and is_late(attributes)) or _has_formula(node)
        return {} if is_shown else style

    def _is_left_out(
        self, node: LexborNode, tag: str, attributes: Attributes, style: Values
    ) -> bool:
        """Whether a rule leaves an element out; counts it then."""
        if not attributes and not style and tag not in _CHECKED:
            return False
        kind = self._kind_of_rule(node, tag, attributes)
        if not kind:
            display = style.get("display")
            is_closed = "hidden" in attributes or "popover" in attributes
            is_closed = is_closed or (tag == "dialog" and "open" not in attributes)
            if (
                display == "none"
                or style.get("clip") == "all"
                or (not display and is_closed and not _has_formula(node))
            ):
                kind = "hidden"
        if not kind:
            return False
        text = node.text() or ""
        if kind == "control" and tag != "button":
            text = get(attributes, "name") or tag
        if text.strip() or kind in ("control", "embedded") or node.css_first("img") is not None:
            self.counts.add(kind, text if kind != "embedded" else f"<{tag}>")
        return True

    def _kind_of_rule(self, node: LexborNode, tag: str, attributes: Attributes) -> str:
        role, classes = get(attributes, "role").lower(), get(attributes, "class")
        if tag in ("nav", "search") or role in ("navigation", "search"):
            return "navigation"
        if not self._n_sections and (tag in ("header", "footer") or role in _LANDMARKS):
            is_title = node.css_first("h1") is not None and node.css_first("a, nav, form") is None
            return "navigation" if not is_title else ""
        if tag in _INLINE and get(attributes, "aria-hidden").lower() == "true":
            return "" if node.css_first("img, svg") is not None and tag != "svg" else "decoration"
        if classes and _RENDERED.search(classes) and tag in ("span", "div", "img"):
            return "decoration"  # the formula itself stands beside it
        if tag in ("td", "span", "div") and classes and _LINE_NUMBERS.search(classes):
            return "line-numbers" if not _LETTERS.search(node.text() or "") else ""
        if tag in _CONTROLS and not (tag == "button" and self._n_headings):
            return "control" if get(attributes, "type").lower() != "image" else ""
        if tag == "a" and get(attributes, "href").startswith("#"):
            is_link = (node.text() or "").strip().lower() in _PERMALINKS
            return "permalink" if is_link and node.css_first("img") is None else ""
        return "embedded" if tag in _MEDIA else ""

    # ── elements with rules of their own ─────────────────────────────────────────────────────────

    def _br(self, node: LexborNode, attributes: Attributes) -> None:
        if self._assembly.is_verbatim:
            self._assembly.write("\n", "pre")
        else:
            self._assembly.line()

    def _q(self, node: LexborNode, attributes: Attributes) -> str:
        self._assembly.write("“", "q")
        return "”"

    def _rt(self, node: LexborNode, attributes: Attributes) -> str:
        self._assembly.join("(")
        return ")"

    def _sup(self, node: LexborNode, attributes: Attributes) -> str | None:
        return self._shifted(node, raised)

    def _sub(self, node: LexborNode, attributes: Attributes) -> str | None:
        return self._shifted(node, lowered)

    def _shifted(self, node: LexborNode, written: Callable[[str], str]) -> str | None:
        text = " ".join((node.text() or "").split())
        if written is raised and self._assembly.ends_with_word() and _is_note(node, text):
            self._assembly.join(f"[{text}]")
            return None
        if not self._assembly.ends_with_word() or node.css_first("img, a, svg, math") is not None:
            return ""
        self._assembly.join(written(text))
        return None

    def _math(self, node: LexborNode, attributes: Attributes) -> None:
        text = " ".join(formula(node).split())
        if attributes.get("display") == "block":
            self._assembly.line()
            self._assembly.write(text, "math")
            self._assembly.line()
        else:
            self._assembly.write(text, "math")

    def _script(self, node: LexborNode, attributes: Attributes) -> None:
        """Take a formula that the page's script shows, and nothing of other scripts."""
        if get(attributes, "type").lower().startswith("math/tex"):
            self._assembly.write(node.text() or "", "math")

    def _noscript(self, node: LexborNode, attributes: Attributes) -> None:
        """Take the images that a page shows without its script, unless they stand before it."""
        for each in node.css("img"):
            self._img(each, each.attributes, is_repeated=True)
        if text := (node.text() or "").strip():
            self.counts.add("hidden", text)

    def _input(self, node: LexborNode, attributes: Attributes) -> None:
        self._img(node, attributes)  # of the type image

    def _object(self, node: LexborNode, attributes: Attributes) -> str | None:
        address = get(attributes, "data")
        if get(attributes, "type").lower().startswith("image/") or is_image_name(address):
            self._img(node, {**attributes, "src": address})
            return None
        if node.css_first("img, p, embed") is None:
            self.counts.add("embedded", "<object>")
        return ""  # what it shows if it cannot be loaded

    def _video(self, node: LexborNode, attributes: Attributes) -> None:
        self.counts.add("embedded", "<video>")
        if poster := get(attributes, "poster"):
            self._img(node, {"src": poster})

    # ── images ───────────────────────────────────────────────────────────────────────────────────

    def _img(self, node: LexborNode, attributes: Attributes, is_repeated: bool = False) -> None:
        """Add the image of an element: the first of its addresses at which there is one."""
        sides = [declared_side(attributes, side) for side in ("width", "height")]
        if min(sides) < self._options.declared_side and not is_late(attributes):
            self.counts.add("small-image", get(attributes, "src")[:80])
            return
        failures: list[tuple[str, NoImageError]] = []
        is_small = False
        behind = [] if is_repeated else self._images.behind(attributes)
        for address in [*behind, *addresses(node, attributes)]:
            try:
                source = self._images.source(address)
                if is_repeated and any(source == each for each in self._recent):
                    return
                if source is None:
                    is_small = True
                    continue
            except NoImageError as error:
                failures.append((address, error))
                continue
            self._recent = [*self._recent[-3:], source]
            alt = " ".join(get(attributes, "alt").split())
            self._assembly.image(Image(source, alt), "img")
            return
        if is_small:
            self.counts.add("small-image", get(attributes, "src")[:80])
        else:
            address, error = min(failures, key=lambda each: _GRAVITY.index(each[1].kind))
            shown = address[:40] if address[:5].lower() == "data:" else address
            self.counts.reject(shown, error.kind, str(error))

    def _svg(self, node: LexborNode, attributes: Attributes) -> None:
        """Render a drawing that stands in the page, if it is more than an icon."""
        images = node.css("image")
        if images and node.css_first(_DRAWN) is None:  # as the covers of books are
            for each in images:
                self._img(each, each.attributes)
            return
        text = node.html or ""
        sides = [declared_side(attributes, side) for side in ("width", "height")]
        is_icon = min(sides) < self._options.declared_side or (
            max(sides) == OPEN and len(text) < _LEAST_DRAWING
        )
        if is_icon:
            self.counts.add("small-image", "<svg>")
            return
        try:
            source = self._images.drawing(standalone(text).encode())
        except (DataError, NoImageError) as error:
            self.counts.reject("<svg>", "vector-image", str(error))
            return
        if source is None:
            self.counts.add("small-image", "<svg>")
        else:
            self._assembly.image(Image(source, ""), "svg")

    def _marker(self, attributes: Attributes) -> str:
        """Return the number of the next item, which the page may state."""
        if not self._lists or (ordered := self._lists[-1]) is None:
            return ""
        ordered.number = _integer(get(attributes, "value"), ordered.number)
        marker = list_marker(ordered.kind, ordered.number)
        ordered.number += ordered.step
        return marker


_SPECIAL: dict[str, Callable[[Walk, LexborNode, Attributes], str | None]] = {
    "amp-anim": Walk._img,
    "amp-img": Walk._img,
    "br": Walk._br,
    "img": Walk._img,
    "image": Walk._img,
    "input": Walk._input,
    "math": Walk._math,
    "noscript": Walk._noscript,
    "object": Walk._object,
    "q": Walk._q,
    "rt": Walk._rt,
    "script": Walk._script,
    "sub": Walk._sub,
    "sup": Walk._sup,
    "svg": Walk._svg,
    "video": Walk._video,
}


def _siblings(node: LexborNode | None) -> Iterator[LexborNode]:
    """Yield a node and all that follow it in the same element."""
    while node is not None:
        yield node
        node = node.next


def _is_shadow(node: LexborNode) -> bool:
    """Whether it is the shadow tree of the element around it, as pages are saved with it."""
    if node.tag != "template":
        return False
    attributes = node.attributes
    return "shadowrootmode" in attributes or "shadowroot" in attributes


def _is_note(node: LexborNode, text: str) -> bool:
    """Whether a raised text is the sign of a note, which leads to it: a number or a letter."""
    links = node.css("a[href]")
    address = get(links[0].attributes, "href") if len(links) == 1 else ""
    return "#" in address and text.isalnum() and len(text) <= 3 and node.css_first("img") is None


def _is_below(node: LexborNode, ids: frozenset[int]) -> bool:
    """Whether an element lies in one of several others."""
    above = node.parent
    while above is not None:
        if above.mem_id in ids:
            return True
        above = above.parent
    return False


def _follows_another(node: LexborNode) -> bool:
    """Whether an element stands before it below the same one."""
    before = node.prev
    while before is not None and not before.is_element_node:
        before = before.prev
    return before is not None


def _has_formula(node: LexborNode) -> bool:
    """Whether an element holds a formula with its text, or a formula and nothing else."""
    if node.css_first("math[alttext]") is not None:
        return True
    inside = [e for e in _siblings(node.child) if e.is_element_node or (e.text() or "").strip()]
    return len(inside) == 1 and inside[0].tag == "math"


def _n_words(root: LexborNode) -> int:
    return sum(
        len((each.text_content or "").split())
        for each in root.traverse(include_text=True)
        if each.is_text_node and each.parent is not None and each.parent.tag not in _UNSEEN
    )


def _list_of(node: LexborNode, attributes: Attributes) -> _List:
    is_reversed = "reversed" in attributes
    n_items = 0
    if is_reversed:
        child = node.child
        while child is not None:
            n_items += child.tag == "li"
            child = child.next
    first = _integer(get(attributes, "start"), n_items if is_reversed else 1)
    return _List(get(attributes, "type"), first, -1 if is_reversed else 1)


def _integer(text: str, default: int) -> int:
    match = re.match(r"\s*([-+]?\d{1,9})", text)
    return int(match[1]) if match else default
