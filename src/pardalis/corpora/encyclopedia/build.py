"""Building the encyclopedia's folder.

images/<key>.png            RGB on white
pairs.<split>.jsonl           name, image
draw.<split>.jsonl            conversations: "Draw an owl.", image
name.<split>.jsonl            conversations: image and "What is this?", "An owl."
encyclopedia.<split>.jsonl    title, image, lead; and pages that relate several concepts
articles.<split>.jsonl        other articles, as text
explain.<split>.jsonl         conversations: "Tell me about Rome.", the lead of such an article
concepts.json                 name, key, split, image and lead of each concept
LICENCES.json, LICENCES.md    what was taken from which package, under which licence
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

from pardalis import progress, seeds
from pardalis.corpora.emojis import render_svg, write_licences
from pardalis.corpora.encyclopedia import packages, pages
from pardalis.corpora.encyclopedia.concepts import SPLITS, Concept, Split, all_concepts, split_of
from pardalis.corpora.encyclopedia.packages import Article
from pardalis.corpora.encyclopedia.prose import shorten
from pardalis.documents.document import Document, Image
from pardalis.documents.writers import to_record, write_records
from pardalis.errors import ConfigError
from pardalis.files import atomic_folder, write_json

Selection = Literal["described", "all"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncyclopediaConfig:
    """What goes into the demo corpus."""

    kind: Literal["encyclopedia"] = "encyclopedia"
    concepts: int = 0  # the most to take; 0 takes all; of drawings that look the same one remains
    selection: Selection = "described"  # concepts that an article describes, or all with a name
    flags: bool = True  # include flags: over a third of the described concepts, and much alike
    image_side: int = 64  # pixels
    text_articles: int = 0  # the most articles without an image to take as text; 0 takes all
    lead_words: int = 80  # the most words of a lead, cut at the end of a sentence where one fits
    heldout_percent: int = 10  # share of concepts and of articles that is kept out of training
    seed: int = 0  # chooses what is taken when not all is; never the split

    def __post_init__(self) -> None:
        for field, least, most in (
            ("concepts", 0, None),
            ("image_side", 8, 1024),
            ("text_articles", 0, None),
            ("lead_words", 1, None),
            ("heldout_percent", 0, 99),
        ):
            value = getattr(self, field)
            if value < least or (most is not None and value > most):
                limits = f"from {least} to {most}" if most is not None else f"at least {least}"
                raise ConfigError(f"{field} must be {limits}, got {value}.")
        if self.selection not in get_args(Selection):
            raise ConfigError(
                f"selection must be one of {', '.join(map(repr, get_args(Selection)))}, got "
                f"{self.selection!r}."
            )

    def build(self, folder: Path) -> None:
        """See :func:`build_encyclopedia`."""
        build_encyclopedia(self, folder)

    def packages_used(self) -> dict[str, str]:
        """Return the version of each package."""
        return packages.package_versions()


def build_encyclopedia(config: EncyclopediaConfig, folder: Path) -> dict[str, Any]:
    """Write the corpus into a folder, replacing it whole, and return how much of each there is.

    The same config and package versions give the same bytes.

    Raises:
        ConfigError: a package of the extra ``demo`` is not installed.
    """
    packages.require_packages()
    articles = packages.articles()
    candidates = all_concepts(articles, config.heldout_percent)
    chosen = _choose_concepts(candidates, config)
    with atomic_folder(folder) as partial:
        concepts = _draw(chosen, config.image_side, partial)
        texts = _choose_articles(articles, candidates, config)
        counts: dict[str, Any] = {
            "concepts": len(concepts),
            "described": sum(concept.article is not None for concept in concepts),
            "dropped_identical": len(chosen) - len(concepts),
        }
        for split in SPLITS:
            members = [concept for concept in concepts if concept.split == split]
            counts[split] = _write_split(split, members, texts[split], config.lead_words, partial)
        write_json(
            partial / "concepts.json", [_entry(concept, config.lead_words) for concept in concepts]
        )
        n_articles = counts["described"] + sum(map(len, texts.values()))
        write_licences(packages.licences(len(concepts), n_articles), partial)
    return counts


def _choose_concepts(candidates: list[Concept], config: EncyclopediaConfig) -> list[Concept]:
    if config.selection == "described":
        candidates = [concept for concept in candidates if concept.article is not None]
    if not config.flags:
        candidates = [concept for concept in candidates if not concept.is_flag]
    if not config.concepts:
        return candidates
    ranked = sorted(
        candidates, key=lambda concept: seeds.derive(config.seed, "concept", concept.key)
    )
    return sorted(ranked[: config.concepts], key=lambda concept: concept.code_points)


def _choose_articles(
    articles: list[Article], candidates: list[Concept], config: EncyclopediaConfig
) -> dict[Split, list[Article]]:
    """Return the articles that no concept illustrates, by split.

    An article about a concept stays out of them even when the concept was not chosen, so that
    corpora of different sizes never disagree about what was held out.
    """
    illustrated = {concept.article.title for concept in candidates if concept.article is not None}
    others = [article for article in articles if article.title not in illustrated]
    if config.text_articles:
        others.sort(key=lambda article: seeds.derive(config.seed, "article", article.title))
        others = others[: config.text_articles]
    others.sort(key=lambda article: article.title)
    # A name without an article of its own (the insect cricket) may still be an article's title.
    heldout_names = {
        concept.name.casefold() for concept in candidates if concept.split == "heldout"
    }
    chosen: dict[Split, list[Article]] = {split: [] for split in SPLITS}
    for article in others:
        is_heldout = article.title.casefold() in heldout_names
        split: Split = "heldout" if is_heldout else split_of(article.title, config.heldout_percent)
        chosen[split].append(article)
    return chosen


def _draw(concepts: list[Concept], side: int, folder: Path) -> list[Concept]:
    """Write the images and return the concepts kept: of those that look the same, the first.

    Described ones come first. Islands flying their country's flag would else stand in both splits.
    """
    (folder / "images").mkdir()
    seen: set[bytes] = set()
    kept: list[Concept] = []
    with progress.bar("Drawing", total=len(concepts), unit="images") as advance:
        for concept in sorted(concepts, key=lambda concept: concept.article is None):
            image = render_svg(concept.drawing.read_text(encoding="utf-8"), side)
            pixels = image.tobytes()
            if pixels not in seen:
                seen.add(pixels)
                kept.append(concept)
                image.save(folder / pages.image_path(concept), format="PNG")
            advance()
    return sorted(kept, key=lambda concept: concept.code_points)


def _write_split(
    split: Split, concepts: list[Concept], texts: list[Article], lead_words: int, folder: Path
) -> dict[str, int]:
    described = [(concept, concept.article) for concept in concepts if concept.article is not None]
    single_pages = (pages.page(concept, article, lead_words) for concept, article in described)
    sources: dict[str, Iterable[Document]] = {
        "pairs": map(pages.pair, concepts),
        "draw": map(pages.drawing_request, concepts),
        "name": map(pages.naming_request, concepts),
        "encyclopedia": chain(single_pages, pages.related_pages(described)),
        "articles": (pages.article_page(article, lead_words) for article in texts),
        "explain": (pages.explanation_request(article, lead_words) for article in texts),
    }
    return {
        name: write_records(
            (to_record(document, _relative_path) for document in documents),
            folder / f"{name}.{split}.jsonl",
        )
        for name, documents in sources.items()
    }


def _relative_path(image: Image) -> str:
    assert isinstance(image.source, Path)  # pages only make such
    return image.source.as_posix()


def _entry(concept: Concept, lead_words: int) -> dict[str, Any]:
    return {
        "name": concept.name,
        "key": concept.key,
        "split": concept.split,
        "image": pages.image_path(concept).as_posix(),
        "lead": shorten(concept.article.lead, lead_words) if concept.article else None,
    }
