"""Tasks about flags: whose they are, and the capital and the region of the country.

One question is asked of each country, with its flag in a style at random. The names, capitals and
regions are those of the table of countries. Where that table names one of several, the country is
left out.
"""

from collections.abc import Iterator

import numpy as np

from pardalis.corpora.benchmarks.materials import Country, Materials
from pardalis.corpora.benchmarks.questions import (
    Benchmark,
    Question,
    Split,
    TaskImage,
    balanced,
    shuffled,
    with_wrong_ones,
)
from pardalis.corpora.drawings.styles import STYLES, Style

# The seat of government is elsewhere, or the capital is disputed or was moved lately.
_CAPITALS_IN_DOUBT = frozenset({"BI", "BJ", "BO", "ID", "IL", "LK", "NR", "SZ", "TZ", "YE"})
_ON_TWO_CONTINENTS = frozenset({"AM", "AZ", "CY", "EG", "GE", "ID", "KZ", "RU", "TL", "TR"})
_REGIONS = ("Africa", "Americas", "Asia", "Europe", "Oceania")


def _countries(
    materials: Materials, split: Split, generator: np.random.Generator
) -> Iterator[Question]:
    for country, style in _with_styles(materials, split, generator):

        def differs(one: Country, other: Country, style: Style = style) -> bool:
            return not _contained(one.name, other.name) and not materials.look_alike(
                one.key, other.key, style
            )

        if found := with_wrong_ones(country, materials.countries, differs, generator):
            choices, answer = found
            yield _head(materials, country, style) | {
                "choices": [each.name for each in choices],
                "answer": answer,
            }


def _capitals(
    materials: Materials, split: Split, generator: np.random.Generator
) -> Iterator[Question]:
    near = [each for each in materials.countries if each.code not in _CAPITALS_IN_DOUBT]

    for country, style in _with_styles(materials, split, generator):
        if country not in near or _contained(country.name, country.capital):
            continue  # else the name gives the capital away

        def differs(one: Country, other: Country, style: Style = style) -> bool:
            return not _contained(one.capital, other.capital) and not materials.look_alike(
                one.key, other.key, style
            )

        of_region = [each for each in near if each.region == country.region]
        if found := with_wrong_ones(country, of_region, differs, generator):
            choices, answer = found
            yield _head(materials, country, style) | {
                "capital": country.capital,
                "choices": [each.capital for each in choices],
                "answer": answer,
            }


def _regions(
    materials: Materials, split: Split, generator: np.random.Generator
) -> Iterator[Question]:
    asked = [
        (country, style)
        for country, style in _with_styles(materials, split, generator)
        if country.code not in _ON_TWO_CONTINENTS
        and not _named_after_a_region(country)
        and not _has_twin(materials, country, style)
    ]
    for country, style in balanced(asked, lambda each: each[0].region, split, generator):
        if found := with_wrong_ones(country.region, _REGIONS, str.__ne__, generator):
            choices, answer = found
            yield _head(materials, country, style) | {"choices": choices, "answer": answer}


def _with_styles(
    materials: Materials, split: Split, generator: np.random.Generator
) -> Iterator[tuple[Country, Style]]:
    for country in shuffled(materials.countries, generator):
        styles = materials.styles_of(country.key)
        if country.split == split and styles:
            yield country, styles[generator.integers(len(styles))]


def _head(materials: Materials, country: Country, style: Style) -> Question:
    task_image: TaskImage = materials.task_image(country.key, style)
    return {"id": country.code, "image": task_image, "country": country.name}


def _has_twin(materials: Materials, country: Country, style: Style) -> bool:
    """Whether another region has a flag that looks the same."""
    return any(
        other.region != country.region and materials.look_alike(country.key, other.key, style)
        for other in materials.countries
        if other.key != country.key and style in materials.styles_of(other.key)
    )


def _named_after_a_region(country: Country) -> bool:
    return any(word in country.name for word in ("Africa", "America"))


def _contained(one: str, other: str) -> bool:
    return one.casefold() in other.casefold() or other.casefold() in one.casefold()


_SOURCES = (*dict.fromkeys(style.package.name for style in STYLES), "world-countries")
BENCHMARKS = (
    Benchmark("flag_country", "whose flag it is, among four countries", _countries, _SOURCES),
    Benchmark("flag_capital", "the capital, among four of the region", _capitals, _SOURCES),
    Benchmark("flag_region", "the region, among four", _regions, _SOURCES),
)
