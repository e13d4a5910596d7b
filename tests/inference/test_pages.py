"""Pages: none is lost or allocated twice, and cached prefixes are what was computed."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle as Values
from hypothesis.stateful import RuleBasedStateMachine, consumes, invariant, multiple, rule
from page_pool import check_pool

from pardalis.inference.pages import PagePool

SIZE = 2


class Walk(RuleBasedStateMachine):
    """Sequences start, match, are indexed and end, in the pool and in a plain record beside it."""

    sequences = Values("sequences")  # (ids, pages), held

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(9, SIZE)
        self.held: Counter[int] = Counter()
        self.prefix: dict[int, tuple[int, ...]] = {}  # what a page was computed from

    @rule(target=sequences, ids=st.lists(st.integers(0, 1), min_size=1, max_size=12))
    def begin(self, ids):
        ids = tuple(ids)
        before = self.pool.available
        pages = self.pool.match(ids[:-1])
        for n, page in enumerate(pages, start=1):
            assert self.prefix[page] == ids[: n * SIZE]
        n_more = self.pool.pages_for(len(ids)) - len(pages)
        free = self.pool.available
        more = self.pool.allocate(n_more, pages[-1] if pages else None)
        assert (more is None) == (n_more > free)
        if more is None:
            self.pool.release(pages)
            assert self.pool.available == before
            return multiple()
        assert len(set(more)) == n_more
        assert not any(self.held[page] for page in more)
        pages += more
        self.held.update(pages)
        for n, page in enumerate(pages, start=1):
            self.prefix[page] = ids[: n * SIZE]
        return (ids, pages)

    @rule(sequence=sequences, share=st.floats(0, 1))
    def add_prefix(self, sequence, share):
        ids, pages = sequence
        self.pool.add_prefix(ids[: round(share * len(ids))], pages)

    @rule(sequence=consumes(sequences))
    def end(self, sequence):
        pages = sequence[1]
        n_freed = sum(self.held[page] == 1 for page in pages)
        assert self.pool.freed_by(pages) == n_freed
        before = self.pool.available
        self.pool.release(pages)
        assert self.pool.available == before + n_freed
        self.held.subtract(pages)

    @invariant()
    def the_pool_is_consistent(self):
        check_pool(self.pool)
        held = {page for page, n in self.held.items() if n}
        assert 0 not in held
        assert self.pool.in_use == len(held)
        assert self.pool.available == 8 - len(held)


Walk.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestWalk = Walk.TestCase


def test_too_many_pages_are_refused_and_nothing_changes():
    pool = PagePool(5, SIZE)
    assert pool.allocate(5) is None
    assert sorted(pool.allocate(4)) == [1, 2, 3, 4]
    assert pool.allocate(1) is None
    assert (pool.available, pool.in_use) == (0, 4)


def test_pages_are_consecutive():
    pool = PagePool(65, SIZE)
    first = pool.allocate(4)
    second = pool.allocate(4)
    assert first == [1, 2, 3, 4]
    assert second == list(range(second[0], second[0] + 4))
    # Both can grow, since the second is not right behind the first.
    first += pool.allocate(3, first[-1])
    assert first == list(range(1, 8))
    assert pool.allocate(2, second[-1]) == [second[-1] + 1, second[-1] + 2]


def test_pages_that_do_not_fit_behind_are_elsewhere():
    pool = PagePool(9, SIZE)
    pages = pool.allocate(8)
    pool.release(pages[2:4] + pages[5:])  # 3, 4, 6, 7, 8 are free
    assert pool.allocate(4, after=2) == [3, 4, 6, 7]
    assert pool.allocate(1, after=8) == [8]  # there is no page behind the last one


def with_prefix(pool: PagePool, *ids: int) -> list[int]:
    pages = pool.allocate(len(ids) // SIZE)
    pool.add_prefix(ids, pages)
    return pages


def test_a_prefix_is_found_by_its_ids():
    pool = PagePool(9, SIZE)
    pages = with_prefix(pool, 1, 2, 3, 4, 5, 6)
    assert pool.match([1, 2, 3, 4, 5, 6]) == pages
    assert pool.match([1, 2, 3, 4, 5]) == pages[:2]  # full pages only
    assert pool.match([1, 2, 9, 4, 5, 6]) == pages[:1]
    assert pool.match([3, 4]) == []  # the same tokens elsewhere have other keys and values


def test_tokens_with_equal_hashes_are_distinguished():
    """hash(-1) is hash(-2), and so it is for tuples of them."""
    pool = PagePool(9, SIZE)
    with_prefix(pool, -1, -1)
    assert hash((-1, -1)) == hash((-2, -2))
    assert pool.match([-2, -2]) == []


def test_a_shared_page_survives_one_holder():
    pool = PagePool(4, SIZE)
    pages = with_prefix(pool, 1, 2)
    assert pool.match([1, 2]) == pages
    pool.release(pages)
    assert pool.in_use == 1
    assert pages[0] not in pool.allocate(2)
    assert pool.allocate(1) is None


def test_free_pages_are_allocated_first_then_the_least_recently_used():
    pool = PagePool(5, SIZE)
    old, new = with_prefix(pool, 1, 2), with_prefix(pool, 3, 4)
    pool.release(old)
    pool.release(new)
    assert set(pool.allocate(2)).isdisjoint(old + new)
    pool.release(pool.match([1, 2]))  # used again, so the other one is now the least recently used
    assert pool.allocate(1) == new
    assert pool.match([3, 4]) == []
    assert pool.match([1, 2]) == old


def test_the_end_of_a_prefix_is_evicted_before_its_beginning():
    pool = PagePool(4, SIZE)
    pages = with_prefix(pool, 1, 2, 3, 4, 5, 6)
    pool.release(pages)
    assert pool.allocate(1) == pages[2:]
    assert pool.match([1, 2, 3, 4, 5, 6]) == pages[:2]


def test_descendants_of_an_evicted_page_are_removed():
    """Two sequences compute the same tokens at once; the first page of one of them is indexed."""
    pool = PagePool(6, SIZE)
    first, second = pool.allocate(1), pool.allocate(2)
    pool.add_prefix([1, 2], first)
    pool.add_prefix([1, 2, 3, 4], second)
    pool.release(first)
    assert pool.match([1, 2, 3, 4]) == [*first, second[1]]
    pool.release([*first, second[1]])
    assert pool.allocate(3) is not None  # evicts the first
    check_pool(pool)
    assert pool.match([1, 2, 3, 4]) == []
    pool.release(second)
    assert pool.available == 2
    check_pool(pool)


@pytest.mark.parametrize("n_tokens, n_pages", [(0, 0), (1, 1), (2, 1), (3, 2)])
def test_pages_for_tokens(n_tokens, n_pages):
    assert PagePool(2, SIZE).pages_for(n_tokens) == n_pages
