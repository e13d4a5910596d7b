from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from random_feature_nets import random_pixels, random_tensors
from torch import Tensor

from pardalis.errors import BundleError, ConfigError
from pardalis.feature_nets import (
    FeatureNetConfig,
    PerceptualDistance,
    load_perceptual_distance,
)
from pardalis.feature_nets.squeezenet import SqueezeNet
from pardalis.feature_nets.vgg import VGG16


@pytest.fixture(scope="module")
def distance() -> PerceptualDistance:
    return load_perceptual_distance(FeatureNetConfig(name="squeezenet"))


def random_heads(widths: tuple[int, ...]) -> dict[str, Tensor]:
    """Return heads in the layout of the package lpips."""
    generator = torch.Generator().manual_seed(1)
    return {
        f"lin{layer}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for layer, width in enumerate(widths)
    }


@pytest.fixture(scope="module")
def vgg_files(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("vgg")
    torch.save(random_tensors(VGG16), folder / "vgg16.pth")
    torch.save(random_heads(VGG16.widths), folder / "heads.pth")
    return folder / "vgg16.pth", folder / "heads.pth"


def vgg_maps(scaled: Tensor) -> list[Tensor]:
    tensors, maps = random_tensors(VGG16), []
    for stage in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
        for place in stage:
            name = f"features.{place}"
            scaled = F.conv2d(scaled, tensors[f"{name}.weight"], tensors[f"{name}.bias"], padding=1)
            scaled = scaled.relu()
        maps.append(scaled)
        scaled = F.max_pool2d(scaled, 2)
    return maps


def test_with_heads_the_distance_is_lpips(vgg_files):
    """Against the formula of the paper's code, which scales pixels in [-1, 1] once, by constants.

    They are ImageNet's mean and deviation for [0, 1], so nothing may scale by those again.
    """
    weights, heads = vgg_files
    config = FeatureNetConfig(name="vgg16", weights=weights, heads=heads)
    distance = load_perceptual_distance(config)
    assert distance.name == "lpips_vgg16"
    one, other = random_pixels(3, 3, 40, 32), random_pixels(3, 3, 40, 32, seed=1)

    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    expected = torch.zeros(3)
    for map_, target, head in zip(
        vgg_maps((one - shift) / scale),
        vgg_maps((other - shift) / scale),
        random_heads(VGG16.widths).values(),
        strict=True,
    ):
        a = map_ / (map_.square().sum(1, keepdim=True).sqrt() + 1e-10)
        b = target / (target.square().sum(1, keepdim=True).sqrt() + 1e-10)
        expected += F.conv2d((a - b).square(), head).mean((1, 2, 3))
    torch.testing.assert_close(distance(one, other), expected, atol=1e-5, rtol=1e-4)


def test_without_heads_a_layer_counts_two_minus_two_cosines(distance):
    one, other = random_pixels(2, 3, 48, 48), random_pixels(2, 3, 48, 48, seed=1)
    assert distance.name == "perceptual_squeezenet"
    layers = [
        (2 - 2 * F.cosine_similarity(a, b, dim=1)).mean((1, 2))
        for a, b in zip(distance.net.maps(one), distance.net.maps(other), strict=True)
    ]
    torch.testing.assert_close(distance(one, other), torch.stack(layers).mean(0))


def test_layer_weights_select_layers():
    one, other = random_pixels(1, 3, 32, 32), random_pixels(1, 3, 32, 32, seed=1)
    single = [
        load_perceptual_distance(
            FeatureNetConfig(
                name="squeezenet", layer_weights=(0.0,) * i + (1.0,) + (0.0,) * (6 - i)
            )
        )(one, other)
        for i in range(7)
    ]
    weights = (0.5, 0.0, 1.0, 2.0, 0.0, 0.0, 3.0)
    config = FeatureNetConfig(name="squeezenet", layer_weights=weights)
    expected = sum(weight * value for weight, value in zip(weights, single, strict=True))
    torch.testing.assert_close(load_perceptual_distance(config)(one, other), expected)


@settings(max_examples=10, deadline=None)
@given(
    height=st.integers(32, 70),
    width=st.integers(32, 70),
    n=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_each_pair_is_independent(distance, height, width, n, seed):
    one = random_pixels(n, 3, height, width, seed=seed)
    other = random_pixels(n, 3, height, width, seed=seed + 1)
    found = distance(one, other)
    assert torch.equal(distance(one, one), torch.zeros(n))
    torch.testing.assert_close(found, distance(other, one))
    torch.testing.assert_close(found[:1], distance(one[:1], other[:1]), atol=1e-5, rtol=1e-4)
    assert (found > 0).all() and (found <= 2).all()


def test_worse_images_have_a_larger_distance(distance, photograph_pixels):
    noise = torch.randn(photograph_pixels.shape, generator=torch.Generator().manual_seed(0))

    def blurred(factor: int) -> Tensor:
        small = F.interpolate(photograph_pixels, scale_factor=1 / factor, mode="area")
        return F.interpolate(small, size=photograph_pixels.shape[2:], mode="bilinear")

    for worse in (
        [photograph_pixels + deviation * noise for deviation in (0.02, 0.05, 0.1, 0.3)],
        [blurred(factor) for factor in (2, 4, 8, 16)],
    ):
        found = [float(distance(image, photograph_pixels)) for image in worse]
        assert found == sorted(found) and found[-1] > 4 * found[0]


def test_the_gradient_is_that_of_the_reconstruction_only(distance):
    pixels = random_pixels(1, 3, 32, 32).requires_grad_()
    reconstruction = random_pixels(1, 3, 32, 32, seed=1).requires_grad_()
    before = distance(reconstruction, pixels).sum()
    before.backward()
    assert pixels.grad is None
    assert all(parameter.grad is None for parameter in distance.parameters())
    step = 1e-4 * reconstruction.grad / reconstruction.grad.abs().mean()
    with torch.no_grad():
        fall = distance(reconstruction - step, pixels) - distance(reconstruction + step, pixels)
    # Measured 1.2 % apart, because of the step size.
    assert float(fall) == pytest.approx(-2 * float((step * reconstruction.grad).sum()), rel=0.05)


def test_gradients_are_finite_without_activations(distance):
    # Without any activation a unit vector has no direction.
    for shade in (-1.0, 0.0, 1.0):
        flat = torch.full((1, 3, 32, 32), shade, requires_grad=True)
        distance(flat, random_pixels(1, 3, 32, 32)).sum().backward()
        assert flat.grad.isfinite().all()


def test_lpips_of_squeezenet_takes_torchvisions_weights(tmp_path):
    torch.save(random_tensors(SqueezeNet), tmp_path / "squeezenet.pth")
    torch.save(random_heads(SqueezeNet.widths), tmp_path / "heads.pth")
    config = FeatureNetConfig(
        name="squeezenet",
        weights=tmp_path / "squeezenet.pth",
        heads=tmp_path / "heads.pth",
    )
    assert load_perceptual_distance(config).name == "lpips_squeezenet"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "squeezenet", "heads": Path("h.pth")},
            "fitted to torchvision's weights of squeezenet",
        ),
        (
            {"name": "resnet50", "weights": Path("w"), "heads": Path("h")},
            "vgg16 or squeezenet, not to resnet",
        ),
        (
            {
                "name": "vgg16",
                "weights": Path("w"),
                "heads": Path("h"),
                "layer_weights": (1.0,),
            },
            "leave one of them out",
        ),
        ({"layer_weights": ()}, "layer_weights must be"),
        ({"layer_weights": (1.0, -1.0)}, "layer_weights must be"),
        ({"layer_weights": (0.0, 0.0)}, "not all 0"),
        ({"layer_weights": (float("nan"),)}, "finite"),
    ],
)
def test_invalid_configs_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        FeatureNetConfig(**arguments)


def test_layer_weights_must_be_as_many_as_layers():
    config = FeatureNetConfig(name="squeezenet", layer_weights=(1.0, 2.0))
    with pytest.raises(ConfigError, match="has 2 numbers, but squeezenet has 7 layers"):
        load_perceptual_distance(config)


def test_heads_of_another_net_are_refused(tmp_path, vgg_files):
    torch.save(random_heads(SqueezeNet.widths), tmp_path / "heads.pth")
    config = FeatureNetConfig(name="vgg16", weights=vgg_files[0], heads=tmp_path / "heads.pth")
    with pytest.raises(BundleError, match=r"heads\.pth do not fit the net"):
        load_perceptual_distance(config)
