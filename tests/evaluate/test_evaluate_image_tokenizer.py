import math

import numpy as np
import PIL.Image
import pytest
import torch

from pardalis.evaluate.image_tokenizer import evaluate_image_tokenizer


def noise(seed: int, side: int = 32) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def psnr_of(image: PIL.Image.Image, other: PIL.Image.Image) -> float:
    a, b = (np.asarray(each, dtype=np.float64) for each in (image, other))
    return 20 * math.log10(255) - 10 * math.log10(np.mean((a - b) ** 2))


def test_scores_equal_those_from_single_round_trips(image_tokenizer):
    images = [noise(seed) for seed in range(40)]  # more than one batch
    scores, reconstructions = evaluate_image_tokenizer(image_tokenizer, images)
    codes = image_tokenizer.codes_of(images)
    decoded = image_tokenizer.images_of(codes)
    expected = [psnr_of(a, b) for a, b in zip(images, decoded, strict=True)]
    assert len(reconstructions) == 40
    # Batches of another size may round a pixel differently.
    assert scores.psnr_of_each == pytest.approx(expected, abs=0.02)
    assert scores.psnr == pytest.approx(np.mean(scores.psnr_of_each))
    used, counts = torch.unique(codes, return_counts=True)
    shares = counts.numpy() / codes.numel()
    assert scores.codebook_use == pytest.approx(len(used) / image_tokenizer.config.n_codes)
    assert scores.perplexity == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


def test_resizing_is_not_counted(image_tokenizer):
    small = noise(0)
    large = small.resize((64, 64), PIL.Image.Resampling.NEAREST)
    scores, reconstructions = evaluate_image_tokenizer(image_tokenizer, [large])
    assert reconstructions[0].size == (32, 32)
    assert scores.psnr < 100


def test_no_images_have_no_scores(image_tokenizer):
    scores, reconstructions = evaluate_image_tokenizer(image_tokenizer, [])
    assert math.isnan(scores.psnr)
    assert math.isnan(scores.perplexity)
    assert scores.codebook_use == 0
    assert reconstructions == []


def test_a_perfect_reconstruction_has_the_maximum_psnr(image_tokenizer, monkeypatch):
    image = noise(0)
    monkeypatch.setattr(image_tokenizer, "images_of", lambda codes: [image])
    scores, _ = evaluate_image_tokenizer(image_tokenizer, [image])
    assert scores.psnr == pytest.approx(86.02, abs=0.01)
