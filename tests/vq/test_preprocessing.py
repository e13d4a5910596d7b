"""Chameleon's own convention against obvious arithmetic; that of transformers is in parity/."""

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis.vq import (
    ImageTokenizer,
    ImageTokenizerConfig,
    open_square,
    place_in_square,
    to_pixels,
    to_square,
)


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> PIL.Image.Image:
    array = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    image = PIL.Image.fromarray(array)
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def as_chameleon(image: PIL.Image.Image, side: int) -> np.ndarray:
    """Chameleon's released preprocessing, step by step, in 64 bits; channels first."""
    if image.mode == "RGBA":
        layer = np.asarray(image).astype(np.float64)
        alpha = layer[:, :, 3:] / 255
        on_white = (1 - alpha) * 255 + alpha * layer[:, :, :3]
        image = PIL.Image.fromarray(np.floor(on_white).astype(np.uint8))
    image = image.convert("RGB")
    scale = side / min(image.size)
    width, height = round(scale * image.width), round(scale * image.height)
    image = image.resize((width, height), PIL.Image.Resampling.LANCZOS)
    x, y = (width - side) // 2, (height - side) // 2
    bytes_ = np.asarray(image)[y : y + side, x : x + side].astype(np.float64)
    return (bytes_ / 255 * 2 - 1).astype(np.float32).transpose(2, 0, 1)


def tokenizer(side: int, **changes) -> ImageTokenizer:
    return ImageTokenizer(
        ImageTokenizerConfig(
            resolution=side, channels=4, channel_multipliers=(1,), n_res_blocks=1, z_channels=4,
            code_width=4, n_codes=4, **changes,
        )
    )  # fmt: skip


# ── the three differences ────────────────────────────────────────────────────────────────────────


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 40),
    st.sampled_from(["RGB", "RGBA", "L", "P"]),
)
def test_pixels_are_those_of_chameleon(width, height, side, mode):
    if max(width, height) > 32 * min(width, height):
        return  # cropped before scaling
    image = noise(width, height, mode, seed=width)
    (pixels,) = tokenizer(side).preprocess([image]).numpy()
    assert np.array_equal(pixels, as_chameleon(image, side))


def test_pixels_of_every_byte():
    """Computed in 32 bits, 128 of them would differ in the last bit."""
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    values = np.arange(256)
    chameleon = to_pixels(ramp)[0, 0].flatten().numpy()
    assert np.array_equal(chameleon, (values / 255.0 * 2.0 - 1.0).astype(np.float32))
    assert (chameleon[0], chameleon[255]) == (-1, 1)
    transformers = to_pixels(ramp, "transformers")[0, 0].flatten().numpy()
    assert np.abs(transformers - (values * 0.0078 - 1)).max() < 1e-7
    assert transformers[255] == pytest.approx(0.989)


def sizes_of(monkeypatch) -> list[tuple[int, int]]:
    """Return a list that collects the size of each resize."""
    sizes = []
    resize = PIL.Image.Image.resize
    monkeypatch.setattr(
        PIL.Image.Image, "resize", lambda image, to, how: sizes.append(to) or resize(image, to, how)
    )
    return sizes


def test_the_longer_side_is_rounded_or_truncated(monkeypatch):
    """Of 1001 x 600 it is 854.19, of 997 x 600 it is 850.77."""
    sizes = sizes_of(monkeypatch)
    for size in ((1001, 600), (997, 600), (600, 997)):
        for preprocessing in ("chameleon", "transformers"):
            to_square(PIL.Image.new("RGB", size), 512, preprocessing)
    assert sizes == [(854, 512), (854, 512), (851, 512), (850, 512), (512, 851), (512, 850)]


# ── what both share ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("preprocessing", ["chameleon", "transformers"])
def test_the_shorter_side_is_scaled_and_the_centre_kept(preprocessing):
    """1000 x 600 at 512 becomes 853 x 512, cropped at x = 170."""
    image = noise(1000, 600)
    expected = image.resize((853, 512), PIL.Image.Resampling.LANCZOS).crop((170, 0, 682, 512))
    assert np.array_equal(to_square(image, 512, preprocessing), np.asarray(expected))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 40),
    st.sampled_from(["chameleon", "transformers"]),
)
def test_any_size_becomes_a_square(width, height, side, preprocessing):
    assert to_square(noise(width, height), side, preprocessing).shape == (side, side, 3)


def test_a_square_of_the_right_size_is_unchanged():
    image = noise(16, 16)
    assert np.array_equal(to_square(image, 16), np.asarray(image))
    assert np.array_equal(open_square(image, 16, "transformers"), np.asarray(image))


