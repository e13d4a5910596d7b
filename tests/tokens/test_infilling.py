"""Rotation and its inverse, against the published examples and a naive form."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pardalis.errors import GrammarError, RequestError
from pardalis.tokens import (
    END_MASK,
    Encoded,
    Grammar,
    Limits,
    Phase,
    Rule,
    Vocabulary,
    mask_names,
    open_gap,
    restore,
    rotate,
)

PAPER = Vocabulary.build(n_codes=12, n_text=20).extended(mask_names(4))
OWN_ENDS = PAPER.extended([END_MASK], writable=[END_MASK])
M0, M1, M2, _ = PAPER.masks
BOS, EOS, END = PAPER.bos_id, PAPER.eos_id, OWN_ENDS.end_mask_id
A, B, C, D, E, F = PAPER.text[:6]
BEGIN, CLOSE, CODE = PAPER.begin_image_id, PAPER.end_image_id, PAPER.image.start


def rotated(ids, *spans, **options) -> list[int]:
    return rotate(Encoded.of(ids), spans, OWN_ENDS, **options).ids.tolist()


# ── the published examples ───────────────────────────────────────────────────────────────────────


def test_one_span():
    body = [A, M0, D, E, F, M0, B, C]
    assert rotated([A, B, C, D, E, F, EOS], (1, 3)) == [*body, EOS]
    assert rotated([A, B, C, D, E, F], (1, 3), own_ends=True) == [*body, END]


def test_two_spans_take_three_tokens_each():
    expected = [A, M0, C, M1, F, M0, B, END, M1, D, E, END]
    assert rotated([A, B, C, D, E, F], (1, 2), (3, 5), own_ends=True) == expected
    assert len(expected) == 6 + 3 * 2


def test_weights_stay_with_their_tokens_and_masks_may_have_none():
    document = Encoded.of([BOS, A, B, C, EOS])
    document.weights[:] = [0, 1, 2, 3, 4]
    assert rotate(document, [(2, 3)], PAPER).weights.tolist() == [0, 1, 2, 3, 2, 2, 4]
    learnt = rotate(document, [(2, 3)], PAPER, learns_masks=False)
    assert learnt.weights.tolist() == [0, 1, 0, 3, 0, 2, 4]
    ends = rotate(document, [(2, 4)], OWN_ENDS, own_ends=True)
    assert ends.ids.tolist() == [BOS, A, M0, M0, B, C, END, EOS]
    assert ends.weights.tolist() == [0, 1, 2, 2, 2, 3, 3, 4]


# ── properties ───────────────────────────────────────────────────────────────────────────────────


@st.composite
def documents(draw):
    """Return ids and spans of them; no span holds a final eos."""
    text = draw(st.lists(st.sampled_from(PAPER.text[:9]), min_size=1, max_size=12))
    cuts = draw(st.sets(st.integers(0, len(text)), max_size=8).map(sorted))
    spans = list(zip(cuts[::2], cuts[1::2], strict=False))
    return text + draw(st.sampled_from([[], [EOS]])), spans


def naive(ids, spans, own_ends):
    """Return the rotated document, token by token."""
    eos, ids = ([EOS], ids[:-1]) if ids[-1] == EOS else ([], ids)
    body, tail = [], []
    for place, token in enumerate(ids):
        inside = [n for n, (start, stop) in enumerate(spans) if start <= place < stop]
        if not inside:
            body.append(token)
            continue
        [n] = inside
        if place == spans[n][0]:
            body.append(PAPER.masks[n])
            tail.append(PAPER.masks[n])
        tail.append(token)
        if own_ends and place == spans[n][1] - 1:
            tail.append(END)
    return [*body, *tail, *eos]


@given(documents(), st.booleans())
def test_it_equals_the_naive_form_and_restore_is_its_inverse(document, own_ends):
    ids, spans = document
    found = rotated(ids, *spans, own_ends=own_ends)
    assert found == naive(ids, spans, own_ends)
    assert len(found) == len(ids) + len(spans) * (3 if own_ends else 2)
    assert restore(found, OWN_ENDS if own_ends else PAPER) == ids


@given(documents())
def test_masks_are_numbered_from_left_to_right_in_body_and_tail(document):
    ids, spans = document
    masks = [i for i in rotated(ids, *spans) if i in PAPER.masks]
    assert masks == PAPER.masks[: len(spans)] * 2


def test_a_last_span_without_its_end_is_restored():
    assert restore([A, M0, C, M0, B], OWN_ENDS) == [A, B, C]


@pytest.mark.parametrize(
    ("ids", "where", "message"),
    [
        ([A, M0, B], 1, "<mask_0> at position 1; its content does not follow"),
        ([M1, A, M1, B], 0, "<mask_1> at position 0; masks must be numbered from 0"),
        ([M0, M1, A, M1, B], 3, "<mask_1> at position 3; masks must be numbered"),
        ([M0, M0, A, M0, B], 3, "<mask_0> at position 3; masks must be numbered"),
    ],
)
def test_what_is_no_rotated_document_is_refused(ids, where, message):
    with pytest.raises(GrammarError, match=message) as caught:
        restore(ids, PAPER)
    assert caught.value.position == where


# ── the grammar at a gap ─────────────────────────────────────────────────────────────────────────

GRAMMAR = Grammar(OWN_ENDS, codes_per_image=4)
IMAGE = [BEGIN, CODE, CODE + 1, CODE + 2, CODE + 3, CLOSE]


def test_a_gap_continues_where_its_mask_stands():
    assert open_gap([A, M0, B, M0], PAPER) == 0
    assert open_gap([A, M0, B], PAPER) is open_gap([], PAPER) is None
    text = GRAMMAR.state_at([BOS, A, M0, *IMAGE, M0])
    assert (text.phase, text.codes_left) == (Phase.TEXT, 0)
    image = GRAMMAR.state_at([BOS, BEGIN, CODE, M0, CODE + 3, CLOSE, A, M0])
    assert (image.phase, image.codes_left) == (Phase.IMAGE, 2)
    whole = GRAMMAR.state_at([BOS, BEGIN, M0, CLOSE, A, M0])
    assert (whole.phase, whole.codes_left) == (Phase.IMAGE, 4)


def test_earlier_gaps_are_filled_first():
    ids = [BOS, BEGIN, M0, CODE + 3, CLOSE, A, M1, M0, CODE, CODE + 1, CODE + 2, END, M1]
    assert GRAMMAR.state_at(ids).phase is Phase.TEXT
    assert GRAMMAR.masked_image(ids) is None


def test_the_codes_around_a_gap():
    ids = [BOS, A, BEGIN, CODE, M0, CODE + 3, CLOSE, M0]
    assert GRAMMAR.masked_image(ids) == ([0], [3])
    assert GRAMMAR.masked_image([BOS, A, M0, *IMAGE, M0]) is None
    assert GRAMMAR.masked_image([BOS, A]) is None


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([BOS, BEGIN, CODE, M0, CODE, M1, CODE, CLOSE, M0], "an image has one mask"),
        ([BOS, BEGIN, M0, CODE, A, M0], "does not end with <end_image>"),
        (
            [BOS, BEGIN, CODE, CODE, M0, CODE, CODE, CLOSE, M0],
            "has 4 codes of 4, so none is missing",
        ),
    ],
)
def test_gaps_that_cannot_be_filled(ids, message):
    with pytest.raises(GrammarError, match=message):
        GRAMMAR.state_at(ids)


def test_end_mask_ends_a_gap_and_nothing_else():
    gap = Limits(max_new_tokens=8, one_gap=True)
    state = GRAMMAR.begin([BOS, A, M0, B, M0], gap)
    assert GRAMMAR.rule(state, gap) is Rule.GAP_OR_IMAGE
    state = GRAMMAR.advance(GRAMMAR.advance(state, A), END)
    assert GRAMMAR.rule(state, gap) is Rule.NOTHING
    assert GRAMMAR.rule(state, Limits(max_new_tokens=8)) is not Rule.NOTHING


@pytest.mark.parametrize("writable", [(END_MASK,), (END_MASK, "mask_0", "mask_1"), ()])
def test_masks_are_never_generated_and_their_end_only_in_a_gap(writable):
    vocabulary = PAPER.extended([END_MASK], writable=writable)
    allowed = Grammar(vocabulary, codes_per_image=4).allowed_ids()
    assert not allowed[:, vocabulary.masks].any()
    ending = {rule for rule in Rule if allowed[rule, END]}
    assert ending == ({Rule.GAP, Rule.GAP_OR_IMAGE} if writable else set())
    for plain, gap in ((Rule.TEXT, Rule.GAP), (Rule.TEXT_OR_IMAGE, Rule.GAP_OR_IMAGE)):
        assert set(np.flatnonzero(allowed[gap])) - {END} == set(np.flatnonzero(allowed[plain]))


def test_a_gap_in_an_image_has_exactly_its_codes():
    limits = Limits(max_new_tokens=3, text=False, max_images=0, one_gap=True)
    state = GRAMMAR.begin([BOS, BEGIN, CODE, M0, CODE + 3, CLOSE, M0], limits)
    rules = []
    for token in (CODE, CODE, CLOSE):
        rules.append(GRAMMAR.rule(state, limits))
        state = GRAMMAR.advance(state, token)
    assert rules == [Rule.CODE, Rule.CODE, Rule.END_IMAGE]
    assert GRAMMAR.rule(state, limits) is Rule.NOTHING
    with pytest.raises(RequestError, match="3 are needed"):
        GRAMMAR.begin(
            [BOS, BEGIN, CODE, M0, CODE + 3, CLOSE, M0],
            Limits(max_new_tokens=2, text=False, max_images=0),
        )


def test_the_unconditional_branch():
    assert GRAMMAR.unconditional([BOS, A, BEGIN, CODE]) == [BOS, BEGIN, CODE]
    assert GRAMMAR.unconditional([BOS, A, BEGIN, CODE], masked=True) == [BOS, M0, BEGIN, CODE]
    gap = [BOS, A, BEGIN, CODE, M0, CLOSE, B, M0]
    for written in ([], [CODE], [CODE, CODE + 1]):
        expected = [BOS, BEGIN, CODE, M0, CLOSE, M0, *written]
        assert GRAMMAR.unconditional([*gap, *written]) == expected
        assert GRAMMAR.unconditional([*gap, *written], masked=True) == expected
