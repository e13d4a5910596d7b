"""The drawings of each style, by the key of what they show."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import PIL.Image

from pardalis.corpora.drawings import packages
from pardalis.corpora.emojis import key_of_hexcode, render_svg
from pardalis.corpora.packages import Package, read_members
from pardalis.documents.images import open_image
from pardalis.files import parse_json

Drawing: TypeAlias = str | bytes
"""The text of an SVG, or the bytes of an image file."""


@dataclass(frozen=True, slots=True)
class Style:
    """One way of drawing, all from one package."""

    name: str
    phrase: str  # in captions
    source: str  # what the drawings are called
    package: Package
    read: Callable[[Path], dict[str, Drawing]]

    @property
    def is_share_alike(self) -> bool:
        """True when whatever is made from the drawings must bear their licence."""
        return "-SA" in self.package.licence

    @property
    def licence(self) -> str:
        """What each document says about its image."""
        return f"{self.package.licence} ({self.source})"


def draw(drawing: Drawing, side: int) -> PIL.Image.Image:
    """Return the drawing as RGB on white, ``side`` pixels square."""
    if isinstance(drawing, str):
        return render_svg(drawing, side)
    return open_image(drawing).resize((side, side), PIL.Image.Resampling.LANCZOS)


def _openmoji(path: Path) -> dict[str, Drawing]:
    files = read_members(path, "color/svg", ".svg")
    return {key_of_hexcode(name): content.decode() for name, content in sorted(files.items())}


def _fluent_3d(path: Path) -> dict[str, Drawing]:
    files = read_members(path, "assets", ".webp")
    return {key_of_hexcode(name): content for name, content in sorted(files.items())}


def _iconify(path: Path) -> dict[str, Drawing]:
    files = read_members(path, "", ".json")
    icons, names = parse_json(files["icons"]), parse_json(files["chars"])
    return {
        key_of_hexcode(code): _icon_svg(icons, icons["icons"][name])
        for code, name in sorted(names.items())
    }


def _icon_svg(icons: dict[str, Any], icon: dict[str, Any]) -> str:
    """Return the SVG of an icon, whose view is widened to a square."""
    width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
    side = max(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {side} {side}">{icon["body"]}</svg>'
    )


STYLES = (
    Style("openmoji", "an outlined drawing", "OpenMoji", packages.OPENMOJI, _openmoji),
    Style("fluent-3d", "a 3D rendering", "Fluent Emoji", packages.FLUENT_3D, _fluent_3d),
    Style("fluent-flat", "a flat drawing", "Fluent Emoji", packages.FLUENT_FLAT, _iconify),
    Style("noto", "a shaded illustration", "Noto Emoji", packages.NOTO, _iconify),
    Style("twemoji", "a simple icon", "Twemoji", packages.TWEMOJI, _iconify),
)
