"""Allocation of cache pages, their reference counts, and reuse of cached prefixes."""

import re
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence


class PagePool:
    """Allocates pages, counts their holders, and caches prefixes.

    The **prefix index** is a tree of pages. A page is a child of the page before it and is keyed by
    its own tokens, so equal prefixes are the same path and hash collisions cannot confuse them. An
    indexed page without holders stays cached until its memory is needed.

    Args:
        n_pages: pages of the cache; page 0, where padding is written, is never allocated.
        page_size: tokens of a page.
    """

    def __init__(self, n_pages: int, page_size: int) -> None:
        self.page_size = page_size
        self._counts = [0] * n_pages
        self._free = bytearray(b"\1" * n_pages)
        self._free[0] = 0
        self._n_free = n_pages - 1
        self._children: dict[int, dict[tuple[int, ...], int]] = {}  # page 0 is the root
        self._indexed: dict[int, tuple[int, tuple[int, ...]]] = {}  # parent and tokens of a page
        self._cached: OrderedDict[int, None] = OrderedDict()  # indexed, not held; oldest use first

    @property
    def available(self) -> int:
        """Pages that :meth:`allocate` could return now."""
        return self._n_free + len(self._cached)

    @property
    def in_use(self) -> int:
        """Pages that are held."""
        return len(self._counts) - 1 - self.available

    def pages_for(self, n_tokens: int) -> int:
        """Return how many pages n tokens take."""
        return -(-n_tokens // self.page_size)

    # ── allocation ───────────────────────────────────────────────────────────────────────────

    def allocate(self, n: int, after: int | None = None) -> list[int] | None:
        """Return n pages that only the caller holds; None, without any change, for too few.

        Args:
            after: the last page of their sequence; pages right behind it are preferred.
        """
        if n > self.available:
            return None
        if n > self._n_free:  # evict more than needed, so that free pages form longer runs
            n_free = max(n, len(self._counts) // 8)
            while self._n_free < n_free and self._cached:
                self._forget(next(iter(self._cached)))  # the least recently used
        pages: list[int] = []
        while len(pages) < n:
            run = self._run(n - len(pages), after)
            pages += run
            self._free[run.start : run.stop] = bytes(len(run))
            after = None
        for page in pages:
            self._counts[page] = 1
        self._n_free -= n
        return pages

    def release(self, pages: Sequence[int]) -> None:
        """Return pages; the indexed ones can be matched until they are evicted."""
        for page in reversed(pages):  # the end of a prefix is evicted before its beginning
            self._counts[page] -= 1
            if self._counts[page] == 0:
                if page in self._indexed:
                    self._cached[page] = None
                else:
                    self._make_free(page)

    def freed_by(self, pages: Sequence[int]) -> int:
        """Return how many of these pages would have no holder left after their release."""
        return sum(self._counts[page] == n for page, n in Counter(pages).items())

    def _run(self, n: int, after: int | None) -> range:
        """Return up to n free consecutive pages."""
        following = len(self._counts) if after is None else after + 1
        if following < len(self._counts) and self._free[following]:
            end = self._free.find(0, following)
            end = len(self._counts) if end < 0 else end
            return range(following, min(following + n, end))
        start, end = max(
            (match.span() for match in re.finditer(b"\1+", self._free)),
            key=lambda span: span[1] - span[0],
        )
        if start > 1:  # the middle of the run, so that the sequence before it can grow too
            start += max(end - start - n, 0) // 2
        return range(start, min(start + n, end))

    # ── prefix index ─────────────────────────────────────────────────────────────────────────

    def match(self, ids: Sequence[int], adapter: int = 0) -> list[int]:
        """Return the pages of the longest cached prefix; the caller becomes a holder of them.

        Args:
            adapter: what keys and values depend on besides the tokens; a prefix is of one adapter.
        """
        pages: list[int] = []
        page: int | None = 0
        for tokens in self._tokens_of_pages(ids, adapter):
            page = self._children.get(page or 0, {}).get(tokens)
            if page is None:
                break
            pages.append(page)
        for page in pages:
            self._counts[page] += 1
            self._cached.pop(page, None)
        return pages

    def add_prefix(self, ids: Sequence[int], pages: Sequence[int], adapter: int = 0) -> None:
        """Add the full pages of a computed sequence to the index; the caller holds the pages."""
        parent = 0
        for tokens, page in zip(self._tokens_of_pages(ids, adapter), pages, strict=False):
            known = self._children.setdefault(parent, {}).setdefault(tokens, page)
            if known == page:
                self._indexed[page] = (parent, tokens)
            parent = known

    def forget_prefixes(self) -> None:
        """Empty the index, for keys and values that are no longer valid; no page may be held."""
        while self._cached:
            self._forget(next(iter(self._cached)))

    def _tokens_of_pages(self, ids: Sequence[int], adapter: int) -> Iterator[tuple[int, ...]]:
        size = self.page_size
        for end in range(size, len(ids) + 1, size):
            tokens = tuple(ids[end - size : end])
            yield (-adapter, *tokens) if adapter and end == size else tokens

    def _forget(self, page: int) -> None:
        """Remove a page and its descendants, which become unreachable, from the index."""
        parent, tokens = self._indexed[page]
        del self._children[parent][tokens]
        if not self._children[parent]:
            del self._children[parent]
        unreachable = [page]
        while unreachable:
            page = unreachable.pop()
            unreachable += self._children.pop(page, {}).values()
            del self._indexed[page]
            if self._counts[page] == 0:
                del self._cached[page]
                self._make_free(page)

    def _make_free(self, page: int) -> None:
        self._free[page] = 1
        self._n_free += 1
