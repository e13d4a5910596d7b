"""The grammar, by example and by random walks over the ids it allows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pardalis.errors import GrammarError, RequestError
from pardalis.tokens import Grammar, Limits, Phase, Rule, Span, SpanKind, State, Vocabulary

IDS = Vocabulary.build(n_codes=12, n_text=20)
GRAMMAR = Grammar(IDS, codes_per_image=4)
BOS, EOS, BOI, EOI, TURN = (
    IDS.bos_id, IDS.eos_id, IDS.begin_image_id, IDS.end_image_id, IDS.end_turn_id
)  # fmt: skip
A, B = IDS.text.start, IDS.text.start + 1
IMAGE = [BOI, *range(IDS.image.start, IDS.image.start + 4), EOI]


@pytest.mark.parametrize(
    "ids",
    [
        [BOS, EOS],
        [BOS, A, B, EOS],
        [BOS, *IMAGE, EOS],
        [BOS, A, *IMAGE, *IMAGE, B, EOS],
        [BOS, A, TURN, *IMAGE, TURN, EOS],
    ],
)
def test_accepts(ids):
    GRAMMAR.validate(ids)


@pytest.mark.parametrize(
    ("ids", "position", "message"),
    [
        ([], 0, "The sequence ends at position 0; expected <bos>"),
        ([A], 0, r"Found <text 0> at position 0; expected <bos>"),
        ([BOS], 1, "ends at position 1; expected text"),
        ([BOS, BOS, EOS], 1, "Found <bos> at position 1"),
        ([BOS, IDS.image.start, EOS], 1, "Found <image 0> at position 1; expected text"),
        ([BOS, EOI, EOS], 1, "Found <end_image>"),
        ([BOS, IDS.pad_id, EOS], 1, "Found <pad>"),
        ([BOS, 7, EOS], 1, "Found <unused 7>"),
        ([BOS, IDS.size, EOS], 1, "Found <outside 40>"),
        ([BOS, *IMAGE[:-2], EOI, EOS], 5, "open image has 3 of its 4 codes"),
        ([BOS, *IMAGE[:-1], IDS.image.start, EOI, EOS], 6, "has all of its 4 codes"),
        ([BOS, BOI, A, EOS], 2, "open image has 0 of its 4 codes"),
        ([BOS, BOI, BOI], 2, "Found <begin_image>"),
        ([BOS, BOI], 2, "ends at position 2; expected an image id"),
        ([BOS, EOS, A], 2, "expected nothing after <eos>"),
    ],
)
def test_rejects_saying_where_and_what_was_expected(ids, position, message):
    with pytest.raises(GrammarError, match=message) as caught:
        GRAMMAR.validate(ids)
    assert caught.value.position == position


segments = st.lists(
    st.one_of(
        st.lists(st.sampled_from([A, B, TURN]), max_size=5),
        st.lists(st.sampled_from(list(IDS.image)), min_size=4, max_size=4).map(
            lambda codes: [BOI, *codes, EOI]
        ),
    ),
    max_size=5,
)


@given(segments)
def test_every_document_of_whole_segments_is_valid(parts):
    GRAMMAR.validate([BOS, *(i for part in parts for i in part), EOS])


@given(segments, st.data())
def test_a_changed_modality_is_always_found(parts, data):
    """Whatever valid document, an id replaced by one of another class is malformed."""
    ids = [BOS, *(i for part in parts for i in part), EOS]
    position = data.draw(st.integers(0, len(ids) - 1))
    table = GRAMMAR.allowed_ids()
    rule = GRAMMAR.rule(GRAMMAR.state_after(ids[:position]), Limits(max_new_tokens=1000))
    forbidden = np.flatnonzero(~table[rule]).tolist()
    ids[position] = data.draw(st.sampled_from(forbidden))
    with pytest.raises(GrammarError) as caught:
        GRAMMAR.validate(ids)
    assert caught.value.position == position


@given(st.integers(1, 40), st.booleans(), st.one_of(st.none(), st.integers(0, 3)), st.data())
def test_whatever_is_chosen_among_the_allowed_ids_is_well_formed(budget, text, images, data):
    """A random walk over the table's ids ends in a valid document within its room."""
    limits = Limits(max_new_tokens=budget, text=text, max_images=images)
    try:
        state = GRAMMAR.begin([BOS], limits)
    except RequestError:
        assert not text and (images is None or budget < 6 * images)
        return
    table, written = GRAMMAR.allowed_ids(), []
    while (rule := GRAMMAR.rule(state, limits)) is not Rule.NOTHING:
        chosen = data.draw(st.sampled_from(np.flatnonzero(table[rule]).tolist()))
        state = GRAMMAR.advance(state, chosen)
        written.append(chosen)
    assert len(written) <= budget
    assert written.count(BOI) <= (99 if images is None else images)
    if text:
        GRAMMAR.validate([BOS, *written])
    else:
        GRAMMAR.validate([BOS, *written, EOS])
        assert written.count(BOI) == images


