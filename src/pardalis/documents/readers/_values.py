"""Declarations of style sheets that bear on text, by what they mean to its reader."""

import re
from functools import lru_cache
from typing import Any, TypeAlias

import tinycss2

Values: TypeAlias = dict[str, str]
"""What is said of properties, by their names."""

# The beginning of a declaration.
TELLING = re.compile(
    r"(?<![\w-])(?:clip(?:-path)?|display|float|position|visibility|white-space)\s*:",
    re.IGNORECASE,
)
# A rectangle without an inside, as text for screen readers has: nothing is seen.
_CLIPS_ALL = re.compile(
    r"rect\(\W*([01])(?:px)?(?:\W+\1(?:px)?){3}\W*\)|inset\(\s*(?:50|100)%\s*\)"
)

# Words that mean the same to a reader of text; a declaration of any other does not count.
_WORDS: dict[str, dict[str, str]] = {
    "display": {
        "none": "none",
        **dict.fromkeys(("flex", "grid", "-webkit-box", "-webkit-flex"), "flex"),
        **dict.fromkeys(("inline-flex", "inline-grid"), "inline-flex"),
        **dict.fromkeys(("block", "flow-root", "list-item", "table", "table-caption",
                         "table-row-group", "table-header-group", "table-footer-group"), "block"),
        **dict.fromkeys(("inline", "inline-block", "inline-table", "ruby", "initial", "unset"),
                        "inline"),
        "table-row": "row", "table-cell": "cell",
        **dict.fromkeys(("contents", "inherit", "revert", "revert-layer", "ruby-text",
                         "ruby-base"), ""),
    },
    "float": {
        **dict.fromkeys(("left", "right", "inline-start", "inline-end"), "block"),
        **dict.fromkeys(("none", "initial", "unset", "revert", "inherit"), ""),
    },
    "position": {
        **dict.fromkeys(("absolute", "fixed"), "block"),
        **dict.fromkeys(("static", "relative", "sticky", "initial", "unset", "inherit"), ""),
    },
    "visibility": {
        "hidden": "hidden", "collapse": "hidden", "visible": "visible", "initial": "visible",
        **dict.fromkeys(("inherit", "unset", "revert", "revert-layer"), ""),
    },
    "white-space": {
        **dict.fromkeys(("pre", "pre-wrap", "pre-line", "break-spaces"), "pre"),
        **dict.fromkeys(("normal", "nowrap", "initial"), "normal"),
        **dict.fromkeys(("inherit", "unset"), ""),
    },
}  # fmt: skip


def declared(content: Any) -> tuple[Values, Values]:
    """Return what a block says in the end, and what of it is important."""
    found: tuple[Values, Values] = {}, {}
    for each in tinycss2.parse_blocks_contents(content, skip_comments=True, skip_whitespace=True):
        if each.type == "declaration" and each.lower_name in ("clip", "clip-path"):
            is_all = _CLIPS_ALL.search(tinycss2.serialize(each.value).lower()) is not None
            found[each.important]["clip"] = "all" if is_all else ""
        elif each.type == "declaration" and each.lower_name in _WORDS:
            words = (token.lower_value for token in each.value if token.type == "ident")
            meaning = _WORDS[each.lower_name].get(next(words, "?"))
            if meaning is not None:
                found[each.important][each.lower_name] = meaning
    return found


@lru_cache(maxsize=1024)
def of_attribute(style: str) -> tuple[Values, Values]:
    """Return the same of the attribute ``style`` of an element."""
    try:
        return declared(style) if TELLING.search(style) else ({}, {})
    except RecursionError:
        return {}, {}
