import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pardalis.vq.adversarial import (
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    r1_penalty,
)

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=5)


def softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


@given(real=LOGITS, fake=LOGITS)
def test_losses_equal_the_formulas(real, fake):
    hinge = (mean(max(0, 1 - x) for x in real) + mean(max(0, 1 + x) for x in fake)) / 2
    soft = (mean(softplus(-x) for x in real) + mean(softplus(x) for x in fake)) / 2
    for form, of_discriminator, of_generator in (
        ("hinge", hinge, mean(-x for x in fake)),
        ("softplus", soft, mean(softplus(-x) for x in fake)),
    ):
        found = discriminator_loss(form, torch.tensor(real), torch.tensor(fake))
        assert float(found) == pytest.approx(of_discriminator, rel=1e-4, abs=1e-5)
        found = generator_loss(form, torch.tensor(fake))
        assert float(found) == pytest.approx(of_generator, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("form", ["hinge", "softplus"])
def test_generator_and_discriminator_gradients_have_opposite_signs(form):
    real, fake = torch.zeros(2, 1, 3, 3, requires_grad=True), torch.zeros(4, 1, requires_grad=True)
    discriminator_loss(form, real, fake).backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()  # descent raises real, lowers fake
    fake.grad = None
    generator_loss(form, fake).backward()
    assert (fake.grad < 0).all()


def test_hinge_has_no_gradient_beyond_the_margin():
    real, fake = torch.tensor([1.5], requires_grad=True), torch.tensor([-1.5], requires_grad=True)
    discriminator_loss("hinge", real, fake).backward()
    assert real.grad == 0 and fake.grad == 0


class _Small(nn.Module):
    """A smooth discriminator of 4-pixel images."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(12, 5, generator=generator, dtype=torch.float64))
        self.second = nn.Parameter(torch.randn(5, 1, generator=generator, dtype=torch.float64))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.tanh(pixels.flatten(1) @ self.first) @ self.second


def test_r1_is_the_squared_gradient_of_the_logits():
    judge = _Small()
    images = torch.randn(3, 3, 2, 2, generator=torch.Generator().manual_seed(1)).double()
    found = r1_penalty(judge(images.requires_grad_()), images)
    expected, step = 0.0, 1e-5
    with torch.no_grad():
        for place in range(12):
            moved = torch.zeros(12, dtype=torch.float64)
            moved[place] = step
            moved = moved.view(3, 2, 2)
            slopes = (judge(images + moved) - judge(images - moved)) / (2 * step)
            expected += float(slopes.square().sum()) / len(images)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_minimising_r1_reduces_the_gradient():
    judge = _Small()
    images = torch.randn(3, 3, 2, 2, generator=torch.Generator().manual_seed(1)).double()
    optimizer = torch.optim.SGD(judge.parameters(), lr=1e-3)
    penalties = []
    for _ in range(20):
        penalty = r1_penalty(judge(images.requires_grad_()), images)
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        penalties.append(penalty.item())
    assert penalties[-1] < 0.9 * penalties[0]


def two_losses(scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, 3, 3, generator=generator).requires_grad_()
    direction = torch.randn(weight.shape, generator=generator)
    return weight.square().mean(), scale * (weight * direction).mean(), weight


def test_the_adaptive_weight_is_the_published_ratio():
    reconstruction, adversarial, weight = two_losses()
    found = adaptive_weight(reconstruction, adversarial, weight)
    nll = torch.autograd.grad(reconstruction, weight, retain_graph=True)[0]
    g = torch.autograd.grad(adversarial, weight, retain_graph=True)[0]
    expected = torch.clamp(torch.norm(nll) / (torch.norm(g) + 1e-4), 0.0, 1e4)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    (reconstruction + found * adversarial).backward()  # the graph was retained
    assert weight.grad is not None


def test_the_weight_is_at_most_ten_thousand_without_a_gradient():
    reconstruction, adversarial, weight = two_losses(scale=0.0)
    assert float(adaptive_weight(100 * reconstruction, adversarial, weight)) == 1e4


def test_processes_average_gradients_not_weights():
    """Two processes with opposite gradients have a small mean, so a large weight."""
    reconstruction, adversarial, weight = two_losses()
    (slope,) = torch.autograd.grad(adversarial, weight, retain_graph=True)
    calls = []

    def average(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(gradient)
        return gradient if len(calls) == 1 else (gradient - 0.9 * slope) / 2

    found = adaptive_weight(reconstruction, adversarial, weight, average)
    expected = calls[0].norm() / (0.05 * slope.norm() + 1e-4)
    torch.testing.assert_close(found, expected)
