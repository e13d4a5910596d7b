"""Retrieving documents for a query, and laying them out before it.

A sequence is ``bos``, the retrieved documents without their ``bos`` and ``eos``, each with the
separator behind it if the index has one, and then the query, as in CM3Leon (arXiv 2309.02591).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float

from pardalis import config as configs
from pardalis.codec import Codec
from pardalis.config import check_at_least
from pardalis.documents import Document
from pardalis.errors import RequestError
from pardalis.retrieval.embedders import EMBEDDERS, Embedder, EmbedderConfig, Queries, embed
from pardalis.retrieval.index import Index, separator_id
from pardalis.retrieval.rules import ROUTES, By, Candidate, Found, RuleConfig, select
from pardalis.retrieval.search import Nearest, Search, SearchKind, resolved
from pardalis.tokens import Encoded, Grammar, SpanKind

_POOL = 32  # nearest documents that the rules choose from at first
_GROWTH = 8  # times as many are taken while the rules leave too few of them


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieved:
    """A document that stands before a prompt."""

    source: str  # of the index
    name: str
    number: int  # in the index
    score: float  # inner product of its vector and that of the prompt's text or image
    by: By


def retrieve(
    index: Index,
    search: Search,
    queries: Queries,
    n: int,
    rules: RuleConfig,
    *,
    wholes: Float[np.ndarray, "Q D"] | None = None,
    is_allowed: Callable[[int, int], bool] = lambda query, number: True,
) -> list[list[Candidate]]:
    """Return up to ``n`` documents for each query, by the rules.

    Args:
        queries: the vectors to search by.
        wholes: the vectors of the whole queries, which no document may resemble too much; by
            default those of ``queries``.
        is_allowed: whether a query may get a document, both as numbers.
    """
    if wholes is None:
        wholes = queries.whole
    chosen: list[list[Candidate] | None] = [None] * len(queries)
    pool = min(_POOL, len(index))
    prefers = rules.prefer_mixed and bool(index.is_mixed.any())
    while open_ := [q for q, found in enumerate(chosen) if found is None]:
        of_routes: dict[By, Nearest] = {
            "text": search.nearest(queries.text[open_], pool),
            "image": search.nearest(queries.image[open_], pool),
        }
        for place, q in enumerate(open_):
            found = {
                route: _found(of_routes[route], place)
                for route in ROUTES
                if getattr(queries, route)[q].any()
            }
            whole = wholes[q]
            candidates = select(
                found,
                n,
                rules,
                to_query=lambda number, whole=whole: float(index.vectors[number] @ whole),
                between=lambda a, b: float(index.vectors[a] @ index.vectors[b]),
                is_mixed=index.is_mixed,
                is_allowed=lambda number, q=q: is_allowed(q, number),
            )
            is_best = not prefers or all(index.is_mixed[c.number] for c in candidates)
            if pool == len(index) or not found or (len(candidates) == n and is_best):
                chosen[q] = candidates
        pool = min(_GROWTH * pool, len(index))
    return [found for found in chosen if found is not None]


def _found(nearest: Nearest, place: int) -> Found:
    numbers, scores = nearest[0][place].tolist(), nearest[1][place].tolist()
    there = [(n, s) for n, s in zip(numbers, scores, strict=True) if n >= 0]
    return Found([n for n, _ in there], [s for _, s in there])


def laid_out(
    documents: Sequence[Encoded], query: Encoded, grammar: Grammar, separator: str
) -> Encoded:
    """Return retrieved documents and the query behind them as one sequence.

    Args:
        documents: whole ones in token ids.
        query: a document, or the prompt of one, in token ids.
        separator: name of the special id behind each retrieved document; "": none.
    """
    opening = grammar.opening_length(query.ids)
    behind = [Encoded.of([separator_id(grammar, separator)])] if separator else []
    parts = [part for each in documents for part in (inside(each, grammar), *behind)]
    return Encoded.joined(query[:opening], *parts, query[opening:])


def inside(document: Encoded, grammar: Grammar) -> Encoded:
    """Return a document without its opening and ``eos``."""
    spans = grammar.spans(document.ids[-1:])
    stop = len(document) - (len(spans) == 1 and spans[0].kind is SpanKind.EOS)
    return document[grammar.opening_length(document.ids) : stop]


class Retriever:
    """Puts documents of an index before prompts.

        retriever = Retriever(Path("my-index"), documents=2)
        pardalis.generate(bundle, "a flat drawing of a deer", mode="image", retriever=retriever)

    Args:
        index: an index, or its folder.
        documents: how many a prompt gets, at most.
        embedder: where the weights of the index's nets are, if no package holds them.
        search: how vectors are found.
        rules: what may be retrieved; words of prompts are not dropped.

    Raises:
        DataError: there is no index, it is damaged, or the nets are not those that made it.
        BundleError, ConfigError: the nets cannot be loaded, or a value is out of range.
    """

    def __init__(
        self,
        index: Index | Path | str,
        documents: int = 2,
        *,
        embedder: EmbedderConfig | None = None,
        search: SearchKind = "auto",
        rules: RuleConfig | None = None,
    ) -> None:
        self.documents, self.rules = documents, rules or RuleConfig()
        check_at_least(self, documents=0)
        self.index = index if isinstance(index, Index) else Index.open(Path(index))
        self.index.read_names()  # an index that is built anew meanwhile changes nothing
        self._embedder: Embedder = self.index.embedder(embedder)
        self._search_kind = resolved(search, len(self.index))
        self._search = self.index.search(self._search_kind)
        self._checked: Codec | None = None

    def find(
        self, query: Document, n: int | None = None, most_tokens: int | None = None
    ) -> list[Candidate]:
        """Return the documents for a query, best first.

        Args:
            n: how many, at most; None: ``documents``.
            most_tokens: of each document; None: any.

        Raises:
            RequestError: the query has neither text nor an image, or nothing may be retrieved.
        """
        n = self.documents if n is None else n
        queries = embed(self._embedder, [query])
        if not queries.whole.any():
            raise RequestError(
                "The query has neither text nor an image that can be read, so nothing can be "
                "retrieved for it; give it one of the two, or retrieve no documents."
            )
        longest = np.inf if most_tokens is None else most_tokens
        lengths = self.index.lengths
        [found] = retrieve(
            self.index,
            self._search,
            queries,
            n,
            self.rules,
            is_allowed=lambda query, number: bool(lengths[number] <= longest),
        )
        if n and not found:
            raise RequestError(
                f"None of the {len(self.index)} documents of the index may be retrieved: each is "
                f"longer than the {longest:g} tokens that are left for it, or has a score above "
                f"max_score ({self.rules.max_score}); shorten the prompt, or raise max_score."
            )
        return found

    def retrieved(self, candidates: Sequence[Candidate]) -> tuple[Retrieved, ...]:
        """Return the names of documents that were found."""
        return tuple(
            Retrieved(source=source, name=name, number=each.number, score=each.score, by=each.by)
            for each in candidates
            for source, name in [self.index.source_and_name(each.number)]
        )

    def content(self, retrieved: Retrieved, codec: Codec) -> Document:
        """Return a document that stands before a prompt as the model reads it.

        Raises:
            DataError: the index is of another codec, or damaged.
        """
        self.require_fits(codec)
        return codec.decode(self.index.document(retrieved.number).ids)

    def before(
        self, query: Document, prompt_ids: Sequence[int], codec: Codec, room: int
    ) -> tuple[list[int], tuple[Retrieved, ...]]:
        """Return the token ids of a prompt with documents before it, and what these are.

        The best stands next to the prompt.

        Args:
            prompt_ids: the query in token ids.
            room: the tokens that the documents may have together. Those that would exceed it are
                left out.

        Raises:
            DataError: the index is of another codec.
            RequestError: as :meth:`find`.
        """
        if self.documents == 0:
            return list(prompt_ids), ()
        self.require_fits(codec)
        extra = 1 if self.index.separator else 0
        kept, documents, left = [], [], room
        n_frame = len(codec.grammar.opening) + 1
        for candidate in self.find(query, most_tokens=room + n_frame - extra):
            document = self.index.document(candidate.number)
            if (length := len(inside(document, codec.grammar)) + extra) <= left:
                kept.append(candidate)
                documents.append(document)
                left -= length
        prompt = laid_out(
            documents[::-1], Encoded.of(list(prompt_ids)), codec.grammar, self.index.separator
        )
        return prompt.ids.tolist(), self.retrieved(kept)

    def require_fits(self, codec: Codec) -> None:
        """Raise DataError unless the index holds documents in the token ids of a codec."""
        if self._checked is not codec:
            self.index = self.index.read_by(codec)
            self._checked = codec

    def facts(self) -> dict[str, Any]:
        """Return what decides which documents a prompt gets."""
        return {
            "index": self.index.identity,
            "documents": self.documents,
            "search": self._search_kind,
            "rules": configs.to_dict(self.rules),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrieverConfig:
    """A :class:`Retriever` in plain values, with the same meanings and defaults."""

    index: Path
    documents: int = 2
    embedder: Annotated[EmbedderConfig, EMBEDDERS] | None = None
    search: SearchKind = "auto"
    rules: RuleConfig = field(default_factory=RuleConfig)

    def __post_init__(self) -> None:
        check_at_least(self, documents=0)

    def build(self) -> Retriever:
        """Open the index and load its nets; raises as :class:`Retriever`."""
        return Retriever(
            self.index,
            self.documents,
            embedder=self.embedder,
            search=self.search,
            rules=self.rules,
        )
