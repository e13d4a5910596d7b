import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis.vq import QuantizerConfig, VectorQuantizer, nearest_codes


def quantizer(config, **options) -> VectorQuantizer:
    return VectorQuantizer(dataclasses.replace(config, quantizer=QuantizerConfig(**options)))


def ones_against_zeros(config, **options):
    """Latents of 1 and a codebook of 0; returns the loss and both gradients."""
    module = quantizer(config, **options)
    with torch.no_grad():
        module.embedding.weight.zero_()
    latents = torch.ones(2, config.code_width, 2, 2, requires_grad=True)
    loss = module(latents).loss
    loss.backward()
    return loss.item(), latents.grad, module.embedding.weight.grad


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 200), st.integers(0, 10**6))
def test_blocks_find_what_the_whole_matrix_finds(n_vectors, n_codes, block_elements, seed):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n_vectors, 5, generator=generator)
    codebook = torch.randn(n_codes, 5, generator=generator)
    whole = (vectors[:, None].double() - codebook[None].double()).square().sum(2).argmin(1)
    assert torch.equal(nearest_codes(vectors, codebook, block_elements), whole)


def test_no_block_exceeds_its_elements(monkeypatch):
    sizes = []
    addmm = torch.addmm

    def spy(*args, **kwargs):
        result = addmm(*args, **kwargs)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(torch, "addmm", spy)
    nearest_codes(torch.randn(1000, 4), torch.randn(50, 4), block_elements=4000)
    assert len(sizes) == 13
    assert max(sizes) == 4000


def test_codes_are_in_raster_order_and_come_back(small_config):
    module = quantizer(small_config)
    codes = torch.tensor([[3, 1, 4, 31], [5, 9, 2, 6]])
    latents = module.latents(codes)
    assert torch.equal(latents[0, :, 0, 1], module.embedding.weight[1])
    assert torch.equal(latents[0, :, 1, 0], module.embedding.weight[4])
    assert torch.equal(module.codes(latents), codes)


def test_the_gradient_passes_straight_through(small_config):
    module = quantizer(small_config)
    latents = torch.randn(2, small_config.code_width, 2, 2, requires_grad=True)
    output = module(latents).latents
    torch.testing.assert_close(output, module.latents(module.codes(latents)))
    seed = torch.randn_like(output)
    (gradient,) = torch.autograd.grad(output, latents, seed)
    assert torch.equal(gradient, seed)


@pytest.mark.parametrize(("legacy", "ratio"), [(True, 4.0), (False, 0.25)])
def test_legacy_decides_which_side_beta_weighs(small_config, legacy, ratio):
    """The loss is 1 + beta either way; the pulls on latents and codes trade places."""
    loss, on_latents, on_codes = ones_against_zeros(small_config, legacy=legacy)
    assert loss == pytest.approx(1.25)
    assert on_latents.sum().abs() / on_codes.sum().abs() == pytest.approx(ratio)


def test_equal_losses_of_both_kinds_of_weighing_have_the_stated_gradients(small_config):
    """With latents of 1 and codes of 0, d(loss)/d(latent) is 2 / n, weighed by 1 or beta."""
    n = 2 * small_config.code_width * 2 * 2
    for legacy, weights in ((True, (1.0, 0.25)), (False, (0.25, 1.0))):
        _, on_latents, on_codes = ones_against_zeros(small_config, legacy=legacy)
        assert on_latents.unique().tolist() == pytest.approx([weights[0] * 2 / n])
        assert on_codes.sum().item() == pytest.approx(-weights[1] * 2)


# ── codes of length 1 ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["gradient", "ema"])
def test_normalised_codes_are_those_of_the_nearest_direction(small_config, kind):
    module = quantizer(small_config, kind=kind, normalise=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # lengths from 0.01 to 100, which must not matter
        lengths = 10 ** (torch.rand(small_config.n_codes, 1, generator=generator) * 4 - 2)
        module.embedding.weight.mul_(lengths)
    latents = torch.randn(3, small_config.code_width, 2, 2, generator=generator) * 5
    vectors = latents.permute(0, 2, 3, 1).flatten(0, 2)[:, None]
    entries = module.embedding.weight.detach()
    nearest = torch.cosine_similarity(vectors, entries[None], dim=2).argmax(1)
    quantized = module(latents)
    assert len(nearest.unique()) > 4
    assert torch.equal(quantized.codes.flatten(), nearest)
    assert torch.equal(module.codes(latents), quantized.codes)
    directions = entries[nearest] / entries[nearest].norm(dim=1, keepdim=True)
    torch.testing.assert_close(quantized.latents.permute(0, 2, 3, 1).flatten(0, 2), directions)
    torch.testing.assert_close(module.latents(quantized.codes), quantized.latents)


def test_the_loss_of_normalised_codes_is_taken_on_the_sphere(small_config):
    """By hand: at a right angle two directions are the root of 2 apart, whatever their lengths."""
    module = quantizer(small_config, normalise=True)
    width = small_config.code_width
    with torch.no_grad():
        module.embedding.weight.zero_()[:, 0] = 7.0
    latents = torch.zeros(1, width, 2, 2)
    latents[:, 1] = 0.2
    latents.requires_grad_()
    loss = module(latents).loss
    assert loss.item() == pytest.approx(1.25 * 2 / width)
    loss.backward()
    assert latents.grad[:, 1].abs().max() < 1e-6  # a longer vector is no better
    assert (latents.grad[:, 0] < 0).all()


def test_the_gradient_passes_straight_through_to_the_direction(small_config):
    module = quantizer(small_config, normalise=True)
    latents = torch.randn(2, small_config.code_width, 2, 2, requires_grad=True)
    output = module(latents).latents
    seed = torch.randn_like(output)
    (gradient,) = torch.autograd.grad(output, latents, seed)
    (expected,) = torch.autograd.grad(latents / latents.norm(dim=1, keepdim=True), latents, seed)
    torch.testing.assert_close(gradient, expected)


def test_an_ema_codebook_has_no_gradient(small_config):
    loss, on_latents, on_codes = ones_against_zeros(small_config, kind="ema", beta=0.5)
    assert loss == pytest.approx(0.5)
    assert on_latents.abs().sum() > 0
    assert on_codes is None