# ── spans ────────────────────────────────────────────────────────────────────────────────────

CODE = IDS.image.start
any_ids = st.lists(
    st.one_of(
        st.sampled_from([[BOS], [EOS], [TURN], [BOI], [EOI], [A], [CODE], IMAGE, IMAGE[:-1]]),
        st.integers(-1, IDS.size).map(lambda token_id: [token_id]),
    ),
    max_size=12,
).map(lambda parts: [i for part in parts for i in part])


def test_the_spans_of_a_document():
    kinds = SpanKind
    assert GRAMMAR.spans(np.array([BOS, A, B, *IMAGE, A, TURN, BOI, CODE])) == [
        Span(kinds.BOS, 0, 1),
        Span(kinds.TEXT, 1, 3),
        Span(kinds.IMAGE, 3, 9),
        Span(kinds.TEXT, 9, 10),
        Span(kinds.END_TURN, 10, 11),
        Span(kinds.IMAGE, 11, 13, complete=False),
    ]


def test_the_spans_of_malformed_ids():
    kinds = SpanKind
    assert GRAMMAR.spans([CODE, CODE, EOI, BOI, CODE, EOI, *IMAGE[:-1], CODE, IDS.unk_id]) == [
        Span(kinds.CODES, 0, 2),
        Span(kinds.OTHER, 2, 3),
        Span(kinds.IMAGE, 3, 5, complete=False),
        Span(kinds.OTHER, 5, 6),
        Span(kinds.IMAGE, 6, 11, complete=False),
        Span(kinds.CODES, 11, 12),
        Span(kinds.OTHER, 12, 13),
    ]


@given(st.one_of(any_ids, any_ids.map(lambda ids: [BOS, *ids])))
def test_spans_join_to_the_ids_and_agree_with_the_automaton(ids):
    spans = GRAMMAR.spans(ids)
    assert [i for span in spans for i in ids[span.start : span.stop]] == ids
    last = spans[-1] if spans else None
    well_formed = not ids or (
        spans[0].kind is SpanKind.BOS
        and all(span.kind is not SpanKind.BOS for span in spans[1:])
        and all(span.complete and span.kind is not SpanKind.EOS for span in spans[:-1])
        and not {SpanKind.CODES, SpanKind.OTHER} & {span.kind for span in spans}
    )
    try:
        state = GRAMMAR.state_after(ids)
    except GrammarError:
        assert not well_formed
        return
    assert well_formed
    assert (state.phase is Phase.START) == (not ids)
    assert (state.phase is Phase.DONE) == (bool(ids) and last.kind is SpanKind.EOS)
    assert (state.phase is Phase.IMAGE) == (bool(ids) and not last.complete)
    if state.phase is Phase.IMAGE:
        assert last.stop - last.start == 1 + GRAMMAR.codes_per_image - state.codes_left
    assert state.images == sum(span.kind is SpanKind.IMAGE for span in spans)
    assert state.turns == sum(span.kind is SpanKind.END_TURN for span in spans)


def test_the_contexts_of_the_branches_of_guidance():
    ids = [BOS, A, *IMAGE, TURN, B, *IMAGE[:3]]
    assert GRAMMAR.unconditional(ids) == [BOS, *IMAGE[:3]]
    assert GRAMMAR.images_only(ids) == [BOS, *IMAGE, *IMAGE[:3]]
    assert GRAMMAR.codes(IMAGE[:3]) == [0, 1]


# ── writing ──────────────────────────────────────────────────────────────────────────────────


