"""What differs between the inputs of two runs."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from pardalis.config import deciding, not_deciding
from pardalis.inputs import changes


@dataclass(frozen=True, kw_only=True)
class Noise:
    kind: Literal["uniform"] = "uniform"
    width: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    noise: Noise = Noise(width=2.0)
    scales: dict[str, float] = field(default_factory=dict)
    limit: float | None = 3.0
    chunk: int = not_deciding(8)


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int
    inner: Inner = Inner()
    parts: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("lost", "config", "found"),
    [
        (["inner"], Outer(steps=1), ""),
        (["inner.rate", "inner.scales"], Outer(steps=1), ""),
        (["inner.noise"], Outer(steps=1), ""),
        (["inner.noise.width"], Outer(steps=1, inner=Inner(noise=Noise())), ""),
        (["parts.0.rate"], Outer(steps=1, parts=(Inner(),)), ""),
        # The default of a field is not always that of the class of its value.
        (["inner.noise"], Outer(steps=1, inner=Inner(noise=Noise())), "inner.noise.width was 2.0"),
        (["inner.rate"], Outer(steps=1, inner=Inner(rate=0.2)), "inner.rate was 0.1 and is 0.2"),
        (["inner.scales"], Outer(steps=1, inner=Inner(scales={"a": 1.0})), "scales.a was absent"),
        # What these were cannot be known: no default, None, a config of another kind.
        (["steps"], Outer(steps=1), "steps was absent and is 1"),
        (["inner.limit"], Outer(steps=1), "inner.limit was absent and is 3.0"),
        (["inner.noise.kind"], Outer(steps=1), "inner.noise.kind was absent"),
    ],
)
def test_a_field_that_an_earlier_version_lacked_had_its_default(lost, config, found):
    before = deciding({"model": config, "seed": 0})
    for path in lost:
        *parents, name = path.split(".")
        table = before["model"]
        for parent in parents:
            table = table[int(parent) if parent.isdigit() else parent]
        del table[name]
    assert found in changes(before, {"model": config, "seed": 0})
    assert bool(found) == bool(changes(before, {"model": config, "seed": 0}))


def test_a_field_that_is_gone_is_a_change():
    before = deciding({"model": Inner()}) | {"other": 1}
    before["model"]["old_rate"] = before["model"].pop("rate")
    assert changes(before, {"model": Inner(), "other": 1}) == "model.old_rate was 0.1 and is absent"


def test_what_differs_is_named():
    before = {"training": {"seed": 0, "rate": 0.1}, "sources": [1, 2]}
    assert changes(before, before) == ""
    assert changes(before, {**before, "sources": (1, 2)}) == ""
    now = {"training": {"seed": 1, "rate": 0.1}, "sources": [1], "model": "tiny"}
    assert changes(before, now) == (
        "model was absent and is 'tiny'; sources was [1, 2] and is [1]; "
        "training.seed was 0 and is 1"
    )


def test_only_some_are_shown():
    assert changes({}, {str(i): i for i in range(5)}).endswith("2 was absent and is 2 and 2 more")


def test_a_changed_hash_is_a_changed_content():
    a, b = "a" * 64, "b" * 64
    before = {"sources": {"pairs": ["jsonl", a], "old": ["jsonl", a]}, "given": {"x": a}}
    now = {"sources": {"pairs": ["jsonl", b], "new": ["jsonl", a]}, "given": {"x": b}}
    assert changes(before, now) == (
        "the content of given.x changed; sources.new is new; sources.old is gone and 1 more"
    )
    assert changes({"s": ["jsonl", a]}, {"s": ["html", b]}).startswith("s was ['jsonl', 'aaa")
