"""NEFTune's noise: how large it is, where it is, and that it is drawn by name."""

import pytest
import torch

from pardalis.batch import Batch
from pardalis.errors import ConfigError
from pardalis.train import DecoderTrainConfig, WarmupCosineConfig
from pardalis.train.noise import check_has_embedding, document_lengths, noisy_embeddings

ALPHA = 5.0


@pytest.fixture
def batch() -> Batch:
    """Two rows: documents of 6 and 3 tokens and padding, and one of 12."""
    documents = torch.tensor([[0] * 6 + [1] * 3 + [-1] * 3, [0] * 12])
    ids = torch.arange(24).view(2, 12) % 20 + 8
    return Batch(
        ids=ids, targets=ids, weights=torch.ones(2, 12), positions=ids, documents=documents
    )


def embedded(model, batch, seeds=(1, 2), alpha=ALPHA):
    with noisy_embeddings(model, batch, alpha, seeds):
        return model.embedding(batch.ids)


def test_lengths_are_those_of_documents(batch):
    assert document_lengths(batch).tolist() == [[6.0] * 6 + [3.0] * 6, [12.0] * 12]


def test_noise_is_uniform_within_the_bound_of_each_document(tiny_model, batch):
    """The bound is alpha / sqrt(L D), the slow way."""
    plain, width = tiny_model.embedding(batch.ids), tiny_model.config.d_model
    draws = torch.stack([
        embedded(tiny_model, batch, seeds=(n, n + 1000)) - plain for n in range(50)
    ])  # fmt: skip
    for row, token, length in ((0, 0, 6), (0, 5, 6), (0, 6, 3), (1, 11, 12)):
        bound = ALPHA / (length * width) ** 0.5
        found = draws[:, row, token].detach()
        assert 0.99 * bound < found.abs().max() <= bound * (1 + 1e-5)
        assert found.std() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert found.mean().abs() < 0.1 * bound
    assert torch.equal(tiny_model.embedding(batch.ids), plain)  # it is gone after the block


def test_noise_of_a_row_depends_on_its_seed_alone(tiny_model, batch):
    whole = embedded(tiny_model, batch)
    assert torch.equal(whole, embedded(tiny_model, batch))
    second = embedded(tiny_model, batch.rows(slice(1, 2)), seeds=(2,))
    assert torch.equal(second, whole[1:])
    assert not torch.equal(whole, embedded(tiny_model, batch, seeds=(1, 3)))


def test_rows_of_another_shape_are_of_one_document_each(tiny_model, batch):
    ids = torch.zeros(2, 5, dtype=torch.long)
    with noisy_embeddings(tiny_model, batch, ALPHA, (1, 2)):
        found = tiny_model.embedding(ids) - tiny_model.embedding.weight[0]
    assert found.abs().max() <= ALPHA / (5 * tiny_model.config.d_model) ** 0.5 * (1 + 1e-5)


def test_alpha_is_above_0_and_needs_an_embedding(tiny_model):
    schedule = WarmupCosineConfig(learning_rate=1e-3, warmup_steps=1)
    for wrong in (0.0, -1.0, float("inf")):
        with pytest.raises(ConfigError, match="neftune_alpha must be"):
            DecoderTrainConfig(batch_rows=1, schedule=schedule, neftune_alpha=wrong)
    del tiny_model.embedding
    with pytest.raises(ConfigError, match="neftune_alpha needs a model with an `embedding`"):
        check_has_embedding(tiny_model)
