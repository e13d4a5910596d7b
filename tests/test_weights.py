"""Weights are loaded whole or refused, with what is wrong."""

import os

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pardalis.errors import BundleError
from pardalis.parallel import fill
from pardalis.weights import load_weights, stream_weights


class Scaled(nn.Module):
    """A matrix, a frozen one, and a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2)
        self.b = nn.Linear(2, 2, bias=False).requires_grad_(False)
        self.scale = nn.Parameter(torch.tensor(2.0))


def stream(module, path) -> None:
    stream_weights(module, path, fill)


each_way = pytest.mark.parametrize("load", [load_weights, stream])


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in Scaled().state_dict().items()}


@pytest.mark.parametrize(
    ("load", "device"), [(load_weights, "cpu"), (load_weights, "meta"), (stream, "cpu")]
)
def test_all_of_them_are_loaded(tmp_path, weights, load, device):
    save_file(weights, tmp_path / "w.safetensors")
    with torch.device(device):
        module = Scaled()
    load(module, tmp_path / "w.safetensors")
    state = module.state_dict()
    assert all(torch.equal(state[name], weights[name]) for name in weights)
    learns = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert learns == {"a.weight", "a.bias", "scale"}


@each_way
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a.bias": None}, r"do not fit their config: missing a\.bias\. Do not mix"),
        ({"z": torch.ones(1, 4)}, r"unexpected z\. Do not mix"),
        ({"a.weight": torch.ones(2, 4)}, r"of another shape a\.weight \(2x4 instead of 2x3\)\."),
        ({"scale": torch.ones(1)}, r"of another shape scale \(1 instead of a single number\)"),
        (
            {"scale": None, "a.bias": None, "y": torch.ones(1)},
            r"missing scale, a\.bias; unexpected y\.",
        ),
        ({f"z{i}": torch.ones(1) for i in range(9)}, r"unexpected z0, .*, z5 and 3 more\."),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path, weights, load, changes, message):
    changed = {name: tensor for name, tensor in (weights | changes).items() if tensor is not None}
    save_file(changed, tmp_path / "w.safetensors")
    module = Scaled()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(BundleError, match=message):
        load(module, tmp_path / "w.safetensors")
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before)


@each_way
@pytest.mark.parametrize("size", [0, 4, 40, -1])
def test_a_truncated_file(tmp_path, weights, load, size):
    path = tmp_path / "w.safetensors"
    save_file(weights, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(BundleError, match=r"w\.safetensors cannot be read .*truncated or not safe"):
        load(Scaled(), path)


@each_way
def test_a_missing_file(tmp_path, load):
    with pytest.raises(BundleError, match=r"w\.safetensors is missing; copy the whole folder"):
        load(Scaled(), tmp_path / "w.safetensors")


@each_way
def test_a_file_that_may_not_be_read_is_not_called_missing(tmp_path, weights, load, monkeypatch):
    save_file(weights, tmp_path / "w.safetensors")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(BundleError, match=r"w\.safetensors may not be read by this user"):
        load(Scaled(), tmp_path / "w.safetensors")


@each_way
def test_a_folder_in_place_of_the_file(tmp_path, load):
    with pytest.raises(BundleError, match="cannot be read"):
        load(Scaled(), tmp_path)
