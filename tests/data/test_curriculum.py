"""Curricula: each stage has its mixture, and no source restarts at a stage change."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis.data import Curriculum, CurriculumStage, Loader, Mixture, Shards, ShardWriter
from pardalis.errors import ConfigError
from pardalis.tokens import Encoded

ROWS = {"a": 7, "b": 40, "c": 11}
weights_strategy = st.dictionaries(
    st.sampled_from(sorted(ROWS)), st.sampled_from([1.0, 2.0, 0.3, 0.25, 7.0]), min_size=1
)


@st.composite
def curricula(draw: st.DrawFn) -> tuple[list[CurriculumStage], int]:
    """Return up to four stages that serve every source at some time, and the rows of a step."""
    lengths = draw(st.lists(st.integers(1, 30), max_size=3))
    weights = [draw(weights_strategy) for _ in lengths]
    last = {**dict.fromkeys(ROWS, 1.0), **draw(weights_strategy)}
    steps = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    stages = [
        CurriculumStage(from_step=step, weights=each)
        for step, each in zip(steps, [*weights, last], strict=True)
    ]
    return stages, draw(st.integers(1, 6))


@given(curricula())
@settings(deadline=None, max_examples=60)
def test_it_equals_a_simulation_that_goes_through_every_position(curriculum):
    stages, batch_rows = curriculum
    mixtures = {stage.from_step: Mixture(stage.weights) for stage in stages}
    served = Counter[str]()
    found = Curriculum(stages, ROWS, batch_rows)
    for position in range(60 * batch_rows):
        begun = max(step for step in mixtures if step <= position // batch_rows)
        source, _ = mixtures[begun].at(position - begun * batch_rows)
        assert found.at(position) == (source, served[source])
        served[source] += 1


@given(curricula())
@settings(deadline=None, max_examples=60)
def test_every_stage_keeps_its_proportions_within_one_row(curriculum):
    stages, batch_rows = curriculum
    found = Curriculum(stages, ROWS, batch_rows)
    ends = [stage.from_step * batch_rows for stage in stages[1:]] + [100 * batch_rows]
    for stage, end in zip(stages, ends, strict=True):
        start, served = stage.from_step * batch_rows, Counter[str]()
        total = sum(stage.weights.values())
        for position in range(start, end):
            served[found.at(position)[0]] += 1
            for name in ROWS:
                share = stage.weights.get(name, 0.0) / total
                # 1e-3: weights without a short cycle are rounded
                assert abs(served[name] - share * (position + 1 - start)) < 1 + 1e-3


@given(curricula(), st.integers(10**4, 10**12))
@settings(deadline=None, max_examples=60)
def test_far_positions_need_no_history(curriculum, position):
    stages, batch_rows = curriculum
    found = Curriculum(stages, ROWS, batch_rows)
    for source in ROWS:  # the last stage serves each of them
        own = [found.at(p)[1] for p in range(position, position + 100) if found.at(p)[0] == source]
        assert own == list(range(own[0], own[0] + len(own)))


@pytest.fixture
def sources(write_shards):
    return {
        name: write_shards([[0, 10 + i, 2] for i in range(n)], 4, name=name)
        for name, n in ROWS.items()
    }


def stages_of(*stages: tuple[int, dict[str, float]]) -> list[CurriculumStage]:
    return [CurriculumStage(from_step=step, weights=weights) for step, weights in stages]


@given(curricula(), st.integers(0, 3))
@settings(deadline=None, max_examples=25)
def test_no_row_is_served_again_before_its_source_was_served_once(
    tmp_path_factory, curriculum, seed
):
    stages, batch_rows = curriculum
    loader = _loader(tmp_path_factory, stages, batch_rows, seed)
    seen: dict[tuple[str, int], list[int]] = {}
    for position in range(60 * batch_rows):
        location = loader.locate(position)
        seen.setdefault((location.source, location.epoch), []).append(location.row)
    for (source, epoch), rows in seen.items():
        assert len(set(rows)) == len(rows)
        if (source, epoch + 1) in seen:
            assert sorted(rows) == list(range(ROWS[source]))


_SHARDS: dict[str, Shards] = {}  # written once for all examples


def _loader(tmp_path_factory, stages, batch_rows, seed) -> Loader:
    if not _SHARDS:
        for name, n in ROWS.items():
            folder = tmp_path_factory.mktemp(name)
            writer = ShardWriter(folder, 100, 1000)
            for i in range(n):
                writer.add(f"{name}-{i}", Encoded.of([0, 10 + i, 2]))
            writer.finish(4, codec="")
            _SHARDS[name] = Shards.open(folder)
    return Loader(_SHARDS, stages, 4, batch_rows, seed, 1)


def test_a_stage_changes_at_its_step_for_any_number_of_rows(sources):
    stages = stages_of((0, {"a": 1.0}), (3, {"b": 1.0, "c": 1.0}))
    for batch_rows in (1, 2, 8):
        loader = Loader(sources, stages, 4, batch_rows, 0, 1)
        served = [loader.locate(position).source for position in range(5 * batch_rows)]
        assert set(served[: 3 * batch_rows]) == {"a"}
        assert set(served[3 * batch_rows :]) <= {"b", "c"}


def test_a_source_that_paused_continues_where_it_was(sources):
    stages = stages_of(
        (0, {"b": 1.0}), (2, {"a": 1.0, "c": 1.0}), (9, {"a": 1.0, "b": 1.0, "c": 2.0})
    )
    loader = Loader(sources, stages, 4, 4, 0, 1)
    plain = Loader({"b": sources["b"]}, {"b": 1.0}, 4, 4, 0, 1)
    locations = [loader.locate(position) for position in range(30 * 4)]
    rows = [location.row for location in locations if location.source == "b"]
    assert rows == [plain.locate(position).row for position in range(len(rows))]
    assert len(rows) > 8


def test_one_stage_is_the_plain_mixture(sources):
    weights = {"a": 1.0, "b": 2.0, "c": 0.5}
    plain, staged = (
        Loader(sources, each, 4, 8, 3, 1) for each in (weights, stages_of((0, weights)))
    )
    for step in (0, 1, 50):
        assert torch.equal(plain.batch(step).ids, staged.batch(step).ids)


def test_locate_agrees_with_batches_across_a_stage_change(sources):
    stages = stages_of((0, {"a": 1.0, "b": 1.0}), (2, {"b": 1.0, "c": 3.0}))
    loader = Loader(sources, stages, 4, 8, 0, 1)
    for step in range(4):
        batch = loader.batch(step)
        for j in range(8):
            location = loader.locate(step * 8 + j)
            assert torch.equal(loader.row(location.source, location.row).ids[0], batch.ids[j])


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], r"first stage of a curriculum must have from_step = 0, got \[\]"),
        ([(2, {"a": 1.0})], r"must have from_step = 0, got \[2\]"),
        ([(0, {"a": 1.0}), (5, {"b": 1.0}), (5, {"c": 1.0})], r"must grow .* got \[0, 5, 5\]"),
        ([(0, {"a": 1.0, "d": 1.0})], r"from step 0 on weighs 'd', which is no source; .* a, b, c"),
        ([(0, {"a": 1.0}), (4, {"c": 1.0})], r"^Source 'b' has no weight anywhere; give every"),
        ([(0, {"a": 1.0, "b": -1.0, "c": 1.0})], r"weight of source 'b' must be a number above 0"),
        ([(0, {"a": 1.0, "b": 1.0, "c": 1.0}), (4, {})], r"A mixture needs at least one source"),
    ],
)
def test_an_invalid_curriculum_is_refused(stages, message):
    with pytest.raises(ConfigError, match=message):
        Curriculum(stages_of(*stages), ROWS, 4)


def test_a_step_before_the_first_is_refused():
    with pytest.raises(ConfigError, match=r"^from_step must be 0 or more, got -1\.$"):
        CurriculumStage(from_step=-1, weights={"a": 1.0})
