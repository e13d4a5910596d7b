"""The command and the bundle that it writes."""

import dataclasses
import json
from importlib.util import find_spec

import pytest
import torch
from parents import write_parent
from safetensors.torch import load_file

import pardalis
from pardalis import bundle as bundles
from pardalis.cli.main import main
from pardalis.codec import Codec
from pardalis.errors import BundleError, ConfigError
from pardalis.fusion import (
    CrossMergeConfig,
    TaskArithmeticConfig,
    UniformConfig,
    WidthConfig,
    merge,
)
from pardalis.interop import export_model
from pardalis.model import Decoder, initialise
from pardalis.tokens import train_text_tokenizer
from pardalis.vq import ImageTokenizer

KINDS = ("uniform", "width", "cross")


@pytest.fixture(scope="module")
def parents(tmp_path_factory, codec):
    """Return the folder with the bundles text/ and image/."""
    folder = tmp_path_factory.mktemp("parents")
    write_parent(folder / "text", codec, 1)
    write_parent(folder / "image", codec.fitting("pad"), 2)
    (folder / "text" / bundles.LICENCES).write_text("# Of the text parent\n")
    (folder / "image" / bundles.LICENCES).write_text("# Of the image parent\n")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_writes_a_bundle_that_generates(kind, parents, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(parents)
    out = tmp_path / "out"
    assert main(["merge", "text", "image", "-o", str(out), "--kind", kind, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    bundle = pardalis.load(out)
    assert result["parameters"] == sum(p.numel() for p in bundle.model.parameters())
    assert bundle.codec.image_fit == "pad"
    assert bundle.licences == "# Of the text parent\n\n# Of the image parent\n"
    assert bundle.made_by["merged"] == kind
    assert bundle.made_by["text_parent"] == {"recipe": "parent 1", "steps": 1}
    answer = pardalis.generate(bundle, "An owl", mode="image", guidance=2.0, seed=1)
    assert answer.images[0].source.size == (16, 16)
    assert main(["show", "bundle", str(out)]) == 0
    assert kind in capsys.readouterr().out


def test_options_of_the_command(parents, tmp_path, monkeypatch):
    monkeypatch.chdir(parents)
    out = str(tmp_path / "out")
    options = "--kind width --blocks average_off_diagonal --factor 1 --norms whole --head-factor 1"
    assert main(["merge", "text", "image", "-o", out, *options.split(), "--dtype", "bfloat16"]) == 0
    made = bundles.describe(tmp_path / "out")
    assert made["model"]["norm"]["groups"] == 1
    assert made["made_by"]["blocks"] == "average_off_diagonal"
    name = "trunk.blocks.0.attention.q_proj.weight"
    found = load_file(tmp_path / "out" / "model.safetensors")[name]
    one, two = (load_file(parents / side / "model.safetensors")[name] for side in ("text", "image"))
    assert torch.equal(found[:16, 16:], ((one + two) / 2).bfloat16())
    assert main(["merge", "text", "image", "-o", f"{out}3", "--weights", "0.25", "0.75"]) == 0
    found = load_file(tmp_path / "out3" / "model.safetensors")[name]
    assert torch.allclose(found, 0.25 * one + 0.75 * two)
    options = "--kind cross --interval 1 --no-feed-forward --text-share 0.25 --projections copied"
    assert main(["merge", "text", "image", "-o", f"{out}2", *options.split(), "--seed", "3"]) == 0
    model = pardalis.load(tmp_path / "out2").model
    assert model.trunk.text_cross_blocks[1].feed_forward is None
    assert torch.equal(model.trunk.combine.weight[:, :16], 0.25 * torch.eye(16))


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--kind mean", 2, "--kind must be one of 'uniform', 'slerp', 'task_arithmetic', 'width'"),
        ("--interval 2", 2, "--interval does not apply to a merge of the kind 'uniform'"),
        ("--kind cross --interval 0", 2, "--interval must be at least 1, got 0"),
        ("--kind width --blocks copied", 2, "--blocks must be one of 'copy'"),
        ("--weights 1 1", 2, "--weights must sum to 1, and 1, 1 sum to 2"),
        ("--kind task_arithmetic", 2, "--base is missing; it has no default, so set it."),
        ("--kind task_arithmetic --base none", 4, "No bundle at none"),
    ],
)
def test_wrong_options_are_one_line(options, code, message, parents, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(parents)
    out = tmp_path / "out"
    assert main(["merge", "text", "image", "-o", str(out), *options.split()]) == code
    shown = capsys.readouterr()
    assert shown.err.startswith(f"pardalis: {message}"), shown.err
    assert shown.err.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layers": 3}, r"\(model.n_layers is 2 and 3\); merge models of one architecture"),
        ({"norm": {"kind": "layer_norm"}}, "model.norm.kind is 'rms_norm' and 'layer_norm'"),
        ({"residual": {"placement": "reordered"}}, "placement is 'pre' and 'reordered'"),
        ({"attention": {"n_kv_heads": 4}}, r"\(model.attention.n_kv_heads is 2 and 4\)"),
        ({"d_model": 32, "n_layers": 1, "dropout": 0.5, "feed_forward": {"width": 8},
          "attention": {"n_heads": 2}}, "and 1 more"),
    ],
)  # fmt: skip
def test_parents_that_do_not_fit(changes, message, parents, codec, tmp_path):
    other = write_parent(tmp_path / "other", codec, 3, **changes)
    with pytest.raises(BundleError, match=message):
        merge([parents / "text", other], tmp_path / "out", UniformConfig())
    assert not (tmp_path / "out").exists()


