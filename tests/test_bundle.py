"""Saving and loading a bundle, old formats, and what is refused."""

import errno
import inspect
import json
import shutil

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from shapes import decoder_config

from pardalis import bundle as bundles
from pardalis.bundle import Bundle
from pardalis.codec import Codec
from pardalis.errors import BundleError
from pardalis.model import Decoder, initialise


@pytest.fixture
def bundle(codec) -> Bundle:
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=64, d_model=16, n_layers=1, n_heads=2,
        n_kv_heads=1, d_ff=16,
    )  # fmt: skip
    return Bundle(initialise(Decoder(config), 0).eval(), codec, {"recipe": "test"}, "# Licences\n")


@pytest.fixture
def folder(bundle, tmp_path):
    bundle.save(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_save_and_load(bundle, folder):
    loaded = bundles.load(folder)
    ids = torch.arange(8)[None]
    assert torch.equal(loaded.model(ids), bundle.model(ids))
    assert loaded.codec.fingerprint == bundle.codec.fingerprint
    assert loaded.codec.vocabulary == bundle.codec.vocabulary
    assert loaded.made_by == {"recipe": "test"}
    assert loaded.licences == "# Licences\n"
    assert not loaded.model.training


def test_image_fit_is_saved(bundle, tmp_path):
    codec = bundle.codec
    parts = (codec.vocabulary, codec.text_tokenizer, codec.image_tokenizer)
    Bundle(bundle.model, Codec(*parts, "pad"), {}).save(tmp_path / "padded")
    loaded = bundles.load_codec(tmp_path / "padded")
    assert loaded.image_fit == "pad"
    assert loaded.fingerprint == Codec(*parts, "pad").fingerprint != codec.fingerprint
    change(tmp_path / "padded", image_fit="stretch")
    with pytest.raises(BundleError, match="image_fit 'stretch'; it must be one of crop, pad"):
        bundles.load_codec(tmp_path / "padded")


def test_a_bundle_of_version_2_crops(folder):
    change(folder, format_version=2)
    assert "image_fit" not in json.loads((folder / "bundle.json").read_text())
    assert bundles.load_codec(folder).image_fit == "crop"


VERSION_4 = """{
  "format_version": 4,
  "model": {
    "vocab_size": %(vocab_size)d,
    "context": 64,
    "d_model": 16,
    "n_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 1,
    "d_ff": 16,
    "rope_theta": 10000.0,
    "qk_norm": "layer_norm",
    "qk_norm_eps": 1e-05,
    "norm_placement": "pre",
    "embedding_norm": false,
    "dropout": 0.0,
    "norm_eps": 1e-05,
    "init_std": 0.02
  },
  "vocabulary": %(vocabulary)s,
  "made_by": {"recipe": "old", "steps": 3},
  "prompt_pictures": "pad"
}"""


def test_a_bundle_of_version_4(bundle, folder, tmp_path):
    """Its key for ``image_fit`` was ``prompt_pictures``, and its vocabulary had no tables."""
    values = bundle.codec.vocabulary.to_dict()
    ids = {f"{name}_id": i for name, i in values["special"].items()}
    vocabulary = json.dumps(values["modalities"] | ids)
    text = VERSION_4 % {"vocab_size": bundle.codec.vocabulary.size, "vocabulary": vocabulary}
    (folder / "bundle.json").write_text(text)
    loaded = bundles.load(folder)
    assert loaded.codec.image_fit == "pad"
    assert loaded.codec.vocabulary == bundle.codec.vocabulary
    assert bundles.describe(folder)["vocabulary"] == values
    assert loaded.made_by == {"recipe": "old", "steps": 3}
    assert torch.equal(loaded.model.head.weight, bundle.model.head.weight)
    loaded.save(tmp_path / "new")
    written = json.loads((tmp_path / "new" / "bundle.json").read_text())
    assert (written["format_version"], written["image_fit"]) == (8, "pad")
    assert "prompt_pictures" not in written


def test_a_moved_bundle_still_loads(folder, tmp_path):
    shutil.move(folder, tmp_path / "elsewhere")
    bundles.load(str(tmp_path / "elsewhere"))


@pytest.mark.parametrize(
    "name", ["bundle.json", "model.safetensors", "text_tokenizer.json", "image_tokenizer"]
)
def test_a_missing_file(folder, name):
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(BundleError, match=f"incomplete: {name} is missing"):
        bundles.load(folder)


def test_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="No bundle at"):
        bundles.load(tmp_path / "none")
    (tmp_path / "recipe.toml").touch()
    with pytest.raises(BundleError, match=r"recipe.toml is a file; give the folder of a bundle"):
        bundles.load(tmp_path / "recipe.toml")
    (tmp_path / "photos").mkdir()
    with pytest.raises(BundleError, match=r"photos is no bundle: bundle.json is missing; give"):
        bundles.load(tmp_path / "photos")


