"""Images of a step depend on seed and step only, not on processes, threads or cache."""

import logging
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from pardalis.data import AugmentationConfig, ImageFeed
from pardalis.documents import Image, Region
from pardalis.errors import ConfigError, DataError
from pardalis.vq import ImageTokenizerConfig, open_square

CONFIG = ImageTokenizerConfig(
    resolution=16, channels=8, channel_multipliers=(1, 2), n_res_blocks=1, z_channels=4,
    code_width=4, n_codes=8, norm_groups=0,
)  # fmt: skip


def image(i: int, regions: tuple[Region, ...] = ()) -> Image:
    """A gradient with its own colour, wider than high."""
    across = np.linspace(0, 200, 40, dtype=np.uint8)
    array = np.zeros((20, 40, 3), np.uint8)
    array[..., 0] = across
    array[..., 1] = 5 * i
    return Image(PIL.Image.fromarray(array), regions=regions)


IMAGES = [image(i) for i in range(10)]


def feed(images=IMAGES, batch: int = 4, share=(0, 1), **augmentation) -> ImageFeed:
    return ImageFeed(images, CONFIG, batch, 7, AugmentationConfig(**augmentation), share)


def test_crops_equal_those_of_the_tokenizer():
    made = feed()
    for step in (0, 3):
        squares = made.batch(step).bytes.permute(0, 2, 3, 1).numpy()
        for index, square in zip(made.members(step), squares, strict=True):
            assert np.array_equal(square, open_square(IMAGES[index].source, 16))


def test_every_image_comes_once_before_any_comes_again():
    made = feed(batch=5)
    seen = [index for step in range(8) for index in made.members(step)]
    assert [sorted(seen[i : i + 10]) for i in range(0, 40, 10)] == [list(range(10))] * 4
    assert seen[:10] != seen[10:20]


@pytest.mark.parametrize("augmentation", [{}, {"smallest_crop": 0.5, "mirror": True}])
def test_processes_divide_the_batch_of_one_process(augmentation):
    whole = feed(**augmentation)
    shares = [feed(share=(rank, 2), **augmentation) for rank in range(2)]
    for step in (0, 5, 1):  # in any order
        parts = torch.cat([share.batch(step).bytes for share in shares])
        assert torch.equal(whole.batch(step).bytes, parts)


def test_augmentation_differs_between_steps_and_repeats_for_the_same_step():
    made = feed(IMAGES[:1], batch=1, smallest_crop=0.5, mirror=True)
    squares = [made.batch(step).bytes for step in range(6)]
    assert not any(torch.equal(squares[0], other) for other in squares[1:])
    again = feed(IMAGES[:1], batch=1, smallest_crop=0.5, mirror=True)
    assert torch.equal(again.batch(4).bytes, squares[4])


def test_mirroring_applies_to_regions():
    """The brightest column of a gradient stands at the right, or at the left when mirrored."""
    here = Region((28.0, 0.0, 30.0, 20.0), "edge", 3.0)  # the crop shows columns 10 to 30
    made = feed([image(0, (here,))], batch=1, mirror=True)
    sides = set()
    for step in range(12):
        batch = made.batch(step)
        [[region]] = batch.regions
        assert (region.kind, region.weight) == ("edge", 3.0)
        red = batch.bytes[0, 0, 0].float()
        is_mirrored = bool(red[0] > red[-1])
        assert (region.box[0] < 8) == is_mirrored
        sides.add(is_mirrored)
    assert sides == {True, False}


def test_regions_outside_the_crop_are_omitted():
    left = Region((0.0, 0.0, 5.0, 5.0), "corner")
    assert feed([image(0, (left,))], batch=1).batch(0).regions == [[]]


def test_an_unreadable_image_is_reported_once_and_replaced(tmp_path: Path, caplog):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    made = feed([IMAGES[0], Image(broken), IMAGES[1]], batch=3)
    with caplog.at_level(logging.WARNING):
        batches = [made.batch(step) for step in range(4)]
    greens = sorted(int(square[1, 0, 0]) for square in batches[0].bytes)
    assert greens == [0, 5, 5]  # the next image replaces it
    assert sum("broken.png is not an image" in each.message for each in caplog.records) == 1


def test_no_readable_image_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match="None of the 1 images can be read"):
        feed([Image(tmp_path / "absent.png")], batch=1).batch(0)
    with pytest.raises(DataError, match="no image to train"):
        feed([])


def test_the_batch_must_be_a_multiple_of_the_processes():
    with pytest.raises(ConfigError, match="batch_images is 4, which 3 processes cannot share"):
        feed(share=(0, 3))


def test_a_crop_must_be_a_fraction():
    with pytest.raises(ConfigError, match=r"smallest_crop must lie in \(0, 1\], got 0.0"):
        AugmentationConfig(smallest_crop=0.0)