def test_the_table_agrees_with_the_automaton():
    """For every state, the ids that the table allows are those that advance accepts."""
    limits = Limits(max_new_tokens=1000)
    for state in (
        State(),
        State(Phase.TEXT),
        State(Phase.IMAGE, 3),
        State(Phase.IMAGE, 0),
        State(Phase.DONE),
    ):
        allowed = GRAMMAR.allowed_ids()[GRAMMAR.rule(state, limits)]
        for token_id in range(IDS.size):
            try:
                GRAMMAR.advance(state, token_id)
                accepted = True
            except GrammarError:
                accepted = False
            assert accepted == allowed[token_id], (state, IDS.name_of(token_id))


def test_an_image_opens_only_where_it_fits_with_its_eos():
    limits = Limits(max_new_tokens=7)
    state = GRAMMAR.begin([BOS, A], limits)
    assert GRAMMAR.rule(state, limits) is Rule.TEXT_OR_IMAGE
    assert GRAMMAR.rule(GRAMMAR.advance(state, A), limits) is Rule.TEXT


def test_one_turn_ends_with_its_end_turn():
    limits = Limits(max_new_tokens=20, one_turn=True)
    state = GRAMMAR.begin([BOS, A, TURN], limits)
    assert GRAMMAR.rule(state, limits) is Rule.TEXT_OR_IMAGE
    state = GRAMMAR.state_after([B, *IMAGE, A], state)
    assert GRAMMAR.rule(state, limits) is not Rule.NOTHING
    assert GRAMMAR.rule(GRAMMAR.advance(state, TURN), limits) is Rule.NOTHING


def test_the_last_id_is_eos():
    limits = Limits(max_new_tokens=1)
    assert GRAMMAR.rule(GRAMMAR.begin([BOS], limits), limits) is Rule.EOS


def test_chameleons_sizes():
    """1,026 ids an image; at most three fit in 4,096 with bos; none opens from index 3,070 on."""
    ids = Vocabulary.build(n_codes=8192, n_text=100)
    grammar = Grammar(ids, codes_per_image=1024)
    assert grammar.tokens_per_image == 1026
    assert (4096 - 1) // grammar.tokens_per_image == 3
    for index, rule in ((3069, Rule.TEXT_OR_IMAGE), (3070, Rule.TEXT)):
        limits = Limits(max_new_tokens=4096 - index)
        assert grammar.rule(State(Phase.TEXT), limits) is rule


def test_a_prompt_may_end_inside_an_image():
    limits = Limits(max_new_tokens=20)
    state = GRAMMAR.begin([BOS, *IMAGE[:3]], limits)
    assert GRAMMAR.rule(state, limits) is Rule.CODE
    assert state.codes_left == 2


@pytest.mark.parametrize(
    ("prompt", "limits", "message"),
    [
        ([BOS, EOS], Limits(max_new_tokens=5), "ends with <eos>"),
        ([BOS], Limits(max_new_tokens=5, text=False), "needs max_images"),
        (
            [BOS],
            Limits(max_new_tokens=5, text=False, max_images=1),
            "token budget is 5, but 6 are needed",
        ),
        ([BOS], Limits(max_new_tokens=0), "token budget is 0, but 1 are needed"),
        ([BOS, BOI], Limits(max_new_tokens=4), "token budget is 4, but 5 are needed"),
    ],
)
def test_requests_that_cannot_be_answered(prompt, limits, message):
    with pytest.raises(RequestError, match=message):
        GRAMMAR.begin(prompt, limits)


# ── special ids that a vocabulary adds ───────────────────────────────────────────────────────────

MORE = Grammar(IDS.extended(["mask", "sep"], {"audio": 3}, writable=["sep"]), codes_per_image=4)
MASK, SEP = (MORE.vocabulary.special[name] for name in ("mask", "sep"))


def test_an_added_special_id_is_read_where_text_is():
    ids = [BOS, MASK, A, *IMAGE, SEP, SEP, EOS]
    MORE.validate(ids)
    kinds = [span.kind for span in MORE.spans(ids)]
    assert kinds == [
        SpanKind.BOS, SpanKind.SPECIAL, SpanKind.TEXT, SpanKind.IMAGE, SpanKind.SPECIAL,
        SpanKind.SPECIAL, SpanKind.EOS,
    ]  # fmt: skip
    for ids in ([MASK], [BOS, BOI, MASK], [BOS, EOS, SEP]):
        with pytest.raises(GrammarError, match=r"Found <mask>|Found <sep>"):
            MORE.validate(ids)
    with pytest.raises(GrammarError, match="Found <audio 1> at position 1; expected text"):
        MORE.validate([BOS, MORE.vocabulary.modalities["audio"][1], EOS])


