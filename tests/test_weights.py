"""Weights are loaded whole or refused, with what is wrong."""

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pardalis.errors import BundleError
from pardalis.weights import load_weights


class Scaled(nn.Module):
    """A matrix, a frozen one, and a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2)
        self.b = nn.Linear(2, 2, bias=False).requires_grad_(False)
        self.scale = nn.Parameter(torch.tensor(2.0))


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in Scaled().state_dict().items()}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_all_of_them_arrive(tmp_path, weights, device):
    save_file(weights, tmp_path / "w.safetensors")
    with torch.device(device):
        module = Scaled()
    load_weights(module, tmp_path / "w.safetensors")
    state = module.state_dict()
    assert all(torch.equal(state[name], weights[name]) for name in weights)
    learns = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert learns == {"a.weight", "a.bias", "scale"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a.bias": None}, r"in 1 tensors, first a\.bias: found nothing, needed 2\. Do not mix"),
        ({"z": torch.ones(1, 4)}, r"in 1 tensors, first z: found 1x4, needed nothing"),
        ({"a.weight": torch.ones(2, 4)}, r"first a\.weight: found 2x4, needed 2x3"),
        ({"scale": torch.ones(1)}, r"first scale: found 1, needed a single number"),
        ({"scale": None, "a.bias": None, "y": torch.ones(1)}, r"in 3 tensors, first a\.bias: "),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path, weights, changes, message):
    changed = {name: tensor for name, tensor in (weights | changes).items() if tensor is not None}
    save_file(changed, tmp_path / "w.safetensors")
    module = Scaled()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(BundleError, match=message):
        load_weights(module, tmp_path / "w.safetensors")
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before)


@pytest.mark.parametrize("size", [0, 4, 40, -1])
def test_a_truncated_file(tmp_path, weights, size):
    path = tmp_path / "w.safetensors"
    save_file(weights, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(BundleError, match=r"w\.safetensors cannot be read .*truncated or not safe"):
        load_weights(Scaled(), path)


def test_a_missing_file(tmp_path):
    with pytest.raises(BundleError, match=r"w\.safetensors is missing; copy the whole folder"):
        load_weights(Scaled(), tmp_path / "w.safetensors")


def test_a_folder_in_place_of_the_file(tmp_path):
    with pytest.raises(BundleError, match="cannot be read"):
        load_weights(Scaled(), tmp_path)
