from bisect import bisect_left, insort

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis.data import Packing, best_fit, split_long
from pardalis.errors import DataError
from pardalis.tokens import Encoded, Grammar, Vocabulary

VOCABULARY = Vocabulary.build(n_codes=12, n_text=20)
GRAMMAR = Grammar(VOCABULARY, codes_per_image=4)

lengths_and_row_tokens = st.integers(1, 60).flatmap(
    lambda row_tokens: st.tuples(
        st.lists(st.integers(1, row_tokens), max_size=120), st.just(row_tokens)
    )
)


def rows_of(packing: Packing) -> list[list[int]]:
    return [packing.row(row).tolist() for row in range(packing.n_rows)]


@given(lengths_and_row_tokens)
@settings(deadline=None)
def test_every_document_is_in_one_row_and_no_row_overflows(case: tuple[list[int], int]):
    lengths, row_tokens = case
    rows = rows_of(best_fit(np.array(lengths, dtype=np.int64), row_tokens))
    assert sorted(document for row in rows for document in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[document] for document in row) <= row_tokens for row in rows)


@given(lengths_and_row_tokens)
@settings(deadline=None)
def test_rows_are_filled_as_by_best_fit_decreasing_one_by_one(case: tuple[list[int], int]):
    lengths, row_tokens = case
    spaces: list[int] = []  # the oracle: free tokens of each row, ascending
    for length in sorted(lengths, reverse=True):
        best = bisect_left(spaces, length)
        insort(spaces, (spaces.pop(best) if best < len(spaces) else row_tokens) - length)
    rows = rows_of(best_fit(np.array(lengths, dtype=np.int64), row_tokens))
    assert sorted(row_tokens - sum(lengths[document] for document in row) for row in rows) == spaces


def test_example():
    assert rows_of(best_fit(np.array([3, 7, 5, 5, 2]), 10)) == [[0, 1], [2, 3], [4]]


def test_same_lengths_same_plan():
    lengths = np.random.default_rng(0).integers(1, 100, 5_000)
    first, second = best_fit(lengths, 128), best_fit(lengths.copy(), 128)
    assert np.array_equal(first.members, second.members)
    assert np.array_equal(first.offsets, second.offsets)


def test_a_realistic_mixture_of_lengths_leaves_little_padding():
    lengths = np.clip(np.random.default_rng(0).lognormal(5, 1, 20_000), 1, 2048).astype(np.int64)
    packing = best_fit(lengths, 2048)
    assert lengths.sum() / (packing.n_rows * 2048) > 0.999


@pytest.mark.parametrize("length", [0, 11])
def test_a_length_outside_a_row_is_refused(length: int):
    with pytest.raises(ValueError, match=rf"lengths must be in 1\.\.10, got .*{length}"):
        best_fit(np.array([5, length]), 10)


# ── split_long ───────────────────────────────────────────────────────────────────────────────

IMAGE = [VOCABULARY.begin_image_id, *[VOCABULARY.image.start] * 4, VOCABULARY.end_image_id]

segments = st.one_of(
    st.just(IMAGE),
    st.lists(st.sampled_from([*VOCABULARY.text, VOCABULARY.end_turn_id]), max_size=30),
)


@st.composite
def valid_documents(draw: st.DrawFn) -> Encoded:
    body = [token_id for segment in draw(st.lists(segments, max_size=6)) for token_id in segment]
    ids = np.array([VOCABULARY.bos_id, *body, VOCABULARY.eos_id])
    weights = draw(st.lists(st.sampled_from([0, 1, 2]), min_size=len(ids), max_size=len(ids)))
    return Encoded(ids, np.array(weights, dtype=np.float32))


@given(valid_documents(), st.integers(8, 30))
@settings(deadline=None)
def test_parts_are_whole_sequences_that_fit_and_join_to_the_document(
    document: Encoded, row_tokens: int
):
    parts = split_long(document, row_tokens, GRAMMAR)
    assert Encoded.joined(document[:1], *(part[1:] for part in parts)) == document
    for part in parts:
        assert part.ids[0] == VOCABULARY.bos_id
        assert len(part) <= row_tokens
        ending = [] if part is parts[-1] else [VOCABULARY.eos_id]
        GRAMMAR.validate([*part.ids.tolist(), *ending])  # raises if an image was cut
        assert part.ids[1] != VOCABULARY.eos_id or len(parts) == 1  # eos never stands alone


def test_a_document_that_fits_stays_one_part():
    document = Encoded.of([0, 25, 26, 2])
    assert split_long(document, 4, GRAMMAR) == [document]


def test_a_cut_goes_before_an_image_that_does_not_fit_any_more():
    parts = split_long(Encoded.of([0, 25, 26, *IMAGE, 27, 2]), 8, GRAMMAR)
    assert [part.ids.tolist() for part in parts] == [[0, 25, 26], [0, *IMAGE], [0, 27, 2]]


def test_an_image_longer_than_a_row_is_refused():
    with pytest.raises(
        DataError,
        match=r"image at position 2 needs 7 tokens with its <bos>, but a row has 6; raise row_",
    ):
        split_long(Encoded.of([0, 25, *IMAGE, 27, 2]), 6, GRAMMAR)


def test_the_last_image_needs_space_for_eos_too():
    with pytest.raises(DataError, match=r"image at position 3 needs 8 tokens .* a row has 7"):
        split_long(Encoded.of([0, 25, 26, *IMAGE, 2]), 7, GRAMMAR)
