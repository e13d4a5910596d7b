import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis.feature_nets import (
    FeatureNetConfig,
    PerceptualDistance,
    load_perceptual_distance,
)
from pardalis.vq.regions import region_loss

SIDE = 32


@pytest.fixture(scope="module")
def distance() -> PerceptualDistance:
    torch.set_num_threads(1)
    return load_perceptual_distance(FeatureNetConfig(name="squeezenet"))


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    reconstruction, pixels = torch.rand(2, 2, 3, 64, 64, generator=generator) * 2 - 1
    return reconstruction, pixels


def loss(distance, pair, regions, max_regions=6) -> torch.Tensor:
    return region_loss(distance, *pair, regions, side=SIDE, max_regions=max_regions)


@settings(max_examples=15, deadline=None)
@given(
    left=st.integers(0, 40),
    top=st.integers(0, 40),
    width=st.integers(8, 24),
    height=st.integers(8, 24),
)
def test_the_gradient_stays_inside_the_box(distance, pair, left, top, width, height):
    reconstruction = pair[0].clone().requires_grad_()
    box = (float(left), float(top), float(left + width), float(top + height))
    loss(distance, (reconstruction, pair[1]), [[(box, 1.0)], []]).backward()
    gradient = reconstruction.grad.abs()
    inside = gradient[0, :, top : top + height, left : left + width]
    assert float(inside.sum()) > 0
    assert float(gradient.sum()) == pytest.approx(float(inside.sum()), rel=1e-5)
    inside.zero_()
    assert (gradient == 0).all()


def test_the_loss_is_the_distance_of_the_crops(distance, pair):
    box = (10.0, 4.0, 42.0, 36.0)  # as wide as the crops are scaled to
    crops = [images[:1, :, 4:36, 10:42] for images in pair]
    found = loss(distance, pair, [[(box, 1.0)], []])
    torch.testing.assert_close(found, distance(*crops)[0] / 2)  # of two images


def test_sums_are_in_32_bits_under_autocast(distance, pair):
    regions = [[((10.0, 4.0, 42.0, 36.0), 1.001)], []]
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(distance, pair, regions)
    torch.testing.assert_close(found, loss(distance, pair, regions))


def test_the_loss_is_linear_in_weights_and_additive(distance, pair):
    one, other = (0.0, 0.0, 30.0, 20.0), (20.0, 30.0, 64.0, 64.0)
    single = loss(distance, pair, [[(one, 1.0)], []])
    torch.testing.assert_close(loss(distance, pair, [[(one, 2.0)], []]), 2 * single)
    both = loss(distance, pair, [[(one, 2.0)], [(other, 0.5)]])
    second = loss(distance, pair, [[], [(other, 0.5)]])
    torch.testing.assert_close(both, 2 * single + second, atol=1e-6, rtol=1e-4)


def test_boxes_outside_are_skipped_and_others_clipped(distance, pair):
    outside = [(-20.0, 0.0, -4.0, 30.0), (70.0, 70.0, 90.0, 90.0), (5.0, 64.0, 20.0, 80.0)]
    assert float(loss(distance, pair, [[(box, 1.0) for box in outside], []])) == 0
    across = loss(distance, pair, [[((-9.0, 40.0, 20.0, 99.0), 1.0)], []])
    torch.testing.assert_close(across, loss(distance, pair, [[((0.0, 40.0, 20.0, 64.0), 1.0)], []]))


def test_fractional_boxes_include_all_pixels_they_touch(distance, pair):
    loose = loss(distance, pair, [[((3.4, 5.9, 20.1, 21.0), 1.0)], []])
    torch.testing.assert_close(loose, loss(distance, pair, [[((3.0, 5.0, 21.0, 21.0), 1.0)], []]))


def test_only_the_first_boxes_inside_count(distance, pair):
    seen = [((0.0, 0.0, 20.0, 20.0), 1.0), ((30.0, 30.0, 60.0, 60.0), 1.0)]
    outside = ((70.0, 0.0, 80.0, 10.0), 1.0)
    found = loss(distance, pair, [[outside, *seen], []], max_regions=1)
    torch.testing.assert_close(found, loss(distance, pair, [seen[:1], []]))


def test_equal_images_or_no_regions_have_zero_loss(distance, pair):
    boxes = [[((0.0, 0.0, 20.0, 20.0), 1.0)], []]
    assert float(loss(distance, (pair[1], pair[1]), boxes)) == 0
    nothing = loss(distance, pair, [[], []])
    assert nothing.shape == () and float(nothing) == 0


def test_every_pixel_of_a_box_twice_the_side_counts(distance, pair):
    reconstruction = pair[0].clone().requires_grad_()
    loss(distance, (reconstruction, pair[1]), [[((0.0, 0.0, 64.0, 64.0), 1.0)], []]).backward()
    # Squeezenet's first convolution ignores the last pixels of an even side: two here.
    seen = reconstruction.grad[0, :, :62, :62].abs().amax(0)
    assert float((seen > 0).float().mean()) > 0.99