def test_a_run_stands_for_its_bundle(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text('name = "run"')
    with pytest.raises(BundleError, match=r"has no bundle yet; run its stage `train` to the end"):
        bundles.load(run)
    folder.rename(run / ".bundle.pardalis-previous")  # as while a newer one takes its name
    assert bundles.load_codec(str(run)).fingerprint == bundles.load(run).codec.fingerprint
    (run / ".bundle.pardalis-previous").rename(run / "bundle")
    assert bundles.load(run).made_by == bundles.load(run / "bundle").made_by
    (run / "bundle" / "model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"run/bundle is incomplete"):
        bundles.load(run)


def test_a_link_in_the_place_of_a_bundle_is_replaced_and_not_followed(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("of somebody else")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "bundle").symlink_to(other)
    bundles.load(folder).save(tmp_path / "run" / "bundle")
    assert bundles.load(tmp_path / "run" / "bundle")
    assert [path.name for path in other.iterdir()] == ["letter.txt"]


def test_a_full_disk_of_a_library_is_one_sentence(folder, tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space (os error 28)")

    bundle = bundles.load(folder)
    monkeypatch.setattr(bundles.safetensors.torch, "save_file", full)
    with pytest.raises(
        BundleError, match=r"new could not be written: the disk is full; free space"
    ):
        bundle.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("given", [5, None, b"runs/quickstart", ["bundle"]])
def test_what_is_no_path(given):
    needed = rf"must be a Bundle, or the path of one's folder, got {type(given).__name__}\."
    for function in (bundles.load, bundles.as_bundle, bundles.load_codec):
        with pytest.raises(BundleError, match=needed):
            inspect.unwrap(function)(given)  # without the suite's check of types


def change(folder, **values) -> None:
    path = folder / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_newer_version(folder):
    change(folder, format_version=99)
    with pytest.raises(
        BundleError, match=r"format version 99; this Pardalis reads up to 8\. Upgrade"
    ):
        bundles.load(folder)


def test_a_description_that_is_none(folder):
    (folder / "bundle.json").write_text("[]")
    with pytest.raises(BundleError, match="is not a bundle description"):
        bundles.load(folder)


def test_a_description_that_lacks_a_part(folder):
    description = json.loads((folder / "bundle.json").read_text())
    del description["vocabulary"]
    (folder / "bundle.json").write_text(json.dumps(description))
    with pytest.raises(BundleError, match="lacks vocabulary"):
        bundles.load(folder)


def test_an_unknown_option_of_the_model(folder):
    model = json.loads((folder / "bundle.json").read_text())["model"]
    change(folder, model=model | {"n_layer": 3})
    with pytest.raises(BundleError, match=r"Unknown key 'model\.n_layer'; did you mean 'n_layers'"):
        bundles.load(folder)


def test_weights_of_another_model(folder):
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["head.weight"] = weights["head.weight"][:, :-1].contiguous()
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    with pytest.raises(
        BundleError, match=r"of another shape head\.weight \(\d+x15 instead of \d+x16\)"
    ):
        bundles.load(folder)


def test_truncated_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BundleError, match="cannot be read"):
        bundles.load(folder)


def test_parts_of_different_bundles(folder):
    model = json.loads((folder / "bundle.json").read_text())["model"]
    change(folder, model=model | {"vocab_size": 7})
    with pytest.raises(BundleError, match="found 7 token ids in the model, the vocabulary needs"):
        bundles.load(folder)


def test_a_full_disk_leaves_the_previous_bundle(bundle, folder, monkeypatch):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(BundleError, match=r"the disk is full; .* Nothing there was changed"):
        bundle.save(folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    bundles.load(folder)


@pytest.mark.parametrize("name", [bundles.LICENCES, bundles.CHAT_TEMPLATE])
def test_a_text_that_leads_to_a_strangers_file_is_not_read(tmp_path, name):
    read = bundles.read_licences if name == bundles.LICENCES else bundles.read_chat_template
    (tmp_path / "private").write_text("a secret")
    folder = tmp_path / "models" / "snapshots" / "1"
    folder.mkdir(parents=True)
    (folder / name).symlink_to(tmp_path / "private")
    with pytest.raises(BundleError, match="is a link to a file outside its folder"):
        read(folder)
    (folder / name).unlink()
    blob = tmp_path / "models" / "blobs" / "ab12"  # the cache of Hugging Face's hub
    blob.parent.mkdir()
    blob.write_text("CC BY 4.0")
    (folder / name).symlink_to(blob)
    assert read(folder) == "CC BY 4.0"
