"""The sums of a batch, by modality, are those of full logits."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from pardalis.batch import Batch, Soft
from pardalis.errors import ConfigError
from pardalis.model import document_mask, masks_as_tensors
from pardalis.objectives import Loss, NextTokenConfig, next_token


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


def loss_of(model, rows, vocabulary, **options) -> Loss:
    objective = NextTokenConfig(**options).build({"image": vocabulary.image})
    return objective(model, rows)


def values(loss: Loss) -> list[torch.Tensor]:
    return [loss.total, loss.count, *(value for pair in loss.sums.values() for value in pair)]


def naive(model, rows, image_ids):
    """Cross-entropy, log Z and modality of every target, and what the head reads."""
    hidden = model.hidden(rows.ids, rows.positions, document_mask(rows.documents))
    logits = model.head(hidden)
    nll = F.cross_entropy(logits.flatten(0, 1), rows.targets.flatten(), reduction="none")
    image = (rows.targets >= image_ids.start) & (rows.targets < image_ids.stop)
    return nll.view_as(rows.weights), logits.logsumexp(-1), image, hidden


@pytest.mark.parametrize("weights", [{}, {"image": 0.3}, {"image": 0.0, "text": 2.0}])
def test_sums_by_modality(tiny_model, vocabulary, weights):
    rows = batch(vocabulary)
    rows.weights[0, 1] = 0.5
    loss = loss_of(tiny_model, rows, vocabulary, z_loss=0.1, loss_chunk=7, modality_weights=weights)
    nll, lse, image, hidden = naive(tiny_model, rows, vocabulary.image)
    assert 0 < image[rows.weights > 0].sum() < (rows.weights > 0).sum()
    scales = torch.where(image, weights.get("image", 1.0), weights.get("text", 1.0))
    total = (scales * rows.weights * (nll + 0.1 * lse.square())).sum()
    [gradient] = torch.autograd.grad(total, [hidden])
    squares = gradient.square().sum(-1)
    counts = {"text": rows.weights[~image].sum(), "image": rows.weights[image].sum()}
    expected = {"z_loss": ((rows.weights * lse.square()).sum(), rows.weights.sum())}
    for name, mask in {"text": ~image, "image": image}.items():
        expected[f"loss_{name}"] = (rows.weights * nll)[mask].sum(), counts[name]
        expected[f"lse_{name}"] = (rows.weights * lse)[mask].sum(), counts[name]
        expected[f"grad_norm_{name}"] = squares[mask].sum(), rows.weights.sum()
    torch.testing.assert_close(loss.sums, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(loss.total, total, rtol=1e-5, atol=1e-4)
    assert loss.count == rows.weights.sum()


def noisy_inputs(model, rows, vocabulary, monkeypatch, seed=0, **options):
    """Return the ids that the model reads."""
    read = []

    def hidden_states(model, rows, **_):
        read.append(rows.ids)
        return model.hidden(rows.ids)

    monkeypatch.setattr(next_token, "hidden_states", hidden_states)
    torch.manual_seed(seed)
    loss_of(model, rows, vocabulary, **options)
    [ids] = read
    return ids


def test_noise_replaces_input_ids_of_a_modality_by_others_of_it(
    tiny_model, vocabulary, monkeypatch
):
    rows = batch(vocabulary, rows=400, length=30)
    ids = noisy_inputs(
        tiny_model.train(), rows, vocabulary, monkeypatch, input_noise={"image": 0.6}
    )
    image = (rows.ids >= vocabulary.image.start) & (rows.ids < vocabulary.image.stop)
    image[:, 0] = False  # nothing predicts the first id of a row
    image[1, -2:] = False  # padding
    assert (ids[~image] == rows.ids[~image]).all()
    assert ((ids[image] >= vocabulary.image.start) & (ids[image] < vocabulary.image.stop)).all()
    # A random id is the same one by chance; the share of a row is uniform in [0, 0.6].
    other = (1 - 1 / len(vocabulary.image)) * 0.3
    changed = ids != rows.ids
    assert changed[image].float().mean().item() == pytest.approx(other, abs=0.03)
    shares = changed.sum(1) / image.sum(1).clamp(min=1)
    assert shares.min() == 0 and shares.max() > 0.5 > shares.mean()


def test_noise_spares_what_is_not_learnt(tiny_model, vocabulary, monkeypatch):
    rows = batch(vocabulary, rows=100, length=30)
    weights = rows.weights.clone()
    weights[1] = 1
    weights[:, 9:19] = 0  # of the targets at 10 to 19: an image that is read
    rows = dataclasses.replace(rows, weights=weights)
    noise = {"input_noise": {"image": 1.0}}
    ids = noisy_inputs(tiny_model.train(), rows, vocabulary, monkeypatch, **noise)
    changed = (ids != rows.ids).any(0)
    assert not changed[10:20].any() and not changed[0]
    assert changed[1:10].all() and changed[20:].all()


def test_noise_is_for_training_only_and_the_targets_stay(tiny_model, vocabulary, monkeypatch):
    rows = batch(vocabulary)
    noise = {"input_noise": {"image": 1.0}}
    read = noisy_inputs(tiny_model.eval(), rows, vocabulary, monkeypatch, **noise)
    assert read is rows.ids
    before = rows.ids.clone(), rows.targets.clone()
    first, again, other = (
        noisy_inputs(tiny_model.train(), rows, vocabulary, monkeypatch, seed, **noise)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(rows.ids, before[0]) and torch.equal(rows.targets, before[1])


def test_metrics_are_means_and_norms(tiny_model, vocabulary):
    objective = NextTokenConfig(z_loss=0.1).build({"image": vocabulary.image})
    loss = objective(tiny_model, batch(vocabulary))
    metrics, count = objective.metrics(loss), loss.count
    assert list(metrics) == [
        "loss", "loss_text", "loss_image", "z_loss", "lse_text", "lse_image",
        "grad_norm_text", "grad_norm_image",
    ]  # fmt: skip
    both = loss.sums["loss_text"][0] + loss.sums["loss_image"][0]
    assert metrics["loss"] == both / count
    assert metrics["z_loss"] == 0.1 * loss.sums["z_loss"][0] / count
    assert metrics["grad_norm_image"] == loss.sums["grad_norm_image"][0].sqrt() / count
    torch.testing.assert_close(metrics["loss"] + metrics["z_loss"], (loss.total / count).detach())


def test_an_evaluation_has_losses_only(tiny_model, vocabulary):
    with torch.no_grad():
        evaluated = loss_of(tiny_model, batch(vocabulary), vocabulary)
    assert list(evaluated.sums) == ["loss_text", "loss_image"]
    learning = loss_of(tiny_model, batch(vocabulary), vocabulary)
    assert evaluated.sums["loss_image"] == learning.sums["loss_image"]


def test_a_modality_that_is_absent_has_zeros(tiny_model, vocabulary):
    rows = batch(vocabulary)
    objective = NextTokenConfig().build({"image": vocabulary.image, "audio": range(0)})
    loss = objective(tiny_model, rows)
    assert loss.sums["loss_audio"] == loss.sums["lse_audio"] == (0, 0)
    assert objective.metrics(loss)["loss_audio"].isnan()
    assert loss.sums["loss_text"] == loss_of(tiny_model, rows, vocabulary).sums["loss_text"]


def test_only_the_total_hangs_on_the_graph(tiny_model, vocabulary):
    loss = loss_of(tiny_model, batch(vocabulary), vocabulary)
    assert loss.total.requires_grad
    assert not any(value.requires_grad for value in values(loss)[1:])


def test_text_learns_the_same_beside_images_that_are_not_learnt(tiny_model, vocabulary):
    """With weight 0 the gradient is that of the text targets, divided by the same count."""
    rows = batch(vocabulary)
    image = (rows.targets >= vocabulary.image.start) & (rows.targets < vocabulary.image.stop)
    never = loss_of(tiny_model, rows, vocabulary, modality_weights={"image": 0.0})
    rows.weights[image] = 0
    text_only = loss_of(tiny_model, rows, vocabulary)
    parameters = list(tiny_model.parameters())
    found, expected = (torch.autograd.grad(x.total, parameters) for x in (never, text_only))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert float(never.sums["loss_image"][0]) > 0 and float(text_only.sums["loss_image"][0]) == 0


def test_rows_without_weight_change_nothing_where_they_are_not_dropped(
    tiny_model, vocabulary, monkeypatch
):
    """As on a GPU, where all rows go through the head."""
    rows = batch(vocabulary)

    def learn():
        losses = loss_of(tiny_model, rows, vocabulary)
        return losses, torch.autograd.grad(losses.total, list(tiny_model.parameters()))

    dropped, expected = learn()
    monkeypatch.setattr(next_token, "_learnt", lambda weights: slice(None))
    kept, gradients = learn()
    torch.testing.assert_close(values(kept), values(dropped))
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z_loss": -1.0}, "^z_loss must be 0 or more, got -1.0"),
        (
            {"input_noise": {"image": 1.5}},
            r"^input_noise.image must lie in \[0, 1\], got 1.5",
        ),
        (
            {"modality_weights": {"image": math.nan}},
            "^modality_weights.image must be 0 or more, got nan",
        ),
        ({"loss_chunk": 0}, "^loss_chunk must be at least 1, got 0"),
    ],
)
def test_invalid_options_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        NextTokenConfig(**change)


def test_a_weight_of_an_unknown_modality_is_refused(vocabulary):
    noisy = NextTokenConfig(input_noise={"text": 0.1})
    with pytest.raises(ConfigError, match=r"^training\.objective\.input_noise\.text has no range"):
        noisy.build({"image": vocabulary.image})
    noisy = NextTokenConfig(input_noise={"images": 0.1})
    with pytest.raises(ConfigError, match=r"^training\.objective\.input_noise\.images is of no"):
        noisy.build({"image": vocabulary.image})
    config = NextTokenConfig(modality_weights={"images": 0.0})
    with pytest.raises(ConfigError, match=r"weights\.images is of no modality.*it has text, image"):
        config.build({"image": vocabulary.image})


def test_targets_of_weight_zero_have_no_gradient(tiny_model, vocabulary):
    rows = batch(vocabulary)
    before = loss_of(tiny_model, rows, vocabulary).total
    rows.targets[rows.weights == 0] = vocabulary.text.start
    after = loss_of(tiny_model, rows, vocabulary).total
    assert torch.equal(before, after)


def test_the_document_mask_changes_the_loss(tiny_model, vocabulary):
    rows = batch(vocabulary)
    within = loss_of(tiny_model, rows, vocabulary).total
    across = loss_of(tiny_model, rows, vocabulary, document_mask=False).total
    assert abs(float((within - across).detach())) > 1e-2
    rows.documents.zero_()  # as if the row were one document, which its positions already say
    one = loss_of(tiny_model, rows, vocabulary).total
    torch.testing.assert_close(one, across, rtol=1e-5, atol=1e-4)


def test_the_form_of_the_mask_changes_no_loss(tiny_model, vocabulary):
    rows = batch(vocabulary)
    fastest = loss_of(tiny_model, rows, vocabulary)
    with masks_as_tensors():
        plain = loss_of(tiny_model, rows, vocabulary)
    torch.testing.assert_close(values(fastest), values(plain), rtol=1e-5, atol=1e-4)


def test_vectors_replace_embeddings(tiny_model, vocabulary):
    rows = batch(vocabulary)
    positions = torch.tensor([[2, 3], [0, -1]])
    embedded = tiny_model.embedding(torch.arange(8).view(2, 4)[:, :2])
    soft = dataclasses.replace(rows, ids=rows.ids.clone(), soft=Soft(positions, embedded.detach()))
    for row, place, vector in ((0, 2, 0), (0, 3, 1), (1, 0, 4)):
        rows.ids[row, place] = vector
    found, expected = (loss_of(tiny_model, each, vocabulary).total for each in (soft, rows))
    torch.testing.assert_close(found, expected)


def test_padding_yields_no_nan(tiny_model, vocabulary):
    rows = batch(vocabulary)
    loss_of(tiny_model, rows, vocabulary).total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in tiny_model.parameters())
