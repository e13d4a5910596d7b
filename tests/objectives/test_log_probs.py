"""Chunked log-probabilities equal those of full logits, in value and in gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pardalis.objectives import token_log_probs


def case(rows: int = 11, width: int = 8, vocab: int = 37, dtype=torch.float32, seed: int = 0):
    """Hidden states, a head, targets, and the gradient of each log-probability."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, upstream = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((rows, width), (vocab, width), (rows,))
    )
    head = nn.Linear(width, vocab, bias=False, dtype=dtype)
    head.weight = nn.Parameter(weight)
    targets = torch.randint(vocab, (rows,), generator=generator)
    return hidden.requires_grad_(), head, targets, upstream


def naive(hidden, head, targets):
    logits = hidden @ head.weight.T
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def with_gradients(log_probs, hidden, head, upstream):
    return log_probs, *torch.autograd.grad(log_probs, [hidden, head.weight], upstream)


def error(found, expected) -> float:
    """The largest difference of each part, as a share of its largest value."""
    pairs = zip(found, expected, strict=True)
    return max(float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in pairs)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 17),
    width=st.integers(1, 9),
    vocab=st.integers(1, 33),
    chunk=st.integers(1, 20),
    seed=st.integers(0, 9),
)
def test_equals_full_logits(rows, width, vocab, chunk, seed):
    """In double precision, with any chunk."""
    hidden, head, targets, upstream = case(rows, width, vocab, torch.float64, seed)
    expected = with_gradients(naive(hidden, head, targets), hidden, head, upstream)
    log_probs = token_log_probs(hidden, head, targets, chunk=chunk)
    found = with_gradients(log_probs, hidden, head, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_single_precision():
    """Measured: 4.8e-7 of the largest value."""
    hidden, head, targets, upstream = case(vocab=301)
    expected = with_gradients(naive(hidden, head, targets), hidden, head, upstream)
    found = with_gradients(token_log_probs(hidden, head, targets, chunk=4), hidden, head, upstream)
    assert error(found, expected) < 2e-6


def test_autocast_decides_the_type_of_products():
    """Measured: 0.0052 of the largest value, for hidden states; the same with full logits."""
    hidden, head, targets, upstream = case(rows=64, vocab=301)
    with torch.autocast("cpu", torch.bfloat16):
        log_probs = token_log_probs(hidden, head, targets, chunk=16)
    found = with_gradients(log_probs, hidden, head, upstream)
    assert all(part.dtype is torch.float32 for part in found)
    rounded = nn.Linear(8, 301, bias=False)
    rounded.weight = nn.Parameter(head.weight.detach().bfloat16().float())
    halves = hidden.detach().bfloat16().float().requires_grad_()
    expected = with_gradients(naive(halves, rounded, targets), halves, rounded, upstream)
    assert 1e-4 < error(found, expected) < 0.02


def test_the_gradient_passes_a_numerical_check():
    hidden, head, targets, _ = case(5, 3, 7, torch.float64)

    def function(hidden, weight):
        return torch.func.functional_call(
            _LogProbs(head, targets), {"head.weight": weight}, (hidden,)
        )

    assert torch.autograd.gradcheck(function, (hidden, head.weight.detach().requires_grad_()))


class _LogProbs(nn.Module):
    def __init__(self, head, targets):
        super().__init__()
        self.head, self.targets = head, targets

    def forward(self, hidden):
        return token_log_probs(hidden, self.head, self.targets, chunk=2)


def test_a_probability_near_1_keeps_its_small_gradient_in_bfloat16():
    head = nn.Linear(1, 2, bias=False, dtype=torch.bfloat16)
    head.weight = nn.Parameter(torch.tensor([[7.6], [0.0]], dtype=torch.bfloat16))
    hidden = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    token_log_probs(hidden, head, torch.tensor([0])).sum().backward()
    largest = float(head.weight[0].detach())
    p = torch.sigmoid(torch.tensor(largest, dtype=torch.float64))
    assert float(hidden.grad) == pytest.approx(largest * (1 - float(p)), rel=2**-7)


def test_what_is_frozen_has_no_gradient():
    hidden, head, targets, upstream = case()
    expected = with_gradients(naive(hidden, head, targets), hidden, head, upstream)
    head.requires_grad_(False)
    token_log_probs(hidden, head, targets, chunk=4).backward(upstream)
    torch.testing.assert_close(hidden.grad, expected[1], rtol=1e-5, atol=1e-6)
    assert head.weight.grad is None
    head.requires_grad_(True)
    token_log_probs(hidden.detach(), head, targets, chunk=4).backward(upstream)
    torch.testing.assert_close(head.weight.grad, expected[2], rtol=1e-5, atol=1e-6)


def test_no_targets():
    hidden, head, targets, _ = case()
    found = token_log_probs(hidden[:0], head, targets[:0])
    found.sum().backward()
    assert found.shape == (0,) and not head.weight.grad.any()


def test_full_logits_are_never_stored():
    hidden, head, targets, upstream = case(rows=64, width=4, vocab=1000)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        token_log_probs(hidden, head, targets, chunk=8).backward(upstream)
    assert 8 * 1000 <= largest < 16 * 1000
