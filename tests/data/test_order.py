from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis.data import Order


@given(st.integers(1, 200), st.integers(0, 2**62), st.integers(0, 3))
@settings(deadline=None)
def test_every_row_occurs_once_in_an_epoch(n_rows: int, seed: int, epoch: int):
    order = Order(n_rows, seed, "emoji")
    served = [order.at(epoch * n_rows + index) for index in range(n_rows)]
    assert {found for found, _ in served} == {epoch}
    assert sorted(row for _, row in served) == list(range(n_rows))


@given(st.lists(st.integers(0, 500), max_size=30))
@settings(deadline=None)
def test_a_position_gives_the_same_row_in_any_order_of_queries(positions: list[int]):
    order = Order(50, 7, "emoji")
    assert [order.at(p) for p in positions] == [Order(50, 7, "emoji").at(p) for p in positions]


def test_epochs_seeds_and_sources_are_shuffled_differently():
    def epoch(number: int, seed: int = 0, source: str = "a") -> tuple[int, ...]:
        order = Order(100, seed, source)
        return tuple(order.at(number * 100 + index)[1] for index in range(100))

    shuffles = {epoch(0), epoch(1), epoch(0, seed=1), epoch(0, source="b"), tuple(range(100))}
    assert len(shuffles) == 5
