"""What the tasks are made from: emoji with their drawings and names, countries, senses, articles.

All is read once, when a task first needs it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Float

from pardalis.corpora.benchmarks.packages import STAMPS, WORLD
from pardalis.corpora.benchmarks.questions import Split, TaskImage
from pardalis.corpora.benchmarks.wordnet import WordNet
from pardalis.corpora.drawings.concepts import Concept, all_concepts
from pardalis.corpora.drawings.packages import EMOJIBASE
from pardalis.corpora.drawings.styles import STYLES, Drawing, Style, draw
from pardalis.corpora.emojis import bucket, key_of_hexcode
from pardalis.corpora.encyclopedia.packages import Article, articles
from pardalis.corpora.packages import checked, read_deb_files, read_members
from pardalis.corpora.prose.packages import WORDNET, senses
from pardalis.files import parse_json

LANGUAGES = ("en", "de", "es", "fr", "ja", "zh")

_LEAST_DIFFERENCE = 6.0  # mean of 0 to 255, between drawings that a person tells apart
_THUMBNAIL = 16  # pixels a side
_KEPT_IMAGES = 512
_LOCALES = {"zh": "zh_CN"}  # of captions of stamps, where it is not called as the language
_STAMPS_FOLDER = "usr/share/tuxpaint/stamps"


@dataclass(frozen=True, slots=True)
class Emoji:
    """An emoji with a group: what is drawn, and where Unicode lists it."""

    concept: Concept
    group: str  # such as "food & drink"
    subgroup: str  # such as "food-fruit"
    names: dict[str, str]  # by language, of LANGUAGES

    @property
    def key(self) -> str:
        return self.concept.key

    @property
    def name(self) -> str:
        return self.concept.name

    @property
    def split(self) -> Split:
        """Examples are what the corpus of drawings trains on; all that it holds out is tested."""
        return "train" if self.concept.split == "train" else "test"


@dataclass(frozen=True, slots=True)
class Stamp:
    """A drawing with its captions."""

    name: str  # such as animals/birds/owl
    png: bytes
    captions: dict[str, str]  # by language, of LANGUAGES

    @property
    def split(self) -> Split:
        """A tenth are examples; no corpus of ours trains on stamps."""
        return "train" if bucket(self.captions["en"]) < 10 else "test"


@dataclass(frozen=True, slots=True)
class Country:
    """A member of the United Nations."""

    code: str  # two letters
    name: str
    capital: str
    region: str  # Africa, Americas, Asia, Europe or Oceania

    @property
    def key(self) -> str:
        """The key of its flag."""
        return "-".join(f"{0x1F1E6 + ord(letter) - ord('A'):x}" for letter in self.code)

    @property
    def split(self) -> Split:
        """A tenth are examples, whose flags the corpus of drawings trains on.

        A model cannot know a flag that it never saw, so those that it saw are tested too.
        """
        return "train" if bucket(self.key) < 10 else "test"


class Materials:
    """Reads the packages.

    Args:
        packages: folder that ``fetch_packages`` filled.
        side: of images, in pixels.
    """

    def __init__(self, packages: Path, side: int) -> None:
        self.packages, self.side = packages, side
        self._drawings: dict[str, dict[str, Drawing]] = {}
        self._images: dict[tuple[str, str], PIL.Image.Image] = {}
        self._thumbnails: dict[tuple[str, str], Float[np.ndarray, "Y X C"]] = {}

    # ── emoji ──────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def emoji(self) -> list[Emoji]:
        """All emoji with a group and a name in each language, in Unicode's order."""
        path = checked(EMOJIBASE, self.packages)
        names: dict[str, dict[str, str]] = {}
        for language in LANGUAGES:
            for entry in parse_json(read_members(path, language, ".json")["data"]):
                key = key_of_hexcode(entry["hexcode"])
                names.setdefault(key, {})[language] = entry["label"]
        hierarchy = parse_json(read_members(path, "meta", ".json")["groups"])
        english = read_members(path, "en", ".json")
        messages = parse_json(english["messages"])["groups"]
        words = {each["key"]: each["message"] for each in messages}
        listed = {key_of_hexcode(each["hexcode"]): each for each in parse_json(english["data"])}
        found = []
        for concept in all_concepts(self.packages, skin_tones=False, with_extras=False):
            entry = listed[concept.key]
            if "group" not in entry or len(names[concept.key]) < len(LANGUAGES):
                continue
            group = words[hierarchy["groups"][str(entry["group"])]]
            subgroup = hierarchy["subgroups"][str(entry["subgroup"])]
            found.append(Emoji(concept, group, subgroup, names[concept.key]))
        return found

    def emoji_of(self, split: Split) -> list[Emoji]:
        return [each for each in self.emoji if each.split == split]

    def styles_of(self, key: str) -> list[Style]:
        """Return the styles in which an emoji is drawn."""
        return [style for style in STYLES if key in self._in_style(style)]

    def task_image(self, key: str, style: Style) -> TaskImage:
        """Return the drawing of an emoji that is drawn in a style."""
        place = (key, style.name)
        if place not in self._images:
            if len(self._images) == _KEPT_IMAGES:
                self._images.clear()
            self._images[place] = draw(self._in_style(style)[key], self.side)
        return TaskImage(Path("images", f"{key}.{style.name}.png"), self._images[place])

    def look_alike(self, one: str, other: str, style: Style) -> bool:
        """Whether two drawings of a style are the same, or nearly; True if one is missing."""
        drawings = self._in_style(style)
        if one not in drawings or other not in drawings:
            return True
        first, second = (self._thumbnail(key, style) for key in (one, other))
        return float(np.abs(first - second).mean()) < _LEAST_DIFFERENCE

    def _thumbnail(self, key: str, style: Style) -> Float[np.ndarray, "Y X C"]:
        place = (key, style.name)
        if place not in self._thumbnails:
            size = (_THUMBNAIL, _THUMBNAIL)
            small = self.task_image(key, style).image.resize(size, PIL.Image.Resampling.BOX)
            self._thumbnails[place] = np.asarray(small, np.float32)
        return self._thumbnails[place]

    def _in_style(self, style: Style) -> dict[str, Drawing]:
        if style.name not in self._drawings:
            path = checked(style.package, self.packages)
            self._drawings[style.name] = style.read(path)
        return self._drawings[style.name]

    # ── countries, senses, articles ────────────────────────────────────────────────────────────

    @cached_property
    def countries(self) -> list[Country]:
        """The members of the United Nations with one capital, by their codes."""
        path = checked(WORLD, self.packages)
        entries: list[dict[str, Any]] = parse_json(read_members(path, "", ".json")["countries"])
        return sorted(
            (
                Country(
                    entry["cca2"], entry["name"]["common"], entry["capital"][0], entry["region"]
                )
                for entry in entries
                if entry["unMember"] and len(entry["capital"]) == 1
            ),
            key=lambda country: country.code,
        )

    @cached_property
    def stamps(self) -> list[Stamp]:
        """Stamps in PNG whose caption is there in each language, by their names; each caption once.

        Their package has a text beside each: the English caption, then lines ``de.utf8=Eine Eule.``
        """
        path = checked(STAMPS, self.packages)
        files = dict(read_deb_files(path, _STAMPS_FOLDER, (".png", ".txt")))
        found: dict[str, Stamp] = {}
        for name in sorted(files):
            stem = name.removesuffix(".txt")
            if stem == name or (png := files.get(f"{stem}.png")) is None:
                continue
            captions = _captions(files[name].decode(errors="replace"))
            if captions is not None and captions["en"] not in found:
                found[captions["en"]] = Stamp(stem, png, captions)
        return list(found.values())

    @cached_property
    def wordnet(self) -> WordNet:
        return WordNet.of(list(senses(checked(WORDNET, self.packages))))

    @cached_property
    def articles(self) -> list[Article]:
        return articles()


def words_of(text: str) -> set[str]:
    """Return the words of a text, in lower case."""
    return set(re.findall(r"\w+", text.casefold()))


def _captions(text: str) -> dict[str, str] | None:
    """Return the caption of a stamp in each language; None if one is missing."""
    english, *lines = text.splitlines() or [""]
    of_locale = dict(line.split(".utf8=", 1) for line in lines if ".utf8=" in line)
    of_locale["en"] = english
    found = {code: of_locale.get(_LOCALES.get(code, code), "").strip() for code in LANGUAGES}
    return found if all(found.values()) else None


def in_split(name: str, test_percent: int) -> Callable[[Split], bool]:
    """Return whether a name is of a split, as the corpora of text divide names."""
    is_test = bucket(name) >= 100 - test_percent
    return lambda split: is_test == (split == "test")
