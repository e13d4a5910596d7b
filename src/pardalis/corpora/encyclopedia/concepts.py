"""The concepts of the encyclopedia: which drawings take part, the article and split of each."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pardalis.corpora.emojis import RUDE, SKIN_TONES, bucket, family
from pardalis.corpora.encyclopedia.packages import Article, drawings, names

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = get_args(Split)

# Articles whose title differs from the drawing's name; None where the equal title is another thing.
TITLES: dict[str, str | None] = {
    "Cancer": None,  # the zodiac sign, not the disease
    "cricket": None,  # the insect, not the sport
    "sponge": None,  # for cleaning, not the animal
    "turkey": None,  # the bird, not the country
    "T-Rex": "Tyrannosaurus",
    "anatomical heart": "Heart",
    "automobile": "Car",
    "baby": "Infant",
    "baby angel": "Angel",
    "beer mug": "Beer",
    "boxing glove": "Boxing",
    "bridge at night": "Bridge",
    "carpentry saw": "Saw",
    "cheese wedge": "Cheese",
    "chess pawn": "Chess",
    "chocolate bar": "Chocolate",
    "church": "Church (building)",
    "cloud with lightning": "Lightning",
    "cloud with rain": "Rain",
    "cooked rice": "Rice",
    "cow": "Cattle",
    "cricket game": "Cricket",
    "crossed swords": "Sword",
    "delivery truck": "Truck",
    "drop of blood": "Blood",
    "ear of corn": "Maize",
    "ewe": "Sheep",
    "flag in hole": "Golf",
    "flag of Bahamas": "The Bahamas",
    "flag of Congo-Brazzaville": "Republic of the Congo",
    "flag of Congo-Kinshasa": "Democratic Republic of the Congo",
    "flag of Czechia": "Czech Republic",
    "flag of Côte d'Ivoire": "Ivory Coast",
    "flag of Gambia": "The Gambia",
    "flag of Georgia": "Georgia (country)",
    "flag of Hong Kong SAR China": "Hong Kong",
    "flag of Macao SAR China": "Macau",
    "flag of Micronesia": "Federated States of Micronesia",
    "flag of Myanmar (Burma)": "Myanmar",
    "flag of Palestinian Territories": "Palestine",
    "flag of Türkiye": "Turkey",
    "full moon": "Moon",
    "game die": "Dice",
    "gem stone": "Gemstone",
    "glass of milk": "Milk",
    "globe showing Europe-Africa": "Earth",
    "honey pot": "Honey",
    "honeybee": "Bee",
    "hot beverage": "Coffee",
    "jeans": "Trousers",
    "kitchen knife": "Knife",
    "kiwi fruit": "Kiwifruit",
    "man's shoe": "Shoe",
    "mantelpiece clock": "Clock",
    "manual wheelchair": "Wheelchair",
    "money bag": "Money",
    "musical keyboard": "Piano",
    "panda": "Giant panda",
    "peacock": "Peafowl",
    "peanuts": "Peanut",
    "people wrestling": "Wrestling",
    "person surfing": "Surfing",
    "person swimming": "Swimming",
    "pill": "Medication",
    "raised hand": "Hand",
    "red apple": "Apple",
    "ringed planet": "Saturn",
    "roasted sweet potato": "Sweet potato",
    "sailboat": "Boat",
    "sauropod": "Sauropoda",
    "seal": "Pinniped",
    "shortcake": "Cake",
    "skier": "Skiing",
    "snowflake": "Snow",
    "soccer ball": "Association football",
    "t-shirt": "Shirt",
    "teacup without handle": "Tea",
    "top hat": "Hat",
    "two-hump camel": "Bactrian camel",
    "wine glass": "Wine",
    "world map": "Map",
}


@dataclass(frozen=True, slots=True)
class Concept:
    """A named drawing, with the article about what it shows where there is one."""

    key: str
    name: str
    drawing: Path
    article: Article | None
    split: Split

    @property
    def code_points(self) -> tuple[int, ...]:
        """The concept's place in Unicode, where related things stand near each other."""
        return tuple(int(part, 16) for part in self.key.split("-"))

    @property
    def is_flag(self) -> bool:
        """True for the flag of a country or region."""
        return self.name.startswith("flag of ")


def all_concepts(articles: Iterable[Article], heldout_percent: int) -> list[Concept]:
    """Return every usable concept in the order of Unicode; no two share a name or an article.

    Left out are variants in skin tone, drawings without a Unicode name (brands and real persons
    among them) and a rude gesture.
    """
    files = drawings()
    named = {
        key: name
        for key, name in names().items()
        if key in files and key not in RUDE and SKIN_TONES.isdisjoint(key.split("-"))
    }
    article_of = match_articles(named.values(), articles)
    concepts: dict[str, Concept] = {}
    for key, name in named.items():
        split = split_of(family(key), heldout_percent)
        concept = Concept(key, name, files[key], article_of.get(name), split)
        concepts.setdefault(name.casefold(), concept)
    return sorted(concepts.values(), key=lambda concept: concept.code_points)


def match_articles(names: Iterable[str], articles: Iterable[Article]) -> dict[str, Article]:
    """Return the article of each name that has one; an article is given only once.

    The table of titles comes first, then equal titles, then the singular of a plural name.
    """
    unclaimed = {article.title.casefold(): article for article in articles}
    waiting = sorted(names)
    matched: dict[str, Article] = {}
    passes: list[Callable[[str], str | None]] = [TITLES.get, _equal_title, _singular]
    for title_of in passes:
        for name in waiting:
            title = (title_of(name) or "").casefold()
            if title in unclaimed:
                matched[name] = unclaimed.pop(title)
        waiting = [name for name in waiting if name not in matched and name not in TITLES]
    return matched


def split_of(key: str, heldout_percent: int) -> Split:
    """Return the split of a key: a fixed function of the key, whatever else is in the corpus."""
    return "heldout" if bucket(key) >= 100 - heldout_percent else "train"


def _equal_title(name: str) -> str:
    return name.removeprefix("flag of ").replace("&", "and").replace("St. ", "Saint ")


def _singular(name: str) -> str | None:
    if name.endswith("ies"):
        return name[:-3] + "y"
    return name[:-1] if name.endswith("s") else None
