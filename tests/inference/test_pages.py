"""Pages: none is lost, none is in two places, and what is remembered is what was computed."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle as Values
from hypothesis.stateful import RuleBasedStateMachine, consumes, invariant, multiple, rule

from pardalis.inference.pages import PagePool

SIZE = 2


class Walk(RuleBasedStateMachine):
    """Sequences come, match, compute, remember and go; beside the pool a plain record of each."""

    sequences = Values("sequences")  # (ids, pages), held by somebody

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
    def remember(self, sequence, share):
        ids, pages = sequence
        self.pool.add_prefix(ids[: round(share * len(ids))], pages)

    @rule(sequence=consumes(sequences))
    def end(self, sequence):
        pages = sequence[1]
        alone = sum(self.held[page] == 1 for page in pages)
        assert self.pool.freed_by(pages) == alone
        before = self.pool.available
        self.pool.release(pages)
        assert self.pool.available == before + alone
        self.held.subtract(pages)

    @invariant()
    def the_books_agree(self):
        self.pool.check()
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


def test_pages_lie_behind_each_other():
    pool = PagePool(65, SIZE)
    first = pool.allocate(4)
    second = pool.allocate(4)
    assert first == [1, 2, 3, 4]
    assert second == list(range(second[0], second[0] + 4))
    # Both can grow, since the second does not lie right behind the first.
    first += pool.allocate(3, first[-1])
    assert first == list(range(1, 8))
    assert pool.allocate(2, second[-1]) == [second[-1] + 1, second[-1] + 2]


def test_what_does_not_fit_behind_goes_elsewhere():
    pool = PagePool(9, SIZE)
    pages = pool.allocate(8)
    pool.release(pages[2:4] + pages[5:])  # 3, 4, 6, 7, 8 are free
    assert pool.allocate(4, after=2) == [3, 4, 6, 7]
    assert pool.allocate(1, after=8) == [8]  # nothing lies behind the last page


def remembered(pool: PagePool, *ids: int) -> list[int]:
    pages = pool.allocate(len(ids) // SIZE)
    pool.add_prefix(ids, pages)
    return pages


def test_a_prefix_is_found_by_its_ids():
    pool = PagePool(9, SIZE)
    pages = remembered(pool, 1, 2, 3, 4, 5, 6)
    assert pool.match([1, 2, 3, 4, 5, 6]) == pages
    assert pool.match([1, 2, 3, 4, 5]) == pages[:2]  # whole pages only
    assert pool.match([1, 2, 9, 4, 5, 6]) == pages[:1]
    assert pool.match([3, 4]) == []  # the same ids elsewhere are other keys and values


def test_ids_with_equal_hashes_are_told_apart():
    """hash(-1) is hash(-2), and so it is for tuples of them."""
    pool = PagePool(9, SIZE)
    remembered(pool, -1, -1)
    assert hash((-1, -1)) == hash((-2, -2))
    assert pool.match([-2, -2]) == []


def test_a_shared_page_survives_one_owner():
    pool = PagePool(4, SIZE)
    pages = remembered(pool, 1, 2)
    assert pool.match([1, 2]) == pages
    pool.release(pages)
    assert pool.in_use == 1
    assert pages[0] not in pool.allocate(2)
    assert pool.allocate(1) is None


def test_free_pages_go_first_then_the_least_recently_used():
    pool = PagePool(5, SIZE)
    old, new = remembered(pool, 1, 2), remembered(pool, 3, 4)
    pool.release(old)
    pool.release(new)
    assert set(pool.allocate(2)).isdisjoint(old + new)
    pool.release(pool.match([1, 2]))  # used again, so the other one is older now
    assert pool.allocate(1) == new
    assert pool.match([3, 4]) == []
    assert pool.match([1, 2]) == old


def test_the_end_of_a_prefix_is_evicted_before_its_beginning():
    pool = PagePool(4, SIZE)
    pages = remembered(pool, 1, 2, 3, 4, 5, 6)
    pool.release(pages)
    assert pool.allocate(1) == pages[2:]
    assert pool.match([1, 2, 3, 4, 5, 6]) == pages[:2]


def test_what_hangs_below_an_evicted_page_is_forgotten():
    """Two compute the same ids at the same time; the first page of one of them is the known one."""
    pool = PagePool(6, SIZE)
    first, second = pool.allocate(1), pool.allocate(2)
    pool.add_prefix([1, 2], first)
    pool.add_prefix([1, 2, 3, 4], second)
    pool.release(first)
    assert pool.match([1, 2, 3, 4]) == [*first, second[1]]
    pool.release([*first, second[1]])
    assert pool.allocate(3) is not None  # evicts the first
    pool.check()
    assert pool.match([1, 2, 3, 4]) == []
    pool.release(second)
    assert pool.available == 2
    pool.check()


@pytest.mark.parametrize("n_ids, n_pages", [(0, 0), (1, 1), (2, 1), (3, 2)])
def test_how_many_pages_ids_take(n_ids, n_pages):
    assert PagePool(2, SIZE).pages_for(n_ids) == n_pages
