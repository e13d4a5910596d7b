"""CM3: which spans are drawn, and what becomes of documents."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis import config as configs
from pardalis.data import CM3, Loader, Shards, ShardWriter, SourceConfig, Transforms, special_of
from pardalis.data.cm3 import clip, draw_spans, intersect, segments_of
from pardalis.data.transforms import rooms
from pardalis.errors import ConfigError
from pardalis.seeds import numpy_generator
from pardalis.tokens import Encoded, Grammar, Vocabulary, restore

PAPER = CM3(form="paper")
METASEQ = CM3(form="metaseq")


@cache
def grammar_for(transform) -> Grammar:
    special, writable = special_of([transform])
    vocabulary = Vocabulary.build(n_codes=12, n_text=20).extended(special, writable=writable)
    return Grammar(vocabulary, codes_per_image=4)


IDS = grammar_for(PAPER).vocabulary
BOS, EOS, TURN, A = IDS.bos_id, IDS.eos_id, IDS.end_turn_id, IDS.text.start
IMAGE = [IDS.begin_image_id, *range(IDS.image.start, IDS.image.start + 4), IDS.end_image_id]


def loaded(transform, ids, seed) -> Encoded:
    return transform.load(Encoded.of(ids), grammar_for(transform), seed)


def generators(n: int):
    return (numpy_generator(seed) for seed in range(n))


# ── numbers and places of spans ──────────────────────────────────────────────────────────────────


def test_the_paper_masks_every_document_and_metaseq_leaves_some():
    """With means 1 + 1/e and 1, and P(0) = 1/e."""
    paper = [PAPER.draw_number(generator) for generator in generators(3000)]
    assert min(paper) == 1
    assert np.mean(paper) == pytest.approx(1.368, abs=0.04)
    metaseq = [METASEQ.draw_number(generator) for generator in generators(3000)]
    assert np.mean(metaseq) == pytest.approx(1.0, abs=0.05)
    assert np.mean([n == 0 for n in metaseq]) == pytest.approx(0.368, abs=0.03)


def test_the_most_spans_and_a_fixed_number():
    assert {CM3(max_spans=1).draw_number(g) for g in generators(50)} == {1}
    assert {CM3(spans=3).draw_number(g) for g in generators(5)} == {3}
    with pytest.raises(ConfigError, match="spans is 5, above max_spans = 4"):
        CM3(spans=5, max_spans=4)


@pytest.mark.parametrize(("form", "max_spans"), [("paper", 16), ("metaseq", 16), ("metaseq", 511)])
def test_no_document_gets_more_spans_than_there_are_masks(form, max_spans):
    class Most(np.random.Generator):
        def poisson(self, lam: float) -> int:
            return 1000

    transform = CM3(form=form, max_spans=max_spans)
    assert transform.draw_number(Most(np.random.PCG64(0))) == max_spans
    assert CM3().max_spans == 16  # the paper's


def test_one_span_holds_a_third_of_a_document():
    spans = [draw_spans([(0, 100)], 1, generator) for generator in generators(2000)]
    lengths = [stop - start for [(start, stop)] in filter(None, spans)]
    assert np.mean(lengths) == pytest.approx(33.8, abs=1.5)


def test_a_span_is_clipped_to_the_segment_of_which_it_has_most():
    """The example of metaseq's test; of equal overlaps the first counts."""
    segments = [(2, 3), (3, 4), (4, 5), (5, 8), (8, 10), (10, 11)]
    found = [clip(span, segments) for span in [(1, 4), (5, 7), (9, 11)]]
    assert found == [(2, 3), (5, 7), (9, 10)]


@st.composite
def lists_of_segments(draw):
    cuts = draw(st.sets(st.integers(0, 40), min_size=2, max_size=9).map(sorted))
    return list(zip(cuts[::2], cuts[1::2], strict=False))


@given(
    lists_of_segments(),
    st.integers(0, 16),
    st.integers(0, 999),
    st.sampled_from(["document", "segment"]),
)
def test_spans_lie_in_one_segment_and_never_intersect(segments, n, seed, place):
    spans = draw_spans(segments, n, numpy_generator(seed), int(n > 0), place)
    assert min(n, 1) <= len(spans) <= n
    assert spans == sorted(spans)
    for start, stop in spans:
        assert start < stop
        assert sum(first <= start and stop <= last for first, last in segments) == 1
    assert not any(intersect(one, other) for one, other in pairwise(spans))


def test_in_segments_short_ones_are_masked_as_often_as_long_ones():
    segments, short = [(0, 6), (7, 1000)], {"document": 0, "segment": 0}
    for place in short:
        for generator in generators(300):
            [span] = draw_spans(segments, 1, generator, 1, place)
            short[place] += span[1] <= 6
    assert short["document"] < 20
    assert 120 < short["segment"] < 180


# ── documents ────────────────────────────────────────────────────────────────────────────────────

parts = st.sampled_from([[A], [A + 1, A + 2], [TURN], IMAGE])
bodies = st.lists(parts, max_size=6).map(lambda some: [i for part in some for i in part])
forms = st.builds(
    CM3,
    form=st.sampled_from(["paper", "metaseq"]),
    spans=st.sampled_from([None, 1, 3]),
    place=st.sampled_from(["document", "segment"]),
)