@pytest.mark.parametrize("preprocessing", ["chameleon", "transformers"])
@pytest.mark.parametrize("size", [(100_000, 2), (2, 100_000)])
def test_elongated_images_need_no_huge_memory(size, preprocessing, monkeypatch):
    sizes = sizes_of(monkeypatch)
    image = PIL.Image.new("RGB", size, (9, 8, 7))
    assert to_square(image, 64, preprocessing)[0, 0].tolist() == [9, 8, 7]
    assert max(sizes[0]) == 64 * 32


# ── padding, windows and boxes ─────────────────────────────────────────────────────────────────

PREPROCESSINGS = st.sampled_from(["chameleon", "transformers"])
SIDES = st.integers(1, 90)


@pytest.mark.parametrize("preprocessing", ["chameleon", "transformers"])
def test_padding_scales_the_longer_side_and_centres(preprocessing):
    """1000 x 601 at 512 becomes 512 x 307.7 (rounded or truncated), with borders of 102 above."""
    image = noise(1000, 601)
    height = {"chameleon": 308, "transformers": 307}[preprocessing]
    padded = to_square(image, 512, preprocessing, "pad")
    inside = np.asarray(image.resize((512, height), PIL.Image.Resampling.LANCZOS))
    assert np.array_equal(padded[102 : 102 + height], inside)
    assert (padded[:102] == 255).all() and (padded[102 + height :] == 255).all()
    tall = noise(601, 1000)
    inside = np.asarray(tall.resize((height, 512), PIL.Image.Resampling.LANCZOS))
    padded = to_square(tall, 512, preprocessing, "pad")
    assert np.array_equal(padded[:, 102 : 102 + height], inside)
    assert (padded[:, :102] == 255).all() and (padded[:, 102 + height :] == 255).all()


def test_padding_of_a_file(tmp_path):
    noise(20, 10).save(tmp_path / "wide.png")
    padded = open_square(tmp_path / "wide.png", 20, "chameleon", "pad")
    assert np.array_equal(padded[5:15], np.asarray(noise(20, 10)))
    assert (padded[:5] == 255).all() and (padded[15:] == 255).all()


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, st.integers(1, 40), PREPROCESSINGS)
def test_padding_keeps_part_of_very_elongated_images(width, height, side, preprocessing):
    black = PIL.Image.new("RGB", (width, height))
    padded = to_square(black, side, preprocessing, "pad")
    assert padded.shape == (side, side, 3)
    assert (padded == 0).any()
    whole = place_in_square((width, height), side, preprocessing, "pad").box(
        (0.0, 0.0, float(width), float(height))
    )
    left, top, right, bottom = map(int, whole)
    assert (padded[top:bottom, left:right] == 0).all()
    assert (padded == 0).all(2).sum() == (right - left) * (bottom - top)


@settings(deadline=None, max_examples=60)
@given(st.data(), SIDES, SIDES, PREPROCESSINGS, st.sampled_from(["crop", "pad"]))
def test_a_window_equals_a_cropped_image(data, width, height, preprocessing, fit):
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = (
        data.draw(st.integers(left + 1, width)),
        data.draw(st.integers(top + 1, height)),
    )
    image, window = noise(width, height), (left, top, right, bottom)
    by_hand = to_square(image.crop(window), 12, preprocessing, fit)
    assert np.array_equal(to_square(image, 12, preprocessing, fit, window), by_hand)


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("window", [None, (30, 10, 190, 150), (110, 100, 200, 170)])
@pytest.mark.parametrize("size", [(300, 200), (200, 300), (240, 240)])
def test_a_box_is_placed_where_its_pixels_are(size, window, fit):
    """A black box on white, found again in the square to a pixel, in four places."""
    for box in ((130, 110, 170, 140), (40, 20, 160, 145), (0, 0, 150, 150), (0, 110, 400, 130)):
        image = PIL.Image.new("RGB", size, "white")
        image.paste("black", box)
        pixels = to_square(image, 64, "chameleon", fit, window)
        rows, columns = np.nonzero(pixels[:, :, 0] < 128)
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        placed = place_in_square(size, 64, "chameleon", fit, window).box(tuple(map(float, box)))
        assert placed == pytest.approx(found, abs=1)


def test_a_box_outside_is_none():
    wide = (300, 100)
    assert place_in_square(wide, 64).box((0.0, 0.0, 100.0, 100.0)) is None  # cropped at the left
    assert place_in_square(wide, 64, image_fit="pad").box((0.0, 0.0, 100.0, 100.0)) is not None
    window = (0, 0, 100, 100)
    assert (
        place_in_square(wide, 64, "chameleon", "pad", window).box((100.0, 0.0, 200.0, 50.0)) is None
    )
    assert place_in_square(wide, 64).box((90.0, 0.0, 200.0, 50.0)) == (0.0, 0.0, 64.0, 32.0)
    assert (
        place_in_square((3200, 1), 4).box((0.0, 0.0, 1500.0, 1.0)) is None
    )  # cropped before scaling
