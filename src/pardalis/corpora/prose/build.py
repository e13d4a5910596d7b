"""Building the folder of prose.

articles.<split>.jsonl      the lead of a Wikipedia article below its title
recipes.<split>.jsonl       title, ingredients and numbered steps of a recipe
dictionary.<split>.jsonl    the words of a sense, its definition and examples
LICENCES.json, LICENCES.md  what was taken from which package, under which licence
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pardalis.config import check_at_least, check_at_most, not_deciding
from pardalis.corpora.emojis import write_licences
from pardalis.corpora.encyclopedia import packages as encyclopedia
from pardalis.corpora.encyclopedia.concepts import SPLITS, split_of
from pardalis.corpora.encyclopedia.pages import article_page
from pardalis.corpora.packages import checked
from pardalis.corpora.prose import packages
from pardalis.corpora.prose.packages import RECIPES, WORDNET, Recipe, Sense
from pardalis.documents.document import Document, Text
from pardalis.documents.writers import to_record, write_records
from pardalis.files import atomic_folder

_LEAD_WORDS = 200

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProseConfig:
    """What goes into the corpus of English text."""

    kind: Literal["prose"] = "prose"
    packages: Path = not_deciding()  # folder that fetch_packages filled
    most: int = 0  # articles, recipes and senses to take of each; 0 takes all
    heldout_percent: int = 2  # share of articles, recipes and senses that is kept out of training

    def __post_init__(self) -> None:
        check_at_least(self, most=0, heldout_percent=0)
        check_at_most(self, heldout_percent=99)

    def build(self, folder: Path) -> None:
        """See :func:`build_prose`."""
        build_prose(self, folder)

    def packages_used(self) -> list[Any]:
        """Return the hash or version of each package."""
        installed = encyclopedia.package_versions()
        return [installed, *(package.sha256 for package in packages.PACKAGES)]


def build_prose(config: ProseConfig, folder: Path) -> dict[str, Any]:
    """Write the corpus into a folder, replacing it whole, and return how many documents it has.

    The same config and package versions give the same bytes.

    Raises:
        ConfigError: a package of the extra ``demo`` is not installed.
        DataError: a package is missing or is not the pinned version.
    """
    encyclopedia.require_packages()
    articles = _spread(encyclopedia.articles(), config.most)
    recipes = _spread(packages.recipes(checked(RECIPES, config.packages)), config.most)
    senses = _spread(packages.senses(checked(WORDNET, config.packages)), config.most)
    with atomic_folder(folder) as partial:

        def write(name: str, items: Iterable[_T], document: Callable[[_T], Document]) -> Any:
            return _write(name, map(document, items), config.heldout_percent, partial)

        counts = {
            "articles": write("articles", articles, lambda a: article_page(a, _LEAD_WORDS)),
            "recipes": write("recipes", recipes, recipe_page),
            "dictionary": write("dictionary", senses, entry),
        }
        taken = encyclopedia.licences(0, len(articles))[1]
        licences = [taken, _licence(RECIPES, "recipes", len(recipes))]
        licences.append(_licence(WORDNET, "words, definitions and examples", len(senses)))
        write_licences(licences, partial)
    return counts


def _spread(items: Iterable[_T], most: int) -> list[_T]:
    """Return so many items from all over; all, if ``most`` is 0 or they are fewer."""
    items = list(items)
    return items[:: max(1, len(items) // most)][:most] if most else items


def recipe_page(recipe: Recipe) -> Document:
    """Return a recipe as text: title, ingredients, numbered steps."""
    lines = [recipe.title, "Ingredients:", *recipe.ingredients]
    lines += [f"{number}. {step}" for number, step in enumerate(recipe.steps, start=1)]
    return Document((Text("\n".join(lines)),), f"recipe/{recipe.title}", RECIPES.licence)


def entry(sense: Sense) -> Document:
    """Return a sense as an entry of a dictionary: ``owl, hooter (noun): a bird ...``."""
    text = f"{', '.join(sense.words)} ({sense.speech}): {sense.definition}"
    return Document((Text(text),), f"sense/{sense.key}", WORDNET.licence)


def _write(
    name: str, documents: Iterable[Document], heldout_percent: int, folder: Path
) -> dict[str, int]:
    of_split: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for document in documents:
        of_split[split_of(document.name, heldout_percent)].append(document)
    return {
        split: write_records(
            (to_record(document, str) for document in members), folder / f"{name}.{split}.jsonl"
        )
        for split, members in of_split.items()
    }


def _licence(package: Any, taken: str, count: int) -> tuple[Any, ...]:
    return (package.name, package.version, package.licence, package.attribution, taken, count)
