"""What corpora of emoji drawings share: keys, families, splits, rendering, the licence manifest.

A split holds whole families of concepts, never single files: "man teacher" and "woman teacher" are
nearly the same drawing, and one of them in each split would let a model look up held-out images.
"""

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import PIL.Image

from pardalis.documents.images import open_image
from pardalis.files import write_json, write_text

SKIN_TONES = frozenset({"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"})
RUDE = frozenset({"1f595"})

_VARIATION = "fe0f"

# What tells the drawings of one family apart: man and woman as people, gender signs, facing right.
_PERSON = "1f9d1"
_PEOPLE = frozenset({"1f468", "1f469"})
_MODIFIERS = ("-200d-2640", "-200d-2642", "-200d-27a1")


def key_of_hexcode(hexcode: str) -> str:
    """Return the code points in lower case without variation selectors, one for all spellings."""
    return "-".join(part for part in hexcode.lower().split("-") if part != _VARIATION)


def without_skin_tones(key: str) -> str:
    """Return the key of the same drawing without any skin tone."""
    return "-".join(part for part in key.split("-") if part not in SKIN_TONES)


def family(key: str) -> str:
    """Return what the drawings of one family share: the key without gender and direction."""
    for modifier in _MODIFIERS:
        key = key.replace(modifier, "")
    return "-".join(_PERSON if part in _PEOPLE else part for part in key.split("-"))


def bucket(text: str) -> int:
    """Return a number from 0 to 99: a fixed function of the text, whatever else is in a corpus."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big") % 100


def render_svg(svg: str, side: int) -> PIL.Image.Image:
    """Return a drawing as RGB on white, ``side`` pixels square."""
    import resvg_py

    # No drawing holds text, so the fonts of the machine must not matter.
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True)
    with PIL.Image.open(io.BytesIO(bytes(png))) as image:
        return open_image(image)


def write_licences(packages: Iterable[tuple[Any, ...]], folder: Path) -> None:
    """Write the licence manifest as ``LICENCES.json`` and ``.md``.

    Args:
        packages: name, version, licence, attribution, what was taken and how much, of each.
    """
    keys = ("package", "version", "licence", "attribution", "taken", "count")
    records = [dict(zip(keys, package, strict=True)) for package in packages]
    write_json(folder / "LICENCES.json", {"packages": records})
    columns = ("package", "version", "licence", "taken", "count", "attribution")
    rows = [columns, ("---",) * len(columns)]
    rows += [tuple(str(record[column]) for column in columns) for record in records]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    intro = (
        "This corpus was made from the packages below. Whoever passes it on must keep these lines."
    )
    write_text(folder / "LICENCES.md", f"# Licences\n\n{intro}\n\n{table}\n")
