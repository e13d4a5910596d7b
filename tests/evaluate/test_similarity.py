import math
import sys

import pytest
import torch
from torch.nn import functional as F

from pardalis.errors import ConfigError
from pardalis.evaluate.similarity import Moments, frechet_distance, ssim


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def ssim_by_hand(a: torch.Tensor, b: torch.Tensor) -> float:
    """Equation 13 of the paper on bytes, the image mirrored at its borders."""
    offsets = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = (torch.outer(line, line) / line.sum() ** 2)[None, None]
    a, b = (F.pad(255 * x[:, None].double(), (5, 5, 5, 5), mode="reflect") for x in (a, b))
    a, b = F.unfold(a, 11), F.unfold(b, 11)  # each channel alone
    weights = window.reshape(1, -1, 1)
    mean_a, mean_b = ((weights * x).sum(1) for x in (a, b))
    var_a, var_b, both = (
        (weights * x * y).sum(1) - mx * my
        for x, y, mx, my in ((a, a, mean_a, mean_a), (b, b, mean_b, mean_b), (a, b, mean_a, mean_b))
    )
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return float((top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def test_ssim_is_that_of_the_paper():
    images = noise(3, 3, 24, 20)
    others = 0.6 * images + 0.4 * noise(3, 3, 24, 20, seed=1)
    found = ssim(others * 2 - 1, images * 2 - 1)
    expected = [ssim_by_hand(a, b) for a, b in zip(others, images, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert ssim(images * 2 - 1, images * 2 - 1).tolist() == pytest.approx([1.0] * 3)


def test_ssim_of_a_single_image():
    assert ssim(noise(1, 3, 16, 16), noise(1, 3, 16, 16)).shape == (1,)


def test_missing_torchmetrics_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(ConfigError, match=r"SSIM needs the package .*pardalis\[evaluate\]"):
        ssim(noise(1, 3, 16, 16), noise(1, 3, 16, 16))


def moments(features: torch.Tensor, batch: int = 7) -> Moments:
    found = Moments(features.shape[1])
    for some in torch.split(features, batch):
        found.add(some)
    return found


def test_moments_do_not_depend_on_batches():
    features = noise(50, 6)
    found = moments(features)
    assert found.n == 50
    torch.testing.assert_close(found.mean, features.double().mean(0))
    torch.testing.assert_close(found.covariance, torch.cov(features.double().T))


@pytest.mark.parametrize("n", [9, 200])  # fewer and more than dimensions
def test_the_frechet_distance_is_that_of_torchmetrics(n):
    from torchmetrics.image.fid import _compute_fid

    a, b = moments(noise(n, 12)), moments(0.5 + 2 * noise(n, 12, seed=1).square())
    expected = _compute_fid(a.mean, a.covariance, b.mean, b.covariance)
    # Where the covariances have no full rank, theirs takes roots of rounding errors around 0.
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-5 if n == 9 else 1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_the_frechet_distance_of_shifted_and_scaled_sets():
    features = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    variance = float(moments(features).covariance.trace())
    same = moments(features)
    assert frechet_distance(same, same) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(same, moments(features + 3)) == pytest.approx(4 * 9, rel=1e-4)
    mean = features.mean(0)
    scaled = moments((features - mean) * 3 + mean)
    assert frechet_distance(same, scaled) == pytest.approx(4 * variance, rel=1e-4)


def test_one_image_has_no_frechet_distance():
    assert math.isnan(frechet_distance(moments(noise(1, 4)), moments(noise(9, 4))))


def test_a_covariance_at_which_lapack_fails_has_a_distance_all_the_same(monkeypatch):
    a, b = Moments(40), Moments(40)
    a.add(torch.randn(8, 40, generator=torch.Generator().manual_seed(0)))
    b.add(torch.randn(8, 40, generator=torch.Generator().manual_seed(1)) + 1)
    expected, eigh = frechet_distance(a, b), torch.linalg.eigh

    def fails_at_a_low_rank(matrix):
        if (torch.linalg.eigvalsh(matrix) < 1e-15).any():
            raise torch.linalg.LinAlgError("it failed to converge")
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", fails_at_a_low_rank)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)
