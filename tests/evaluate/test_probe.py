"""The linear probe finds labels that a plane separates, and no more."""

import pytest
import torch
from torch.nn import functional as F

from pardalis.evaluate.probe import LinearProbe


def vectors(n: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, 24, generator=torch.Generator().manual_seed(seed)), dim=1)


def labels(features: torch.Tensor) -> list[str]:
    return ["flat" if value > 0 else "outlined" for value in features[:, 3].tolist()]


def test_a_direction_is_found():
    train, test = vectors(800, 0), vectors(200, 1)
    probe = LinearProbe.fit(train, labels(train))
    assert probe.labels == ("flat", "outlined")
    right = [a == b for a, b in zip(probe.predict(test), labels(test), strict=True)]
    assert sum(right) > 180


def test_labels_by_chance_are_not_found():
    train, test = vectors(800, 0), vectors(400, 1)
    probe = LinearProbe.fit(train, labels(vectors(800, 2)))
    right = [a == b for a, b in zip(probe.predict(test), labels(test), strict=True)]
    assert 120 < sum(right) < 280


def test_the_same_input_gives_the_same_probe():
    train = vectors(50, 0)
    first, second = (LinearProbe.fit(train, labels(train)) for _ in range(2))
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)


def test_a_probe_needs_features():
    with pytest.raises(ValueError, match="a probe needs features to learn from"):
        LinearProbe.fit(vectors(3, 0)[:0], [])
