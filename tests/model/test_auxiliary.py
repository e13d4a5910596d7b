"""Auxiliary losses are collected where they are asked for, and nowhere else."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from pardalis.model import add_auxiliary_loss, auxiliary_losses


def squared(x: torch.Tensor) -> torch.Tensor:
    """A layer with an auxiliary loss that needs what is recomputed."""
    y = x.sin()
    add_auxiliary_loss("size", y.square().mean())
    return y.exp()


def test_values_are_collected_by_name():
    with auxiliary_losses() as found:
        add_auxiliary_loss("a", torch.tensor(1.0))
        with auxiliary_losses() as inner:
            add_auxiliary_loss("b", torch.tensor(2.0))
        add_auxiliary_loss("a", torch.tensor(3.0))
    add_auxiliary_loss("a", torch.tensor(4.0))
    assert found == {"a": [1.0, 3.0]} and inner == {"b": [2.0]}


def test_without_gradients_nothing_is_added():
    with auxiliary_losses() as found, torch.no_grad():
        squared(torch.ones(2))
    assert found == {}


@pytest.mark.parametrize("recomputes", [False, True])
def test_the_gradient_is_that_of_the_sum(recomputes):
    x = torch.linspace(-1, 1, 5, dtype=torch.float64, requires_grad=True)
    with auxiliary_losses() as found:
        y = checkpoint(squared, x, use_reentrant=False) if recomputes else squared(x)
    (y.sum() + sum(found["size"])).backward()
    [expected] = torch.autograd.grad(x.sin().exp().sum() + x.sin().square().mean(), [x])
    torch.testing.assert_close(x.grad, expected)
    assert len(found["size"]) == 1


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of PyTorch, after a graph break
def test_compiled_code_adds_its_values():
    x = torch.linspace(-1, 1, 5, requires_grad=True)
    with auxiliary_losses() as found:
        torch.compile(squared, backend="eager")(x)
    [value] = found["size"]
    torch.testing.assert_close(value, x.sin().square().mean())
