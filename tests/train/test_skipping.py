"""The batch of a step when some are skipped."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pardalis.errors import DataError
from pardalis.train.skipping import Skip, batch_of, read_skips, write_skips


@given(st.lists(st.integers(0, 30), max_size=20))
def test_steps_read_the_remaining_batches_in_order(skipped: list[int]) -> None:
    left = [batch for batch in range(100) if batch not in skipped]
    assert [batch_of(step, skipped) for step in range(50)] == left[:50]


@given(st.sets(st.integers(0, 30)), st.integers(0, 30), st.integers(1, 5))
def test_earlier_steps_do_not_change_when_later_batches_are_skipped(
    skipped: set[int], step: int, n: int
) -> None:
    more = skipped | {batch_of(later, skipped) for later in range(step, step + n)}
    for earlier in range(step):
        assert batch_of(earlier, more) == batch_of(earlier, skipped)
    assert batch_of(step, more) == batch_of(step + n, skipped)


def test_skips_round_trip_through_a_file(tmp_path: Path) -> None:
    assert read_skips(tmp_path) == []
    skips = [
        Skip(rollback=1, step=4, batch=4, first_position=20, last_position=24, cause="inf"),
        Skip(rollback=2, step=4, batch=5, first_position=25, last_position=29, cause="nan"),
    ]
    write_skips(tmp_path, skips)
    assert read_skips(tmp_path) == skips


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "skipped.jsonl").write_text('{"rollback": 1}\n')
    with pytest.raises(DataError, match=r"skipped\.jsonl cannot be read .* put the file back"):
        read_skips(tmp_path)


@pytest.mark.parametrize("field", ["rollback", "step", "batch", "first_position"])
@pytest.mark.parametrize("value", ["1", [1], -1, 10**300])
def test_a_number_that_is_none_is_an_error(tmp_path: Path, field: str, value: object) -> None:
    skip = Skip(rollback=1, step=2, batch=3, first_position=4, last_position=5, cause="loss")
    (tmp_path / "skipped.jsonl").write_text(json.dumps({**asdict(skip), field: value}) + "\n")
    with pytest.raises(DataError, match=rf"cannot be read \({field} is"):
        read_skips(tmp_path)
