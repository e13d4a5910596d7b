"""Concepts and articles as documents: pairs, conversations, pages, plain articles."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from pardalis.corpora.captions import with_article
from pardalis.corpora.encyclopedia.concepts import Concept
from pardalis.corpora.encyclopedia.packages import (
    ARTICLE_LICENCE,
    IMAGE_LICENCE,
    PAGE_LICENCE,
    Article,
)
from pardalis.corpora.encyclopedia.prose import sentences, shorten
from pardalis.documents.document import Document, Image, Text

_T = TypeVar("_T")

_RELATED = 3  # concepts on a page that relates them


def image_path(concept: Concept) -> Path:
    """Return the concept's image file, relative to the corpus folder."""
    return Path("images", f"{concept.key}.png")


def pair(concept: Concept) -> Document:
    """Return the concept's name, then its image."""
    segments = (Text(concept.name), _image(concept))
    return Document(segments, f"pair/{concept.key}", IMAGE_LICENCE)


def drawing_request(concept: Concept) -> Document:
    """Return a user's request to draw the concept, and its image."""
    prompt = Text(f"Draw {with_article(concept.name)}.", "user")
    image = replace(_image(concept), role="assistant")
    return Document((prompt, image), f"draw/{concept.key}", IMAGE_LICENCE)


def naming_request(concept: Concept) -> Document:
    """Return a user's image with a question, and the name of the concept."""
    image = replace(_image(concept), role="user")
    question = Text("What is this?", "user")
    name = with_article(concept.name)
    answer = Text(f"{name[0].upper()}{name[1:]}.", "assistant")
    return Document((image, question, answer), f"name/{concept.key}", IMAGE_LICENCE)


def page(concept: Concept, article: Article, lead_words: int) -> Document:
    """Return an encyclopedia page: title, image, lead paragraph."""
    lead = shorten(article.lead, lead_words)
    segments = (Text(f"{article.title}\n"), _image(concept), Text(lead))
    return Document(segments, f"page/{concept.key}", PAGE_LICENCE)


def related_pages(described: Iterable[tuple[Concept, Article]]) -> Iterator[Document]:
    """Yield pages of two or three concepts that share a topic and are close in Unicode."""

    def topic(entry: tuple[Concept, Article]) -> str:
        return entry[1].topic

    entries = sorted(described, key=lambda entry: (topic(entry), entry[0].code_points))
    for _, same_topic in groupby(entries, key=topic):
        for group in groups_of(list(same_topic), _RELATED):
            titles = ", ".join(article.title for _, article in group)
            segments: list[Text | Image] = [Text(f"See also: {titles}\n")]
            for concept, article in group:
                first = sentences(article.lead)[0]
                segments += [Text(f"{article.title}\n"), _image(concept), Text(f"{first}\n")]
            name = "related/" + "+".join(concept.key for concept, _ in group)
            yield Document(tuple(segments), name, PAGE_LICENCE)


def article_page(article: Article, lead_words: int) -> Document:
    """Return an article as text alone: its title and lead."""
    lead = shorten(article.lead, lead_words)
    segments = (Text(f"{article.title}\n{lead}"),)
    return Document(segments, f"article/{article.title}", ARTICLE_LICENCE)


def explanation_request(article: Article, lead_words: int) -> Document:
    """Return a user's question about the title of an article, and its lead."""
    prompt = Text(f"Tell me about {article.title}.", "user")
    answer = Text(shorten(article.lead, lead_words), "assistant")
    return Document((prompt, answer), f"explain/{article.title}", ARTICLE_LICENCE)


def groups_of(items: list[_T], size: int) -> list[list[_T]]:
    """Return consecutive groups of ``size`` items, or fewer, but never of one item alone."""
    groups = [items[start : start + size] for start in range(0, len(items), size)]
    if groups and len(groups[-1]) == 1:
        (last,) = groups.pop()
        if groups:
            groups.append([groups[-1].pop(), last])
    return groups


def _image(concept: Concept) -> Image:
    return Image(image_path(concept), alt=concept.name)
