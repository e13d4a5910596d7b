import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis.evaluate.metrics.distribution import frechet, kernel_distance, neighbours


def normal(n: int, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def test_the_frechet_distance_is_that_of_scipy():
    linalg = pytest.importorskip("scipy.linalg", reason="needs scipy")
    a, b = normal(60).numpy(), 0.5 + 1.5 * normal(80, seed=1).numpy()
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    means = np.square(a.mean(0) - b.mean(0)).sum()
    expected = means + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    found = frechet(torch.from_numpy(a), torch.from_numpy(b))
    assert found.distance == pytest.approx(expected, rel=1e-5)
    assert found.warning is None


def test_few_images_are_warned_of():
    distance, warning = frechet(normal(8), normal(50, seed=1))
    assert distance > 0
    assert "A Fréchet distance of 8 images in 8 dimensions means little" in warning
    assert math.isnan(frechet(normal(1), normal(50)).distance)


def test_the_kernel_distance_is_that_of_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid", reason="needs 'pardalis[evaluate]'")
    a, b = normal(40).double(), (normal(40, seed=1) + 0.3).double()
    assert kernel_distance(a, b).distance == pytest.approx(float(kid.poly_mmd(a, b)), rel=1e-9)


def test_the_kernel_distance_by_hand():
    # Width 1: the kernel is (x y + 1)³. Pairs within: 8 and 1; between: the mean of 1, 1, 8, 1.
    a, b = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [1.0]])
    assert kernel_distance(a, b).distance == pytest.approx(8 + 1 - 2 * (1 + 8) / 2)


def test_the_kernel_distance_has_no_bias():
    # The mean over subsets of 10 is that of whole sets, where a Fréchet distance would rise.
    a, b = normal(200), normal(200, seed=1) + 0.5
    whole = kernel_distance(a, b)
    small = kernel_distance(a, b, subsets=400, subset_size=10)
    assert small.distance == pytest.approx(whole.distance, abs=4 * small.std / math.sqrt(400))
    assert whole.std == 0 < small.std
    assert kernel_distance(a, b, subsets=3, subset_size=10, seed=1) != kernel_distance(
        a, b, subsets=3, subset_size=10, seed=2
    )


def by_hand(generated: np.ndarray, real: np.ndarray, k: int) -> list[float]:
    def radius(one: np.ndarray, own: np.ndarray) -> float:
        return sorted(float(np.linalg.norm(one - other)) for other in own)[k]

    def reaches(centre: np.ndarray, own: np.ndarray, point: np.ndarray) -> bool:
        return float(np.linalg.norm(centre - point)) < radius(centre, own)

    precision = np.mean([any(reaches(r, real, g) for r in real) for g in generated])
    recall = np.mean([any(reaches(g, generated, r) for g in generated) for r in real])
    density = np.mean([sum(reaches(r, real, g) for r in real) / k for g in generated])
    coverage = np.mean([any(reaches(r, real, g) for g in generated) for r in real])
    return [float(each) for each in (precision, recall, density, coverage)]


@settings(max_examples=10, deadline=None)
@given(
    st.integers(5, 12), st.integers(5, 12), st.integers(1, 4), st.floats(0, 2), st.integers(0, 99)
)
def test_neighbours_are_those_of_the_definitions(n, m, k, shift, seed):
    a, b = normal(n, 3, seed).double() + shift, normal(m, 3, seed + 1).double()
    found = neighbours(a, b, k)
    values = [found.precision, found.recall, found.density, found.coverage]
    assert values == pytest.approx(by_hand(a.numpy(), b.numpy(), k))


def test_many_images_are_compared_in_parts(monkeypatch):
    a, b = normal(30), normal(40, seed=1)
    whole = neighbours(a, b)
    monkeypatch.setattr("pardalis.evaluate.metrics.distribution._AT_ONCE", 7)
    assert neighbours(a, b) == whole


def test_equal_and_distant_sets():
    a = normal(30)
    same = neighbours(a, a)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    far = neighbours(a, a + 100)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    assert kernel_distance(a, a + 1).distance > 0.1


def test_sets_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match="5 neighbours of each image need more than 5 images"):
        neighbours(normal(5), normal(9))
    with pytest.raises(ValueError, match="needs two images of each kind, not 1"):
        kernel_distance(normal(1), normal(9))