@given(forms, bodies, st.booleans(), st.integers(0, 999))
def test_a_document_is_whole_after_all_and_has_its_room(transform, body, ends, seed):
    ids = [BOS, *body, *([EOS] if ends else [])]
    found = loaded(transform, ids, seed)
    vocabulary = grammar_for(transform).vocabulary
    assert restore(found.ids, vocabulary) == ids
    assert len(found) <= transform.room(len(ids))
    assert found == loaded(transform, ids, seed)
    masks = [i for i in found.ids.tolist() if i in vocabulary.masks]
    if transform.form == "paper" and set(body) - {TURN}:
        assert masks
    assert len(masks) // 2 <= transform.max_spans


@given(bodies.filter(lambda body: set(body) - {TURN}), st.integers(0, 999))
def test_no_span_crosses_a_change_of_modality(body, seed):
    grammar = grammar_for(METASEQ)
    [*segments] = segments_of(Encoded.of([BOS, *body, EOS]), grammar)
    ids = loaded(CM3(form="metaseq", spans=2), [BOS, *body, EOS], seed).ids.tolist()
    tail = ids[
        next(
            (n for n, i in enumerate(ids) if i in ids[:n] and i in grammar.vocabulary.masks),
            len(ids),
        ) :
    ]
    for run in "".join(
        "t" if i in IDS.text else "c" if i in IDS.image else " " for i in tail
    ).split():
        assert len(set(run)) == 1
    assert not {IDS.begin_image_id, IDS.end_image_id, TURN, BOS} & set(tail)
    assert segments


def test_losses_on_masks():
    ids = [BOS, *[A] * 30, EOS]
    for transform, weight in ((PAPER, 0), (METASEQ, 1)):
        found = loaded(transform, ids, 3)
        masks = np.isin(found.ids, grammar_for(transform).vocabulary.masks)
        assert masks.any()
        assert (found.weights[masks] == weight).all()
        assert (found.weights[~masks] == 1).all()


def test_what_is_not_learnt_stays_so():
    """The document of a conversation, of which only the last turn is learnt."""
    weights = np.array([0, 0, 0, 0, 1, 1, 1], dtype=np.float32)
    document = Encoded(np.array([BOS, A, A, TURN, A + 1, A + 1, EOS]), weights)
    for seed in range(20):
        found = METASEQ.load(document, grammar_for(METASEQ), seed)
        assert (found.weights[found.ids == A] == 0).all()
        assert (found.weights[found.ids == A + 1] == 1).all()


def test_a_document_without_text_and_images_stays_as_it_is():
    assert loaded(PAPER, [BOS, EOS], 0) == Encoded.of([BOS, EOS])


# ── rows and recipes ─────────────────────────────────────────────────────────────────────────────


@given(forms, st.lists(bodies, min_size=1, max_size=8), st.integers(0, 30))
@settings(max_examples=20, deadline=None)
def test_rows_resume_exactly_for_any_ranks_and_change_with_the_epoch(
    tmp_path_factory, transform, bodies, step
):
    grammar = grammar_for(transform)
    folder = tmp_path_factory.mktemp("shards")
    writer = ShardWriter(folder, grammar.vocabulary.size, 1000)
    for number, body in enumerate(bodies):
        writer.add(str(number), Encoded.of([BOS, *body, EOS]))
    writer.finish(128, codec="", rooms=rooms([transform], 128))

    def loader() -> Loader:
        transforms = {"a": Transforms([transform], grammar, "a")}
        return Loader({"a": Shards.open(folder)}, {"a": 1.0}, 128, 2, 0, IDS.pad_id, transforms)

    begun = loader()
    for earlier in range(step):
        begun.batch(earlier)
    batch = begun.batch(step)
    halves = [loader().batch(step, rank, 2) for rank in range(2)]
    for name in ("ids", "targets", "weights", "positions", "documents"):
        halves_joined = np.concatenate([getattr(half, name).numpy() for half in halves])
        assert (getattr(batch, name).numpy() == halves_joined).all()


def test_another_epoch_has_other_spans():
    transforms = Transforms([PAPER], grammar_for(PAPER), "a")
    document = Encoded.of([BOS, *[A] * 40, EOS])
    epochs = {tuple(transforms.load(document, "x", 0, epoch).ids) for epoch in range(8)}
    assert len(epochs) > 4


def test_a_recipe_lists_it_and_gets_the_special_ids():
    values = {"name": "a", "reader": "jsonl", "path": "a", "transforms": [{"kind": "cm3"}]}
    source = configs.from_dict(SourceConfig, values)
    assert source.transforms == (CM3(),)
    special, writable = special_of(source.transforms)
    assert special == tuple(f"mask_{n}" for n in range(16))
    assert writable == ()
    assert special_of([CM3(form="metaseq", max_spans=2), CM3(max_spans=1)]) == (
        ("mask_0", "mask_1", "end_mask"), ("end_mask",)
    )  # fmt: skip


def test_a_vocabulary_without_masks_is_refused():
    plain = Grammar(Vocabulary.build(n_codes=12, n_text=20), codes_per_image=4)
    with pytest.raises(
        ConfigError, match="source 'a' need the special ids mask_0, mask_1, but the"
    ):
        Transforms([CM3(max_spans=2)], plain, "a")
