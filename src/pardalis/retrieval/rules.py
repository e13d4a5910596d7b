"""The rules of what is retrieved for a document, as pure functions of numbers.

They are those of CM3Leon (arXiv 2309.02591) and RA-CM3 (arXiv 2211.12561):

* Half of the candidates are the nearest by the query's text, half by its image. If the query has
  one of the two alone, that finds all.
* A document that resembles the whole query too much is left out, and the query itself: the model
  would copy. So is one that resembles a candidate before it: it would say nothing new.
* Documents of text and images come before those of one modality, which fill up what is left.
* Some words of the query are dropped for the search, for diversity.
* Training takes some of the candidates at random in each epoch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from pardalis.config import check_at_least, check_fractions
from pardalis.seeds import numpy_generator

By: TypeAlias = Literal["text", "image"]

ROUTES: tuple[By, By] = ("text", "image")


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleConfig:
    """What may be retrieved; the defaults are CM3Leon's."""

    candidates: int = 4  # kept for each document of training: half by text, half by image
    max_score: float = 0.9  # of a document and the query, or a candidate before; 1: no bound
    query_dropout: float = 0.2  # share of the query's words that a search of training leaves out
    prefer_mixed: bool = True  # documents of text and images before those of one modality

    def __post_init__(self) -> None:
        check_at_least(self, candidates=1)
        check_fractions(self, "max_score")
        check_fractions(self, "query_dropout", below_one=True)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document of an index that may stand before a query."""

    number: int  # in the index
    score: float  # inner product with the query's text or image
    by: By


@dataclass(frozen=True, slots=True)
class Found:
    """The documents nearest to a query: their numbers and scores, best first."""

    numbers: Sequence[int]
    scores: Sequence[float]


def select(
    found: Mapping[By, Found],
    n: int,
    config: RuleConfig,
    *,
    to_query: Callable[[int], float],
    between: Callable[[int, int], float],
    is_mixed: Bool[np.ndarray, " N"],
    is_allowed: Callable[[int], bool] = lambda number: True,
) -> list[Candidate]:
    """Choose up to ``n`` documents, best first in each route.

    Args:
        found: the nearest by each route that the query has.
        to_query: the score of a document and the whole query.
        between: the score of two documents.
        is_mixed: whether a document has text and images.
        is_allowed: False for the query itself, and for what is too long.
    """
    chosen: list[Candidate] = []

    def may_be(candidate: Candidate) -> bool:
        number = candidate.number
        if not is_allowed(number) or to_query(number) > config.max_score:
            return False
        taken = [each.number for each in chosen]
        return number not in taken and all(
            between(number, other) <= config.max_score for other in taken
        )

    def take(route: By, wanted: int) -> None:
        for candidate in _ranked(found[route], route, is_mixed, config):
            if wanted <= 0:
                return
            if may_be(candidate):
                chosen.append(candidate)
                wanted -= 1

    routes = [route for route in ROUTES if route in found]
    for place, route in enumerate(routes):
        take(route, (n + len(routes) - 1 - place) // len(routes))  # text gets the odd one
    for route in routes:  # what one has too few of
        take(route, n - len(chosen))
    return chosen


def _ranked(
    found: Found, by: By, is_mixed: Bool[np.ndarray, " N"], config: RuleConfig
) -> list[Candidate]:
    ranked = [Candidate(n, s, by) for n, s in zip(found.numbers, found.scores, strict=True)]
    if config.prefer_mixed:
        ranked.sort(key=lambda candidate: not is_mixed[candidate.number])  # keeps the order else
    return ranked


def drop_words(text: str, share: float, seed: int, name: str) -> str:
    """Return a text without about a share of its words, chosen by its name; one stays at least."""
    words = text.split()
    if not words or share == 0:
        return text
    draws: Float[np.ndarray, " n"] = numpy_generator(seed, "query", ascii(name)).random(len(words))
    kept = [word for word, draw in zip(words, draws, strict=True) if draw >= share]
    return " ".join(kept or [words[int(draws.argmax())]])


def draw(candidates: Sequence[int], n: int, seed: int, *, varies: bool = False) -> list[int]:
    """Return ``n`` of the candidates in random order, or all if they are fewer.

    Args:
        varies: how many is random too, from 0 to ``n``, each as likely.
    """
    generator = numpy_generator(seed, "retrieved")
    if varies:
        n = int(generator.integers(n + 1))
    order = generator.permutation(len(candidates))[:n].tolist()
    return [candidates[i] for i in order]
