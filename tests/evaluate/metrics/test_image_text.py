import PIL.Image
import pytest
import torch
from safetensors.torch import save_file
from small_nets import write_clip

from pardalis.errors import BundleError
from pardalis.evaluate.metrics.image_text import clip_score, image_text_cosine, load_aesthetic
from pardalis.feature_nets.clip import ClipNet, load_clip

IMAGES = [PIL.Image.new("RGB", (40, 32), colour) for colour in ("red", "blue", "white")]
TEXTS = ["a red field", "blue", "an owl"]


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> ClipNet:
    return load_clip(write_clip(tmp_path_factory.mktemp("nets") / "clip"))


class Given:
    """A net of given vectors."""

    def images(self, images):
        return torch.tensor([[1.0, 0.0], [0.6, 0.8]])

    def texts(self, texts):
        return torch.tensor([[0.6, 0.8], [-1.0, 0.0]])


def test_cosines_of_a_case_by_hand():
    cosines = image_text_cosine(Given(), IMAGES[:2], ["an owl", "a cat"])
    assert cosines.tolist() == pytest.approx([0.6, -0.6])


def test_clip_score_is_that_of_its_paper(net):
    texts = net.texts([f"A photo depicts {text}" for text in TEXTS])
    cosines = (net.images(IMAGES) @ texts.T).diagonal()
    torch.testing.assert_close(clip_score(net, IMAGES, TEXTS), 2.5 * cosines.clamp(min=0))


def test_the_scores_of_a_clip_are_its_cosines(net):
    cosines = image_text_cosine(net, IMAGES, TEXTS)
    expected = (net.images(IMAGES) @ net.texts(TEXTS).T).diagonal()
    torch.testing.assert_close(cosines, expected)
    with pytest.raises(ValueError, match="3 images cannot be compared with 2 texts"):
        clip_score(net, IMAGES, TEXTS[:2])


def test_the_aesthetic_score_is_one_linear_map_or_several(net, tmp_path):
    path = tmp_path / "head.safetensors"
    save_file({"weight": torch.full((1, net.width), 2.0), "bias": torch.tensor([0.5])}, path)
    found = load_aesthetic(net, path)(IMAGES)
    torch.testing.assert_close(found, 2 * net.images(IMAGES).sum(1) + 0.5)
    maps = [torch.randn(5, net.width), torch.randn(2, 5), torch.randn(1, 2)]
    tensors = {f"layers.{3 * n}.weight": each for n, each in enumerate(maps)}
    tensors |= {f"layers.{3 * n}.bias": torch.ones(len(each)) for n, each in enumerate(maps)}
    save_file(tensors, path)
    x = net.images(IMAGES)
    for each in maps:
        x = x @ each.T + 1
    torch.testing.assert_close(load_aesthetic(net, path)(IMAGES), x[:, 0])
    save_file({"weight": torch.ones(1, 7), "bias": torch.zeros(1)}, path)
    with pytest.raises(BundleError, match="weight"):
        load_aesthetic(net, path)
