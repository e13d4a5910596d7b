"""Merges that keep the architecture: means of weights."""

import math
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from parents import ARCHITECTURES, in_memory, weights_of, write_parent
from safetensors.torch import load_file

from pardalis.errors import ConfigError
from pardalis.fusion import SlerpConfig, TaskArithmeticConfig, UniformConfig, merge
from pardalis.fusion.averages import arc_weights, weighted_sum


@pytest.fixture(scope="module")
def parents(codec):
    return [in_memory(codec, seed) for seed in (1, 2, 3)]


def merged(parents, how):
    return weights_of(how.merged(parents, 0))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_uniform_is_the_mean_of_every_parameter(architecture, codec):
    pair = [in_memory(codec, n, architecture) for n in (1, 2)]
    found = merged(pair, UniformConfig())
    one, two = map(weights_of, pair)
    assert found.keys() == one.keys()
    for name, values in found.items():
        assert torch.equal(values, (one[name] + two[name]) / 2), name


def test_uniform_commutes_and_has_weights(parents):
    pair = parents[:2]
    mean, other = merged(pair, UniformConfig()), merged(pair[::-1], UniformConfig())
    assert all(torch.equal(mean[name], other[name]) for name in mean)
    third = merged(pair, UniformConfig(weights=(0.25, 0.75)))
    one, two = map(weights_of, pair)
    for name, values in third.items():
        assert torch.allclose(values, 0.25 * one[name] + 0.75 * two[name], atol=1e-7)


@pytest.mark.parametrize(
    "how", [UniformConfig(), UniformConfig(weights=(0.3, 0.7)), SlerpConfig(t=0.3)], ids=repr
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_merged_with_itself_is_itself(parents, how, dtype):
    parent = parents[0]
    tensors = {name: tensor.to(dtype) for name, tensor in parent.tensors.items()}
    found = merged([parent.with_tensors(parent.config, tensors)] * 2, how)
    for name, values in weights_of(parent).items():
        assert torch.equal(found[name], values.to(dtype)), name


def test_three_parents(parents):
    found = merged(parents, UniformConfig(weights=(0.5, 0.25, 0.25)))
    one, two, three = map(weights_of, parents)
    for name, values in found.items():
        expected = 0.5 * one[name] + 0.25 * two[name] + 0.25 * three[name]
        assert torch.allclose(values, expected, atol=1e-7)


def test_task_arithmetic_adds_what_was_learnt_since_the_ancestor(codec, tmp_path):
    folders = [write_parent(tmp_path / str(seed), codec, seed) for seed in (1, 2, 3)]
    how = TaskArithmeticConfig(base=folders[0], weights=(0.5, 2.0))
    merge(folders[1:], tmp_path / "out", how)
    found = load_file(tmp_path / "out" / "model.safetensors")
    zero, one, two = (load_file(folder / "model.safetensors") for folder in folders)
    for name, values in found.items():
        expected = zero[name] + 0.5 * (one[name] - zero[name]) + 2 * (two[name] - zero[name])
        assert torch.allclose(values, expected, atol=1e-6)


def test_task_arithmetic_without_a_difference_is_the_ancestor(parents):
    ancestor = parents[2]
    how = TaskArithmeticConfig(base=ancestor.folder, weights=(0.0, 0.0))
    found = merged(parents, how)
    assert all(torch.equal(found[name], values) for name, values in weights_of(ancestor).items())
    found = merged([ancestor] * 3, TaskArithmeticConfig(base=ancestor.folder))
    assert all(torch.equal(found[name], values) for name, values in weights_of(ancestor).items())


@given(st.floats(0, 1), st.integers(0, 1000))
def test_spherical_interpolation_stays_on_the_sphere(t, seed):
    """Of unit vectors at the angle Ω, it is a unit vector at the angle t Ω to the first."""
    pair = torch.randn(2, 8, generator=torch.Generator().manual_seed(seed)).double()
    one, two = pair / pair.norm(dim=1, keepdim=True)
    found = weighted_sum((one, two), arc_weights(one, two, t))
    angle = math.acos(float(one @ two))
    assert float(found.norm()) == pytest.approx(1, abs=1e-5)
    assert float(found @ one) == pytest.approx(math.cos(t * angle), abs=1e-5)


def test_opposite_and_empty_vectors_are_interpolated_linearly():
    one = torch.tensor([1.0, 2.0])
    assert arc_weights(one, -one, 0.25) == (0.75, 0.25)
    assert arc_weights(one, 0 * one, 0.25) == (0.75, 0.25)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_weights_of_16_bits_are_rounded_once(weight):
    pair = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = weighted_sum((pair[0], pair[1]), (weight, 1 - weight))
    exact = weight * pair[0].double() + (1 - weight) * pair[1].double()
    wrong = found != exact.bfloat16()
    assert wrong.float().mean() < 0.02  # the exact sum is in the middle of two numbers of 16 bits
    assert not wrong.any() or weight not in (0, 0.5, 1)
    torch.testing.assert_close(found, exact.bfloat16())
    three = weighted_sum((pair[0], pair[1], pair[1]), (weight, 0.5 - weight, 0.5))
    torch.testing.assert_close(three, found)


def test_long_tensors_are_summed_in_parts(monkeypatch):
    monkeypatch.setattr("pardalis.fusion.averages._AT_ONCE", 7)
    tensors = [torch.randn(5, 4).T, torch.randn(4, 5)]  # the first is not contiguous
    assert torch.equal(weighted_sum(tensors, (0.5, 0.5)), (tensors[0] + tensors[1]) / 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UniformConfig(weights=(0.5, 0.6)), "weights must sum to 1, and 0.5, 0.6 sum to"),
        (lambda: SlerpConfig(t=1.5), r"t must lie in \[0, 1\], got 1.5"),
    ],
)
def test_wrong_options(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("n", "how", "message"),
    [
        (3, SlerpConfig(), "kind = 'slerp' merges two models, got 3"),
        (2, UniformConfig(weights=(1.0,)), "weights must have one number for each of the 2 models"),
        (
            3,
            TaskArithmeticConfig(base=Path("a"), weights=(math.inf, 1.0)),
            "weights must be finite numbers, got inf, 1",
        ),
    ],
)
def test_wrong_numbers_of_parents(parents, n, how, message):
    with pytest.raises(ConfigError, match=message):
        how.merged(parents[:n], 0)
