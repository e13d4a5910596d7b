"""The sums of a batch, by modality, are those of full logits."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from pardalis.batch import Batch
from pardalis.errors import ConfigError
from pardalis.model import document_mask
from pardalis.objectives import NextTokenConfig, next_token, next_token_losses, zero_losses


def batch(vocabulary, rows: int = 2, length: int = 9):
    generator = torch.Generator().manual_seed(0)
    weights = torch.ones(rows, length)
    weights[0, 4] = weights[1, -3:] = 0
    documents = torch.zeros(rows, length, dtype=torch.long)
    documents[0, 5:] = 1
    documents[1, -3:] = -1
    return Batch(
        ids=torch.randint(vocabulary.size, (rows, length), generator=generator),
        targets=torch.randint(vocabulary.size, (rows, length), generator=generator),
        weights=weights,
        positions=torch.arange(length).expand(rows, length),
        documents=documents,
    )


def values(losses) -> list[torch.Tensor]:
    return [getattr(losses, field.name) for field in dataclasses.fields(losses)]


def naive(model, rows, image_ids):
    """Cross-entropy, log Z and modality of every target, and what the head reads."""
    hidden = model.hidden(rows.ids, rows.positions, document_mask(rows.documents))
    logits = model.head(hidden)
    nll = F.cross_entropy(logits.flatten(0, 1), rows.targets.flatten(), reduction="none")
    image = (rows.targets >= image_ids.start) & (rows.targets < image_ids.stop)
    return nll.view_as(rows.weights), logits.logsumexp(-1), image, hidden


@pytest.mark.parametrize("image_weight", [1.0, 0.3, 0.0])
def test_sums_by_modality(tiny_model, vocabulary, image_weight):
    rows = batch(vocabulary)
    rows.weights[0, 1] = 0.5
    config = NextTokenConfig(z_loss=0.1, loss_chunk=7, image_weight=image_weight)
    losses = next_token_losses(tiny_model, rows, vocabulary.image, config)
    nll, lse, image, hidden = naive(tiny_model, rows, vocabulary.image)
    assert 0 < image[rows.weights > 0].sum() < (rows.weights > 0).sum()
    learnt = torch.where(image, image_weight * rows.weights, rows.weights)
    total = (learnt * (nll + 0.1 * lse.square())).sum()
    [gradient] = torch.autograd.grad(total, [hidden])
    squares = gradient.square().sum(-1)
    weights = rows.weights
    expected = {
        "total": total,
        "count": weights.sum(),
        "text": (weights * nll)[~image].sum(),
        "text_count": weights[~image].sum(),
        "image": (weights * nll)[image].sum(),
        "image_count": weights[image].sum(),
        "z": (weights * lse.square()).sum(),
        "text_lse": (weights * lse)[~image].sum(),
        "image_lse": (weights * lse)[image].sum(),
        "text_gradient": squares[~image].sum(),
        "image_gradient": squares[image].sum(),
    }
    names = [field.name for field in dataclasses.fields(losses)]
    torch.testing.assert_close(
        values(losses), [expected[name] for name in names], rtol=1e-5, atol=1e-4
    )


def test_only_the_total_hangs_on_the_graph(tiny_model, vocabulary):
    losses = next_token_losses(tiny_model, batch(vocabulary), vocabulary.image, NextTokenConfig())
    assert losses.total.requires_grad
    names = {field.name for field in dataclasses.fields(losses)} - {"total"}
    assert not any(getattr(losses, name).requires_grad for name in names)


def test_text_learns_the_same_beside_images_that_are_not_learnt(tiny_model, vocabulary):
    """With image_weight 0 the gradient is that of the text targets, divided by the same count."""
    rows = batch(vocabulary)
    image = (rows.targets >= vocabulary.image.start) & (rows.targets < vocabulary.image.stop)
    never = next_token_losses(tiny_model, rows, vocabulary.image, NextTokenConfig(image_weight=0.0))
    rows.weights[image] = 0
    text_only = next_token_losses(tiny_model, rows, vocabulary.image, NextTokenConfig())
    parameters = list(tiny_model.parameters())
    found, expected = (torch.autograd.grad(x.total, parameters) for x in (never, text_only))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert float(never.image) > 0 and float(text_only.image) == 0


def test_rows_without_weight_change_nothing_where_they_are_not_dropped(
    tiny_model, vocabulary, monkeypatch
):
    """As on a GPU, where all rows go through the head."""
    rows = batch(vocabulary)

    def learn():
        losses = next_token_losses(tiny_model, rows, vocabulary.image, NextTokenConfig())
        return losses, torch.autograd.grad(losses.total, list(tiny_model.parameters()))

    dropped, expected = learn()
    monkeypatch.setattr(next_token, "_learnt", lambda weights: slice(None))
    kept, gradients = learn()
    torch.testing.assert_close(values(kept), values(dropped))
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-5)


def test_sums_start_from_zeros():
    assert not any(values(zero_losses()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z_loss": -1.0}, "^z_loss must be 0 or more, got -1.0"),
        ({"image_weight": math.nan}, "^image_weight must be 0 or more, got nan"),
        ({"loss_chunk": 0}, "^loss_chunk must be at least 1, got 0"),
    ],
)
def test_invalid_options_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        NextTokenConfig(**change)


def test_targets_of_weight_zero_have_no_gradient(tiny_model, vocabulary):
    rows = batch(vocabulary)
    config = NextTokenConfig()
    before = next_token_losses(tiny_model, rows, vocabulary.image, config).total
    rows.targets[rows.weights == 0] = vocabulary.text.start
    after = next_token_losses(tiny_model, rows, vocabulary.image, config).total
    assert torch.equal(before, after)


def test_the_document_mask_changes_the_loss(tiny_model, vocabulary):
    rows = batch(vocabulary)
    within = next_token_losses(tiny_model, rows, vocabulary.image, NextTokenConfig()).total
    across = next_token_losses(
        tiny_model, rows, vocabulary.image, NextTokenConfig(document_mask=False)
    ).total
    assert abs(float((within - across).detach())) > 1e-2
    rows.documents.zero_()  # as if the row were one document, which its positions already say
    one = next_token_losses(tiny_model, rows, vocabulary.image, NextTokenConfig()).total
    torch.testing.assert_close(one, across, rtol=1e-5, atol=1e-4)


def test_the_form_of_the_mask_changes_no_loss(tiny_model, vocabulary):
    rows, config = batch(vocabulary), NextTokenConfig()
    fastest = next_token_losses(tiny_model, rows, vocabulary.image, config)
    plain = next_token_losses(tiny_model, rows, vocabulary.image, config, document_mask)
    torch.testing.assert_close(values(fastest), values(plain), rtol=1e-5, atol=1e-4)


def test_padding_yields_no_nan(tiny_model, vocabulary):
    rows = batch(vocabulary)
    next_token_losses(tiny_model, rows, vocabulary.image, NextTokenConfig()).total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in tiny_model.parameters())
