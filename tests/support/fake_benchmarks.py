"""Packages in the layouts that the tasks are made from, with a few entries."""

import itertools
import json
from pathlib import Path

from fake_drawings import HEXCODES, pack, pack_deb, png, write_fake_packages

from pardalis.corpora.benchmarks.materials import LANGUAGES
from pardalis.corpora.benchmarks.packages import STAMPS, WORLD
from pardalis.corpora.drawings.packages import EMOJIBASE
from pardalis.corpora.prose.packages import WORDNET

GROUPS = ("smileys & emotion", "people & body", "animals & nature", "food & drink", "flags")
_FLAGS = len(GROUPS) - 1
REGIONS = ("Africa", "Americas", "Asia", "Europe", "Oceania")
CODES = [f"{a}{b}" for a, b in itertools.product("BDFG", "HJKLPQUWX")]  # of countries
N_WORDS, N_SENSES = 60, 240
N_STAMPS = 60
STAMP_LOCALES = {"zh": "zh_CN"}


def write_fake_tasks(folder: Path) -> None:
    """Write all packages but that of stamps.

    The countries B... share their letters with no real exception.
    """
    flags = ["-".join(f"{0x1F1E6 + ord(each) - 65:X}" for each in code) for code in CODES]
    write_fake_packages(folder, flags)
    entries = [
        {"hexcode": code, "label": f"thing {word_of(n)}", "group": n % _FLAGS, "subgroup": n % 8}
        for n, code in enumerate(HEXCODES)
    ]
    entries += [
        {"hexcode": flag, "label": f"flag: {country_of(code)}", "group": _FLAGS, "subgroup": 9}
        for flag, code in zip(flags, CODES, strict=True)
    ]
    entries.append({"hexcode": "1F1E6", "label": "regional indicator A"})  # of no group
    files = {
        f"{language}/data.json": json.dumps(
            [each | {"label": translated(each["label"], language)} for each in entries]
        )
        for language in LANGUAGES
    }
    messages = [{"key": name[:3], "message": name} for name in GROUPS]
    files["en/messages.json"] = json.dumps({"groups": messages})
    groups = {str(n): name[:3] for n, name in enumerate(GROUPS)}
    subgroups = {str(n): f"some-{n}" for n in range(10)}
    files["meta/groups.json"] = json.dumps({"groups": groups, "subgroups": subgroups})
    pack(folder, EMOJIBASE, files)
    countries = [
        {"cca2": code, "name": {"common": country_of(code)}, "capital": [capital_of(code)],
         "region": region_of(code), "unMember": code != CODES[0]}
        for code in CODES
    ]  # fmt: skip
    countries[1]["capital"].append("Another")
    pack(folder, WORLD, {"countries.json": json.dumps(countries), "package.json": "{}"})
    nouns = [
        f"{n:08d} 03 n 01 {word_of(n % N_WORDS)} 0 001 @ {n // 3:08d} n 0000 | number {n}; "
        f'"the {word_of(n % N_WORDS)}"  '
        for n in range(N_SENSES)
    ]
    adjective = "00000001 00 s 01 galore(ip) 0 001 & 00000001 a 0000 | in great numbers  "
    pack(
        folder,
        WORDNET,
        {"dict/data.noun": "\n".join(nouns) + "\n", "dict/data.adj": adjective + "\n"},
    )


def write_fake_stamps(folder: Path) -> None:
    """Write stamps in two folders, some of which cannot be used."""
    files: dict[str, bytes] = {}
    for n in range(N_STAMPS):
        lines = [stamp_caption(n, code) for code in LANGUAGES]
        codes = ["", *(f"{STAMP_LOCALES.get(code, code)}.utf8=" for code in LANGUAGES[1:])]
        texts = [f"{code}{line}" for code, line in zip(codes, lines, strict=True)]
        name = f"usr/share/tuxpaint/stamps/{'animals/birds' if n % 2 else 'food'}/thing-{n}"
        files[f"{name}.txt"] = "\n".join(texts[:-1] if n == 0 else texts).encode()
        files[f"{name}.{'svg' if n == 1 else 'png'}"] = png(f"stamp {n}", (40, 20))
    files["usr/share/tuxpaint/stamps/food/alone.txt"] = b"Alone."
    files["usr/share/tuxpaint/stamps/food/empty.txt"] = b""
    files["usr/share/tuxpaint/stamps/food/empty.png"] = png("empty", (40, 20))
    files["usr/share/tuxpaint/stamps/food/twin.txt"] = files[
        "usr/share/tuxpaint/stamps/food/thing-4.txt"
    ]
    files["usr/share/tuxpaint/stamps/food/twin.png"] = png("twin", (40, 20))
    files["usr/share/other/thing-3.png"] = b"no stamp"
    pack_deb(folder, STAMPS, files)


def stamp_caption(n: int, language: str) -> str:
    return f"A {word_of(n)}{translated('', language)}."


def word_of(n: int) -> str:
    """Return a word of six letters, another one for each number below 125."""
    syllables = ("ba", "de", "fi", "go", "lu")
    return "".join(syllables[n // 5**place % 5] for place in (2, 1, 0))


def country_of(code: str) -> str:
    return f"{word_of(CODES.index(code))}land".capitalize()


def capital_of(code: str) -> str:
    return f"{code.lower()} city".capitalize()


def region_of(code: str) -> str:
    return REGIONS[CODES.index(code) % 5]


def translated(label: str, language: str) -> str:
    return label if language == "en" else f"{label} {language}"
