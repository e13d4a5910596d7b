"""An image tokenizer is found in a bundle, in a run, and in its own folder."""

import shutil
from pathlib import Path

import pytest
import torch
from shapes import decoder_config

from pardalis.bundle import Bundle
from pardalis.digests import file_digest
from pardalis.errors import BundleError, ConfigError
from pardalis.files import read_json, write_json
from pardalis.model import Decoder, initialise
from pardalis.pipeline import load_recipe
from pardalis.pipeline.find import find_image_tokenizer
from pardalis.pipeline.start import given_content, image_tokenizer_folder
from pardalis.vq import ImageTokenizer

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.toml"


@pytest.fixture
def bundle(codec, tmp_path) -> Path:
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=8, d_model=8, n_layers=1, n_heads=2,
        n_kv_heads=2, d_ff=8,
    )  # fmt: skip
    Bundle(initialise(Decoder(config), 0).eval(), codec, {}).save(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_wherever_it_is(codec, bundle, tmp_path):
    run = tmp_path / "run"
    codec.image_tokenizer.save(run / "image_tokenizer" / "final")
    shutil.copy(QUICKSTART, run / "recipe.toml")
    for folder in (bundle, bundle / "image_tokenizer", run, run / "image_tokenizer" / "final"):
        found = find_image_tokenizer(str(folder))
        assert found.fingerprint() == codec.image_tokenizer.fingerprint()
        assert not found.training


def test_a_run_may_have_that_of_another_folder(codec, bundle, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text(
        f"""
        name = "further"
        start_from = "{bundle}"
        sources = [{{ name = "a", reader = "jsonl", path = "a.jsonl" }}]
        prepare = {{ row_tokens = 8 }}
        training = {{ batch_rows = 1, schedule = {{ learning_rate = 1e-3 }} }}
        training_loop = {{ steps = 1 }}
        """
    )
    assert find_image_tokenizer(run).fingerprint() == codec.image_tokenizer.fingerprint()


def test_a_recipe_may_take_it_over_from_wherever_it_is(codec, bundle, tmp_path):
    run = tmp_path / "run"
    codec.image_tokenizer.save(run / "image_tokenizer" / "final")
    shutil.copy(QUICKSTART, run / "recipe.toml")
    recipe = tmp_path / "next.toml"
    contents = []
    for given in ("run", "run/image_tokenizer/final", "bundle"):
        recipe.write_text(
            f"""
            name = "next"
            image_tokenizer_from = "{given}"
            sources = [{{ name = "a", reader = "jsonl", path = "a.jsonl" }}]
            """
        )
        found = image_tokenizer_folder(load_recipe(recipe), tmp_path / "other")
        assert ImageTokenizer.load(found).fingerprint() == codec.image_tokenizer.fingerprint()
        contents.append(given_content(load_recipe(recipe), file_digest))
    assert contents[0] == contents[1]  # the files of the tokenizer decide, not those of the run
    assert list(contents[2]) == ["config.json", "model.safetensors"]


def test_tokenizers_that_are_taken_over_do_not_depend_on_how_the_model_was_made(bundle, tmp_path):
    other, recipe = tmp_path / "other", tmp_path / "next.toml"
    shutil.copytree(bundle, other)

    def content_of(folder):
        recipe.write_text(
            f"""
            name = "next"
            tokenizers_from = "{folder}"
            sources = [{{ name = "a", reader = "jsonl", path = "a.jsonl" }}]
            """
        )
        return given_content(load_recipe(recipe), file_digest)

    described = read_json(other / "bundle.json")
    described["made_by"] |= {"steps": 123456, "numbers": {"loss": 1.0}}
    write_json(other / "bundle.json", described)
    assert content_of(other) == content_of(bundle)
    for changes in ({"image_fit": "pad"}, {"adds_bos": False}):
        write_json(other / "bundle.json", described | changes)
        assert content_of(other) != content_of(bundle)


def test_a_fingerprint_follows_weights_and_config(codec, bundle):
    found = find_image_tokenizer(bundle)
    before = found.fingerprint()
    with torch.no_grad():
        found.quant_conv.bias[0] += 1
    assert found.fingerprint() != before


def test_where_there_is_none(bundle, tmp_path):
    with pytest.raises(BundleError, match=r"holds no image tokenizer; give the folder of a bundle"):
        find_image_tokenizer(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(QUICKSTART, run)
    (run / "quickstart.toml").rename(run / "recipe.toml")
    with pytest.raises(BundleError, match="is not trained to its end"):
        find_image_tokenizer(run)
    with pytest.raises(BundleError, match="nowhere does not exist; give the folder of a bundle"):
        find_image_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="No device 'nonsense'"):
        find_image_tokenizer(bundle, "nonsense")
