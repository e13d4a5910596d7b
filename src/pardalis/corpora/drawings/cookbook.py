"""Recipes whose ingredients are drawn: interleaved how-to pages, as answers to a request.

Besides the files of the drawings, a folder has

    cookbook.<split>.jsonl    "How do I make hummus?", and the recipe with drawings of ingredients
    in_words.<split>.jsonl    "How do I make hummus? Answer in words.", and the recipe without

A page has drawings of one style. Held-out pages are other recipes; their drawings are of concepts
and styles that training sees. Recipes of which no ingredient is drawn are in words alone.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pardalis.config import check_at_least, check_at_most
from pardalis.corpora.captions import caption
from pardalis.corpora.drawings.build import DrawingsConfig, StyledImage, write_drawings
from pardalis.corpora.drawings.concepts import food
from pardalis.corpora.drawings.packages import PACKAGES
from pardalis.corpora.encyclopedia.concepts import SPLITS, split_of
from pardalis.corpora.packages import checked
from pardalis.corpora.prose.packages import RECIPES, Recipe, recipes
from pardalis.documents.document import Document, Image, Segment, Text
from pardalis.documents.writers import to_record, write_records
from pardalis.files import atomic_folder
from pardalis.seeds import numpy_generator

_WORD = re.compile(r"[a-z]+")
_LICENCE = f"{RECIPES.licence} (Wikibooks), and those of the drawings"


@dataclass(frozen=True, kw_only=True, slots=True)
class CookbookConfig(DrawingsConfig):
    """What goes into the corpus of recipes with drawings: as for the drawings, and the pages."""

    kind: Literal["cookbook"] = "cookbook"  # type: ignore[assignment]
    page_images: int = 2  # the most drawings of a page
    page_words: int = 80  # the most words of a page; its last steps are left out
    heldout_percent: int = 5  # of the recipes, chosen by a hash of their titles

    def __post_init__(self) -> None:
        DrawingsConfig.__post_init__(self)  # super() does not work with slots
        check_at_least(self, page_images=1, page_words=1, heldout_percent=0)
        check_at_most(self, heldout_percent=99)

    def build(self, folder: Path) -> None:
        """See :func:`build_cookbook`."""
        build_cookbook(self, folder)

    def packages_used(self) -> list[str]:
        """Return the hash of each package."""
        return [package.sha256 for package in (*PACKAGES, RECIPES)]


def build_cookbook(config: CookbookConfig, folder: Path) -> dict[str, Any]:
    """Write the drawings and the pages, replacing the folder; return how many of each.

    The same config gives the same bytes.

    Raises:
        ConfigError, DataError: as :func:`~pardalis.corpora.drawings.build.build_drawings`.
    """
    written = list(recipes(checked(RECIPES, config.packages)))
    with atomic_folder(folder) as partial:
        taken = ((RECIPES, "recipes, most shortened", len(written)),)
        drawings = write_drawings(config, partial, also=taken)
        edible = food(config.packages)
        seen = (*drawings.parts["pairs.train"], *drawings.parts.get("pairs.others", ()))
        drawn: dict[str, list[StyledImage]] = {}
        for image in seen:
            if image.concept.key in edible:
                drawn.setdefault(image.concept.name.casefold(), []).append(image)
        counts = drawings.counts
        for split in SPLITS:
            members = [r for r in written if split_of(r.title, config.heldout_percent) == split]
            parts = {
                "cookbook": (page for r in members if (page := _page(r, drawn, config))),
                "in_words": (_in_words(r, config) for r in members),
            }
            for name, pages in parts.items():
                counts[f"{name}.{split}"] = write_records(
                    (to_record(page, _path) for page in pages), partial / f"{name}.{split}.jsonl"
                )
    return counts


def _in_words(recipe: Recipe, config: CookbookConfig) -> Document:
    """Return a request for words, and the recipe without drawings."""
    asked = Text(f"How do I make {recipe.title}? Answer in words.", "user")
    lines = ["You need:", *recipe.ingredients, *_numbered(recipe.steps)]
    answer = Text("\n".join(_shortened(lines, config.page_words)), "assistant")
    return Document((asked, answer), f"cookbook/{recipe.title}", RECIPES.licence)


def _page(
    recipe: Recipe, drawn: Mapping[str, list[StyledImage]], config: CookbookConfig
) -> Document | None:
    """Return a request and the recipe with its drawings; None if no ingredient is drawn."""
    generator = numpy_generator(0, "cookbook", recipe.title)
    styles = sorted({image.style.name for images in drawn.values() for image in images})
    style = styles[generator.integers(len(styles))]
    asked = Text(f"How do I make {recipe.title}?", "user")
    segments: list[Segment] = [asked]
    lines = ["You need:"]
    shown: set[str] = set()
    for ingredient in recipe.ingredients:
        lines.append(ingredient)
        image = next(_drawings_of(ingredient, drawn, style, shown), None)
        if image is not None and len(shown) < config.page_images:
            shown.add(image.concept.name)
            phrase = caption(image.style.phrase, image.concept.name)
            segments += [Text("\n".join(lines) + "\n"), Image(image.path, alt=phrase)]
            lines = []
    if not shown:
        return None
    lines += _numbered(recipe.steps)
    segments.append(Text("\n".join(_shortened(lines, config.page_words - _words(segments)))))
    answer = [replace(segment, role="assistant") for segment in segments[1:]]
    return Document((asked, *answer), f"cookbook/{recipe.title}", _LICENCE)


def _drawings_of(
    ingredient: str, drawn: Mapping[str, list[StyledImage]], style: str, shown: set[str]
) -> Iterator[StyledImage]:
    """Yield the drawings in a style of what an ingredient names and the page does not show yet."""
    words = _WORD.findall(ingredient.casefold())
    pairs = [" ".join(pair) for pair in itertools.pairwise(words)]
    for name in (*pairs, *words):
        for spelling in (name, name.removesuffix("s"), name.removesuffix("es")):
            for image in drawn.get(spelling, ()):
                if image.style.name == style and image.concept.name not in shown:
                    yield image


def _numbered(steps: Iterable[str]) -> list[str]:
    return [f"{number}. {step}" for number, step in enumerate(steps, start=1)]


def _words(segments: list[Segment]) -> int:
    return sum(len(each.text.split()) for each in segments if isinstance(each, Text))


def _shortened(lines: list[str], n_words: int) -> list[str]:
    """Return the first lines that have so many words together, at least one."""
    kept = lines[:1]
    for line in lines[1:]:
        n_words -= len(line.split())
        if n_words < 0:
            break
        kept.append(line)
    return kept


def _path(image: Image) -> str:
    assert isinstance(image.source, Path)  # pages only make such
    return image.source.as_posix()
