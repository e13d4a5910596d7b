"""Pages of the cache of keys and values: who holds which, and what may be used again."""

import re
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence


class PagePool:
    """Hands out pages, counts who holds them, and remembers prefixes.

    The **prefix index** is a tree of pages. A page hangs below the page of the ids before it, under
    its own ids, so equal prefixes are the same path and nothing depends on a hash alone. A
    remembered page that nobody holds stays until its room is needed.

    Args:
        n_pages: pages of the cache; page 0, where padding is written, is never handed out.
        page_size: ids of a page.
    """

    def __init__(self, n_pages: int, page_size: int) -> None:
        self.page_size = page_size
        self._counts = [0] * n_pages
        self._free = bytearray(b"\1" * n_pages)
        self._free[0] = 0
        self._n_free = n_pages - 1
        self._children: dict[int, dict[tuple[int, ...], int]] = {}  # page 0 is the root
        self._place: dict[int, tuple[int, tuple[int, ...]]] = {}  # parent and ids of a page
        self._idle: OrderedDict[int, None] = OrderedDict()  # remembered only; oldest use first

    @property
    def available(self) -> int:
        """Pages that :meth:`allocate` could hand out now."""
        return self._n_free + len(self._idle)

    @property
    def in_use(self) -> int:
        """Pages that somebody holds."""
        return len(self._counts) - 1 - self.available

    def pages_for(self, n_ids: int) -> int:
        """Return how many pages n ids take."""
        return -(-n_ids // self.page_size)

    # ── holding ──────────────────────────────────────────────────────────────────────────────

    def allocate(self, n: int, after: int | None = None) -> list[int] | None:
        """Return n pages that the caller holds alone; None, and no change, if there are too few.

        Args:
            after: the page that they follow in a sequence, so that they lie behind it if they can.
        """
        if n > self.available:
            return None
        if n > self._n_free:
            # Some more than asked, so that what is free lies in runs.
            self._evict(max(n, len(self._counts) // 8))
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
        """Give pages back; the remembered ones can be matched until they are evicted."""
        for page in reversed(pages):  # so that the end of a prefix is evicted before its beginning
            self._counts[page] -= 1
            if self._counts[page] == 0:
                if page in self._place:
                    self._idle[page] = None
                else:
                    self._make_free(page)

    def freed_by(self, pages: Sequence[int]) -> int:
        """Return how many of these pages nobody would hold any more if they were released."""
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
        if start > 1:  # the middle, so that the sequence before it can grow too
            start += max(end - start - n, 0) // 2
        return range(start, min(start + n, end))

    # ── remembering ──────────────────────────────────────────────────────────────────────────

    def match(self, ids: Sequence[int]) -> list[int]:
        """Return the pages of the longest remembered prefix; the caller now holds them too."""
        pages: list[int] = []
        page: int | None = 0
        for piece in self._pieces(ids):
            page = self._children.get(page or 0, {}).get(piece)
            if page is None:
                break
            pages.append(page)
        for page in pages:
            self._counts[page] += 1
            self._idle.pop(page, None)
        return pages

    def remember(self, ids: Sequence[int], pages: Sequence[int]) -> None:
        """Enter the whole pages of a computed sequence, whose pages the caller holds."""
        parent = 0
        for piece, page in zip(self._pieces(ids), pages, strict=False):
            known = self._children.setdefault(parent, {}).setdefault(piece, page)
            if known == page:
                self._place[page] = (parent, piece)
            parent = known

    def _pieces(self, ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Yield the ids of every whole page."""
        size = self.page_size
        return (tuple(ids[end - size : end]) for end in range(size, len(ids) + 1, size))

    def _evict(self, n: int) -> None:
        """Forget what was not used for the longest time, until n pages are free."""
        while self._n_free < n and self._idle:
            self._forget(next(iter(self._idle)))

    def _forget(self, page: int) -> None:
        """Take a page and what hangs below it, which is out of reach then, from the index."""
        parent, piece = self._place[page]
        del self._children[parent][piece]
        if not self._children[parent]:
            del self._children[parent]
        unreachable = [page]
        while unreachable:
            page = unreachable.pop()
            unreachable += self._children.pop(page, {}).values()
            del self._place[page]
            if self._counts[page] == 0:
                del self._idle[page]
                self._make_free(page)

    def _make_free(self, page: int) -> None:
        self._free[page] = 1
        self._n_free += 1

    # ── checking ─────────────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        """Raise AssertionError if the books contradict each other."""
        held = {page for page, count in enumerate(self._counts) if count}
        free = {page for page, flag in enumerate(self._free) if flag}
        assert min(self._counts) >= 0
        assert self._n_free == len(free)
        assert held | free | self._idle.keys() == set(range(1, len(self._counts)))
        assert len(held) + len(free) + len(self._idle) == len(self._counts) - 1
        assert self._idle.keys() == self._place.keys() - held
        assert self._place == {
            page: (parent, piece)
            for parent, children in self._children.items()
            for piece, page in children.items()
        }
        assert all(self._children.values())
        assert self._children.keys() <= self._place.keys() | {0}
