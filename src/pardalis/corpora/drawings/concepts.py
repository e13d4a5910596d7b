"""What is drawn: its name, its split, and the style that it is not seen in.

A split holds whole families of concepts in all styles, for two of the styles share their drawings.
Who is held out here is held out of the encyclopedia too, at its default share.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pardalis import seeds
from pardalis.corpora.drawings.packages import EMOJIBASE, OPENMOJI
from pardalis.corpora.emojis import RUDE, bucket, family, key_of_hexcode, without_skin_tones
from pardalis.corpora.packages import checked, read_members
from pardalis.files import parse_json

Split = Literal["train", "heldout", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_FOOD = 4  # Emojibase's number of the group "food-drink"
_NOT_TAKEN = ("brand", "people")  # OpenMoji's own groups left out: trademarks, and real persons


@dataclass(frozen=True, slots=True)
class Concept:
    """A named thing; ``key`` is the same in all packages."""

    key: str
    name: str

    @property
    def family(self) -> str:
        """What all variants of the concept share."""
        return family(without_skin_tones(self.key))

    @property
    def split(self) -> Split:
        place = bucket(self.family)
        return "train" if place < 90 else "heldout" if place < 95 else "test"

    def held_out_style(self, styles: Iterable[str], one_in: int = 10) -> str | None:
        """Return which of the styles training does not see the concept in, or None.

        Args:
            one_in: of how many concepts one has such a style.
        """
        if seeds.derive(0, "cell", self.family) % one_in:
            return None
        return min(styles, key=lambda style: seeds.derive(0, "cell", self.family, style))


def all_concepts(folder: Path, skin_tones: bool, with_extras: bool) -> list[Concept]:
    """Return the concepts of Unicode in its order, then OpenMoji's own; no two share a name.

    Left out are a rude gesture, and of OpenMoji's own drawings trademarks and real persons.
    """
    named = _unicode_names(folder, skin_tones)
    if with_extras:
        named += _openmoji_names(folder)
    concepts: dict[str, Concept] = {}
    for code, label in named:
        concept = Concept(key_of_hexcode(code), _name(label))
        if RUDE.isdisjoint(concept.key.split("-")):
            concepts.setdefault(concept.name.casefold(), concept)
    return list(concepts.values())


def food(folder: Path) -> set[str]:
    """Return the keys of what Unicode lists as food and drink."""
    files = read_members(checked(EMOJIBASE, folder), "en", ".json")
    entries: list[dict[str, Any]] = parse_json(files["data"])
    return {key_of_hexcode(entry["hexcode"]) for entry in entries if entry.get("group") == _FOOD}


def _unicode_names(folder: Path, skin_tones: bool) -> list[tuple[str, str]]:
    files = read_members(checked(EMOJIBASE, folder), "en", ".json")
    entries: list[dict[str, Any]] = parse_json(files["data"])
    if skin_tones:
        entries = [variant for entry in entries for variant in (entry, *entry.get("skins", ()))]
    return [(entry["hexcode"], entry["label"]) for entry in entries]


def _openmoji_names(folder: Path) -> list[tuple[str, str]]:
    files = read_members(checked(OPENMOJI, folder), "data", ".json")
    return [
        (entry["hexcode"], entry["annotation"])
        for entry in parse_json(files["openmoji"])
        if entry["group"] == "extras-openmoji" and entry["subgroups"] not in _NOT_TAKEN
    ]


def _name(label: str) -> str:
    """Return a label as words: "flag: Japan" as "flag of Japan", "kiss: man, man" with a comma."""
    plain = label.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return plain.replace("flag: ", "flag of ").replace("keycap: ", "keycap ").replace(": ", ", ")
