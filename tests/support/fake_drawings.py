"""Packages in the layouts of the drawings' sources, with plain rectangles as drawings."""

import hashlib
import io
import itertools
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from pardalis.corpora import FETCHED
from pardalis.corpora.drawings.packages import (
    EMOJIBASE,
    FLUENT_3D,
    FLUENT_FLAT,
    NOTO,
    OPENMOJI,
    TWEMOJI,
)
from pardalis.corpora.packages import Package

N_THINGS = 70  # enough for every split and some held-out cells
HEXCODES = [f"{0x1F900 + i:X}" for i in range(N_THINGS)]
RUDE, WAVE, SQUARE, JAPAN = "1F595", "1F44B", "25FB-FE0F", "1F1EF-1F1F5"
BRAND, PERSON, IBIS = "F000", "E000", "E001"  # OpenMoji's extras
# Of the last things: weapons and flags, which conversations are about.
_WEAPONS = ("axe", "bomb", "dagger", "atom bomb", "kitchen knife", "bow and arrow")
FOOD = {45: "leek", 46: "salt", 47: "egg", 48: "red onion"}
_LABELS = {
    **FOOD,
    **{50 + n: weapon for n, weapon in enumerate(_WEAPONS)},
    **{60 + n: f"flag: Land {n}" for n in range(6)},
}


def write_fake_packages(folder: Path, also: Sequence[str] = ()) -> None:
    """Write all packages; ``twemoji`` draws thing 1 like thing 0, and lacks thing 2.

    Args:
        also: further hexcodes that all styles draw.
    """
    folder.mkdir(parents=True)
    unicode_codes = [*HEXCODES, RUDE, WAVE, f"{WAVE}-1F3FB", SQUARE, JAPAN, *also]
    extras = {BRAND: "brand", PERSON: "people", IBIS: "animals-nature"}
    labels = {code: _LABELS.get(i, f"thing {i}") for i, code in enumerate(HEXCODES)}
    labels |= {
        RUDE: "middle finger",
        WAVE: "waving hand",
        SQUARE: "man’s square",
        JAPAN: "flag: Japan",
    }
    entries: list[dict[str, Any]] = [
        {"hexcode": code, "label": label} for code, label in labels.items()
    ]
    for entry in entries:
        entry["group"] = 4 if entry["label"] in FOOD.values() else 7
        if entry["hexcode"] == WAVE:
            tone = {"hexcode": f"{WAVE}-1F3FB", "label": "waving hand: light skin tone"}
            entry["skins"] = [tone]
    pack(folder, EMOJIBASE, {"en/data.json": json.dumps(entries), "de/data.json": "[]"})
    records = [
        {"hexcode": code, "annotation": f"extra {kind}", "group": "extras-openmoji",
         "subgroups": kind}
        for code, kind in extras.items()
    ]  # fmt: skip
    drawn = {f"color/svg/{code}.svg": _svg(OPENMOJI, code) for code in [*unicode_codes, *extras]}
    black = {f"black/svg/{code}.svg": _svg(OPENMOJI, "black") for code in HEXCODES}
    pack(folder, OPENMOJI, {"data/openmoji.json": json.dumps(records)} | drawn | black)
    webp = {f"assets/{code.lower()}.webp": _webp(code) for code in unicode_codes}
    webp["assets/25fb.webp"] = _webp("25fb")  # the same thing without its variation selector
    pack(folder, FLUENT_3D, webp)
    for package in (FLUENT_FLAT, NOTO):
        _pack_icons(folder, package, {code: code for code in unicode_codes})
    like = {code: code for code in unicode_codes} | {HEXCODES[1]: HEXCODES[0]}
    del like[HEXCODES[2]]
    _pack_icons(folder, TWEMOJI, like)


def pinned_hash(path: Path) -> str:
    """Return the pinned hash of a file of any corpus, in place of the hash of the fake."""
    packages = itertools.chain.from_iterable(FETCHED.values())
    return next(package.sha256 for package in packages if package.file == path.name)


def colour(package: Package, code: str) -> tuple[int, int, int]:
    """Return the colour of a rectangle, a different one for each."""
    red, green, blue = hashlib.sha256(f"{package.name} {code}".encode()).digest()[:3]
    return red, green, blue


def _svg(package: Package, code: str) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">'
        f'<rect width="72" height="36" fill="rgb{colour(package, code)}"/></svg>'
    )


def _webp(code: str) -> bytes:
    image = PIL.Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((*colour(FLUENT_3D, code), 255), (0, 0, 32, 16))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def _pack_icons(folder: Path, package: Package, drawn_as: dict[str, str]) -> None:
    """Write a package in Iconify's layout; the flag is half as wide as it is high."""
    icons: dict[str, dict[str, object]] = {}
    for code, like in drawn_as.items():
        body = f'<rect width="36" height="18" fill="rgb{colour(package, like)}"/>'
        icons[f"icon-{code}"] = {"body": body} | ({"width": 18} if code == JAPAN else {})
    names = {code.lower().replace("-fe0f", ""): f"icon-{code}" for code in drawn_as}
    files = {
        "icons.json": json.dumps({"width": 36, "height": 36, "icons": icons}),
        "chars.json": json.dumps(names),
    }
    pack(folder, package, files)


def png(name: str, size: tuple[int, int]) -> bytes:
    """Return an image without transparency, of a colour of its own for each name."""
    buffer = io.BytesIO()
    red, green, blue = hashlib.sha256(name.encode()).digest()[:3]
    PIL.Image.new("RGB", size, (red, green, blue)).save(buffer, "PNG")
    return buffer.getvalue()


def pack_deb(folder: Path, package: Package, files: dict[str, bytes]) -> None:
    """Write a Debian package of these files, in the format of deb(5)."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("./usr/share/tuxpaint/stamps/food/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": data.getvalue()}
    with (folder / package.file).open("wb") as file:
        file.write(b"!<arch>\n")
        for name, content in members.items():
            header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n"
            file.write(header.encode() + content + b"\n" * (len(content) % 2))


def pack(folder: Path, package: Package, files: dict[str, str] | dict[str, bytes]) -> None:
    with tarfile.open(folder / package.file, "w:gz") as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("package/assets/link.webp")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