def test_options_that_decide_nothing_may_differ(parents, codec, tmp_path):
    other = write_parent(tmp_path / "other", codec, 3, dropout=0.5, init={"std": 0.1})
    merge([parents / "text", other], tmp_path / "out", UniformConfig())
    assert bundles.load(tmp_path / "out").model.config.dropout == 0.0


def test_parents_with_other_tokens(parents, codec, tmp_path):
    images = ImageTokenizer(dataclasses.replace(codec.image_tokenizer.config, n_codes=64))
    for parameter in images.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    text = train_text_tokenizer(["A boat and a bear."], 280)
    other = write_parent(tmp_path / "other", Codec.of(text, images), 3)
    pair = [parents / "text", other]
    with pytest.raises(BundleError, match="different vocabularies and text tokenizers and image t"):
        merge(pair, tmp_path / "out", UniformConfig())
    assert not (tmp_path / "out").exists()
    for how in (WidthConfig(), CrossMergeConfig()):
        merge(pair, tmp_path / how.kind, how, unite=True)
        bundle = pardalis.load(tmp_path / how.kind)
        assert bundle.codec.vocabulary.n_codes == 64
        assert bundle.codec.text_tokenizer.to_json() == codec.text_tokenizer.to_json()
        assert len(pardalis.generate(bundle, "owl", mode="image").images) == 1
    with pytest.raises(ConfigError, match="`unite` takes text from one model and images from anot"):
        merge([*pair, other], tmp_path / "out", UniformConfig(), unite=True)


def test_where_it_may_be_written(parents, tmp_path):
    pair = [parents / "text", parents / "image"]
    with pytest.raises(ConfigError, match="is, holds or lies in the model"):
        merge(pair, parents / "text" / "new", UniformConfig())
    with pytest.raises(ConfigError, match="is, holds or lies in the model"):
        merge(pair, parents, UniformConfig())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").touch()
    with pytest.raises(ConfigError, match="exists and is not empty"):
        merge(pair, tmp_path / "full", UniformConfig())
    with pytest.raises(ConfigError, match="`parents` must be at least two models, got 1"):
        merge(pair[:1], tmp_path / "out", UniformConfig())


def test_the_ancestor_is_named_as_the_parents_are(parents, codec, tmp_path):
    base = write_parent(tmp_path / "base", codec, 3)
    (base / bundles.LICENCES).write_text("# Of the ancestor\n")
    pair, how = [parents / "text", parents / "image"], TaskArithmeticConfig(base=base)
    merge(pair, tmp_path / "out", how)
    made = pardalis.load(tmp_path / "out")
    assert made.licences.splitlines()[::2] == [
        "# Of the text parent", "# Of the image parent", "# Of the ancestor"
    ]  # fmt: skip
    assert made.made_by["base"] == {"recipe": "parent 3", "steps": 3}
    with pytest.raises(ConfigError, match="is, holds or lies in the model"):
        merge(pair, base / "new", how)


def test_a_parent_with_nan_writes_nothing(parents, codec, tmp_path):
    config = bundles.load(parents / "text").model.config
    model = initialise(Decoder(config), 0)
    with torch.no_grad():
        model.trunk.norm.weight[3] = torch.nan
    bundles.Bundle(model, codec, {}).save(tmp_path / "broken")
    with pytest.raises(BundleError, match="holds NaN or infinite values"):
        merge([parents / "text", tmp_path / "broken"], tmp_path / "out", UniformConfig())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (CrossMergeConfig(), r"model.kind is 'cross' \(needed: 'decoder'\)"),
        (WidthConfig(), r"model.norm.groups is 2 \(needed: 1\)"),
    ],
    ids=("cross", "width"),
)
def test_layouts_that_cannot_hold_it_refuse_it(how, message, parents, tmp_path):
    merge([parents / "text", parents / "image"], tmp_path / "merged", how)
    for to in ("hf", "meta", *(["gguf"] if find_spec("gguf") else [])):
        with pytest.raises(BundleError, match=message):
            export_model(tmp_path / "merged", tmp_path / "exported", to)
        assert not (tmp_path / "exported").exists()
