"""The invariants of a page pool."""

from pardalis.inference.pages import PagePool


def check_pool(pool: PagePool) -> None:
    """Raise AssertionError if the state is inconsistent."""
    held = {page for page, count in enumerate(pool._counts) if count}
    free = {page for page, flag in enumerate(pool._free) if flag}
    assert min(pool._counts) >= 0
    assert pool._n_free == len(free)
    assert held | free | pool._cached.keys() == set(range(1, len(pool._counts)))
    assert len(held) + len(free) + len(pool._cached) == len(pool._counts) - 1
    assert pool._cached.keys() == pool._indexed.keys() - held
    assert pool._indexed == {
        page: (parent, tokens)
        for parent, children in pool._children.items()
        for tokens, page in children.items()
    }
    assert all(pool._children.values())
    assert pool._children.keys() <= pool._indexed.keys() | {0}
