"""The chunked objective equals the naive one, in value and in gradient."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from pardalis.objectives import NextTokenConfig, linear_logsumexp, next_token_losses


def case(n: int = 11, width: int = 8, vocab: int = 37):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocab, width, generator=generator, requires_grad=True)
    targets = torch.randint(vocab, (n,), generator=generator)
    return hidden, weight, targets


@pytest.mark.parametrize("chunk", [1, 5, 36, 37, 100])
def test_chunks_equal_the_whole(chunk):
    hidden, weight, targets = case()
    logits = hidden @ weight.T
    naive = F.cross_entropy(logits, targets, reduction="none")
    z = logits.logsumexp(-1).square()
    scale = torch.linspace(0.1, 2, len(targets))
    expected = torch.autograd.grad(((naive + 0.3 * z) * scale).sum(), [hidden, weight])

    target_logit, lse = linear_logsumexp(hidden, weight, targets, chunk)
    torch.testing.assert_close(lse - target_logit, naive, rtol=1e-5, atol=1e-5)
    loss = ((lse - target_logit + 0.3 * lse.square()) * scale).sum()
    for ours, theirs in zip(torch.autograd.grad(loss, [hidden, weight]), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_full_logits_are_never_stored():
    """With the vocabulary in ten chunks nothing of the size of the full logits is allocated."""
    hidden, weight, targets = case(n=64, width=4, vocab=1000)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        target_logit, lse = linear_logsumexp(hidden, weight, targets, chunk=100)
        (lse - target_logit).sum().backward()
    assert 64 * 100 <= largest < 64 * 1000


def test_z_loss_of_a_known_row():
    """Logits 1, 2, 3: log Z 3.407606, term 1.161178e-4, gradient 2e-5 log Z softmax."""
    logits = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    _, lse = linear_logsumexp(logits, torch.eye(3), torch.tensor([0]), chunk=2)
    term = 1e-5 * lse.square().sum()
    assert float(lse.detach()) == pytest.approx(3.407606, abs=1e-6)
    assert float(term.detach()) == pytest.approx(1.161178e-4, rel=1e-6)
    [gradient] = torch.autograd.grad(term, [logits])
    expected = torch.tensor([[6.136e-6, 1.668e-5, 4.534e-5]])
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=0)


def test_z_loss_of_uniform_logits():
    _, lse = linear_logsumexp(torch.zeros(1, 2), torch.zeros(65_536, 2), torch.tensor([3]), 10_000)
    assert float(1e-5 * lse.square().detach()) == pytest.approx(1.229960e-3, rel=1e-5)


def batch(vocabulary, rows: int = 2, length: int = 9):
    generator = torch.Generator().manual_seed(0)
    weights = torch.ones(rows, length)
    weights[0, 4] = weights[1, -3:] = 0
    documents = torch.zeros(rows, length, dtype=torch.long)
    documents[0, 5:] = 1
    documents[1, -3:] = -1
    return SimpleNamespace(
        ids=torch.randint(vocabulary.size, (rows, length), generator=generator),
        targets=torch.randint(vocabulary.size, (rows, length), generator=generator),
        weights=weights,
        positions=torch.arange(length).expand(rows, length),
        documents=documents,
    )


def test_sums_by_modality(tiny_model, vocabulary):
    rows = batch(vocabulary)
    config = NextTokenConfig(z_loss=0.1, vocab_chunk=7)
    losses = next_token_losses(tiny_model, rows, vocabulary.image, config)

    from pardalis.model import document_mask

    logits = tiny_model(rows.ids, rows.positions, document_mask(rows.documents))
    nll = F.cross_entropy(logits.flatten(0, 1), rows.targets.flatten(), reduction="none")
    nll = nll.view_as(rows.weights) * rows.weights
    z = logits.logsumexp(-1).square() * rows.weights
    image = (rows.targets >= vocabulary.image.start) & (rows.targets < vocabulary.image.stop)
    close = {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(losses.total, nll.sum() + 0.1 * z.sum(), **close)
    torch.testing.assert_close(losses.image, nll[image].sum(), **close)
    torch.testing.assert_close(losses.text, nll[~image].sum(), **close)
    torch.testing.assert_close(losses.z, z.sum(), **close)
    assert float(losses.count) == float(rows.weights.sum()) == 2 * 9 - 4
    assert float(losses.image_count) == float(rows.weights[image].sum())
    assert float(losses.text_count + losses.image_count) == float(losses.count)


def test_weight_zero_teaches_nothing(tiny_model, vocabulary):
    rows = batch(vocabulary)
    config = NextTokenConfig()
    before = next_token_losses(tiny_model, rows, vocabulary.image, config).total
    rows.targets[rows.weights == 0] = vocabulary.text.start
    after = next_token_losses(tiny_model, rows, vocabulary.image, config).total
    assert torch.equal(before, after)


def test_document_mask_is_an_option_that_matters(tiny_model, vocabulary):
    rows = batch(vocabulary)
    within = next_token_losses(tiny_model, rows, vocabulary.image, NextTokenConfig()).total
    across = next_token_losses(
        tiny_model, rows, vocabulary.image, NextTokenConfig(document_mask=False)
    ).total
    assert abs(float((within - across).detach())) > 1e-2
    rows.documents.zero_()  # as if the row were one document, with positions to match
    rows.positions = torch.arange(rows.ids.shape[1]).expand(rows.ids.shape)
    one = next_token_losses(tiny_model, rows, vocabulary.image, NextTokenConfig()).total
    torch.testing.assert_close(one, across, rtol=1e-5, atol=1e-4)


def test_padding_yields_no_nan(tiny_model, vocabulary):
    rows = batch(vocabulary)
    next_token_losses(tiny_model, rows, vocabulary.image, NextTokenConfig()).total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in tiny_model.parameters())
