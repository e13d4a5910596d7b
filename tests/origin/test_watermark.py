"""The mark in the pixels: what it survives and costs, and that others' images do not have it."""

import io
import tracemalloc

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis.errors import ConfigError
from pardalis.origin import add_watermark, watermark_certainty
from pardalis.origin import watermark as module


def image_of(kind: str, size: int, seed: int = 0) -> PIL.Image.Image:
    """Return an image like those of models: noise, a gradient, or a shape on white."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    if kind == "noise":
        pixels = generator.integers(0, 256, (size, size, 3))
    elif kind == "gradient":
        pixels = np.stack([255 * x, 255 * y, 255 * (1 - x)], -1)
    else:
        inside = (x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.1
        pixels = np.where(inside[:, :, None], generator.integers(0, 256, 3), 255)
    return PIL.Image.fromarray(pixels.astype(np.uint8))


KINDS = ("noise", "gradient", "shape")


def encoded(image: PIL.Image.Image, kind: str, quality: int) -> PIL.Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    return PIL.Image.open(buffer)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [64, 128])
def test_an_image_has_the_mark_and_looks_the_same(kind, size):
    plain = image_of(kind, size)
    marked = add_watermark(plain)
    assert (marked.size, marked.mode) == (plain.size, "RGB")
    error = np.mean((np.asarray(marked, float) - np.asarray(plain, float)) ** 2)
    assert 10 * np.log10(255**2 / error) > 39  # decibels
    blocks = (size // 8) ** 2
    assert watermark_certainty(marked) > 0.9 * blocks**0.5
    assert watermark_certainty(plain) < 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [96, 256])
def test_what_the_mark_survives(kind, size):
    marked = add_watermark(image_of(kind, size))
    changed = {
        "JPEG 90": encoded(marked, "JPEG", 90),
        "WebP 90": encoded(marked, "WEBP", 90),
        "twice the size": marked.resize((2 * size, 2 * size)),
        "half the size": marked.resize((size // 2, size // 2), PIL.Image.Resampling.LANCZOS),
    }
    if kind == "noise":  # of which nothing is left at half its size
        del changed["half the size"]
    assert {name for name, image in changed.items() if watermark_certainty(image) < 5} == set()


def test_images_that_are_not_square_or_no_multiple_of_a_block():
    pixels = np.asarray(image_of("gradient", 128))[:77, :109]
    marked = add_watermark(PIL.Image.fromarray(pixels))
    assert watermark_certainty(marked) == pytest.approx((9 * 13) ** 0.5, rel=0.05)
    assert np.array_equal(np.asarray(marked)[72:], pixels[72:])  # below the last whole block


@pytest.mark.parametrize("height", [64, 77, 515])
def test_strips_change_nothing(height, monkeypatch):
    pixels = np.asarray(image_of("noise", 520))[:height, :67]
    bits = module._bits((height // 8) * 8)
    found = module._margins(pixels, bits)
    monkeypatch.setattr(module, "_STRIP", 10**6)
    np.testing.assert_array_equal(found, module._margins(pixels, bits))


def test_a_large_image_takes_little_memory():
    """Beyond its pixels; all blocks at once took fourteen times as much."""
    pixels = np.zeros((4096, 1024, 3), np.uint8)
    tracemalloc.start()
    try:
        module._margins(pixels, module._bits(512 * 128))
        assert tracemalloc.get_traced_memory()[1] < pixels.nbytes
    finally:
        tracemalloc.stop()


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.sampled_from([64, 88]))
def test_images_without_the_mark(seed, kind, size):
    assert module._certainty(image_of(kind, size, seed)) < module.CERTAIN


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_the_mark_in_any_size(kind):
    assert watermark_certainty(image_of(kind, 24)) < module.CERTAIN


@pytest.mark.parametrize("colour", ["white", "black", "red", "blue", "yellow"])
def test_images_of_one_colour(colour):
    plain = PIL.Image.new("RGB", (64, 64), colour)
    assert watermark_certainty(plain) < 5
    assert watermark_certainty(add_watermark(plain)) > 5


def test_images_that_are_too_small():
    with pytest.raises(ConfigError, match="watermark needs images of at least 64 x 64 pixels, and"):
        add_watermark(PIL.Image.new("RGB", (200, 63)))


def test_the_sequence_is_that_of_old_marks():
    assert "".join(str(int(bit)) for bit in module._bits(32)) == "00011011010011011100011111101101"


def test_invisible_watermark_reads_the_same_bits():
    pytest.importorskip("imwatermark", reason="needs pip install invisible-watermark")
    from imwatermark.dwtDctSvd import EmbedDwtDctSvd

    marked = add_watermark(image_of("gradient", 128))
    bits = module._bits(256)
    theirs = EmbedDwtDctSvd([], 256).decode(np.asarray(marked)[:, :, ::-1].copy())
    assert np.mean(theirs == bits) > 0.95  # it rounds U to whole numbers first