def test_only_writable_special_ids_are_generated():
    limits = Limits(max_new_tokens=20)
    state = MORE.begin([BOS, MASK], limits)
    rule = MORE.rule(state, limits)
    allowed = MORE.allowed_ids()
    assert allowed[rule, SEP] and not allowed[rule, MASK]
    assert MORE.advance(state, SEP).budget == 19
    with pytest.raises(GrammarError, match="Found <mask>"):
        MORE.advance(state, MASK)
    for each in Rule:
        is_text = each in (Rule.TEXT, Rule.TEXT_OR_IMAGE, Rule.GAP, Rule.GAP_OR_IMAGE)
        assert allowed[each, SEP] == is_text
        same = GRAMMAR.allowed_ids()[each]
        assert (allowed[each, : IDS.size] == same).all()


def test_every_state_of_a_larger_vocabulary_agrees_with_its_table():
    limits = Limits(max_new_tokens=1000)
    for phase, left in ((Phase.START, 0), (Phase.TEXT, 0), (Phase.IMAGE, 2), (Phase.IMAGE, 0)):
        state = State(phase, left, budget=1000)
        allowed = MORE.allowed_ids()[MORE.rule(state, limits)]
        for token_id in range(MORE.vocabulary.size):
            try:
                MORE.advance(state, token_id)
                accepted = True
            except GrammarError:
                accepted = False
            assert accepted == allowed[token_id], MORE.vocabulary.name_of(token_id)


# ── imported models ──────────────────────────────────────────────────────────────────────────────


def test_a_template_lets_control_tokens_stand_between_in_what_is_read(vocabulary, grammar):
    ids, text = vocabulary, vocabulary.text.start
    named = vocabulary.extended(special=["header"])
    header = named.special["header"]
    templated = Grammar(named, 4, control=[header])
    image = [ids.begin_image_id, *range(ids.image.start, ids.image.start + 4), ids.end_image_id]
    said = [header, text, ids.eos_id, ids.bos_id, *image, ids.bos_id, text, ids.eos_id, text]
    templated.validate(said)
    with pytest.raises(GrammarError, match="expected <bos>"):
        grammar.validate(said[1:])
    with pytest.raises(GrammarError, match="expected an image id, since the open image has 1"):
        templated.validate([text, ids.begin_image_id, ids.image.start, ids.eos_id])
    with pytest.raises(GrammarError, match="sequence ends at position 2; expected an image id"):
        templated.validate([text, ids.begin_image_id])
    limits = Limits(max_new_tokens=9)
    state = templated.begin([header, text, ids.eos_id], limits)
    assert templated.rule(state, limits) is Rule.TEXT_OR_IMAGE
    assert templated.advance(state, ids.eos_id).phase is Phase.DONE
    for never in (header, ids.bos_id):
        with pytest.raises(GrammarError):
            templated.advance(state, never)


def test_documents_of_some_models_begin_without_bos(vocabulary, grammar):
    ids, text = vocabulary, vocabulary.text.start
    bare = Grammar(vocabulary, 4, adds_bos=False)
    for first in ([text], [ids.begin_image_id], [ids.bos_id, text], [ids.eos_id]):
        bare.state_after(first)
    with pytest.raises(GrammarError, match="expected nothing after <eos>"):
        bare.validate([text, ids.eos_id, text])
    with pytest.raises(GrammarError, match=r"Found <image 0> at position 0; expected text"):
        bare.validate([ids.image.start])
    inside = [text, ids.begin_image_id, ids.image.start]
    assert bare.unconditional(inside) == inside[1:] == bare.images_only(inside)
    assert grammar.unconditional(inside) == [ids.bos_id, *inside[1:]]
    assert (bare.opening_length([ids.bos_id]), grammar.opening_length([ids.bos_id])) == (0, 1)
    assert grammar.opening_length([text]) == grammar.opening_length([]) == 0
