"""All problems of a folder are reported in one message, and nothing is written."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from shapes import changed

import pardalis
from pardalis.bundle import Bundle
from pardalis.errors import BundleError, ConfigError, PardalisError
from pardalis.interop import NewRows, export_model, import_model, tensors, write_chameleon
from pardalis.interop.model import read_bundle
from pardalis.model import LayerNormConfig, LearnedPositionsConfig, ResidualConfig
from pardalis.vq import QUANTIZERS, ImageTokenizer, tiny


@pytest.fixture
def source(chameleon_folder, tmp_path) -> Path:
    """A good folder, to be spoilt: its files are links."""
    folder = tmp_path / "source"
    folder.mkdir()
    for path in chameleon_folder().iterdir():
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture
def target(tmp_path) -> Path:
    """The path of the bundle, where a failed import leaves nothing."""
    (tmp_path / "results").mkdir()
    return tmp_path / "results" / "bundle"


@pytest.fixture
def refused(source, target) -> Callable[..., str]:
    """Return a function whose import fails, and which returns the message."""

    def attempt(path: Path = source, **options) -> str:
        with pytest.raises(PardalisError) as caught:
            import_model(path, target, **options)
        assert_untouched(target)
        message = str(caught.value)
        assert message.endswith(".")
        assert "\n" not in message
        return message

    return attempt


def assert_untouched(target: Path) -> None:
    assert not list(target.parent.iterdir())


def write(folder: Path, name: str, content: str | bytes) -> None:
    """Give a folder of links a file of its own."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def change(folder: Path, name: str, **changes) -> None:
    """Change values of a JSON file; a name with a dot is one of a value inside; ... removes it."""
    values = json.loads((folder / name).read_text())
    for key, value in changes.items():
        *outer, last = key.split("__")
        inside = values
        for step in outer:
            inside = inside[step]
        if value is ...:
            del inside[last]
        else:
            inside[last] = value
    write(folder, name, json.dumps(values))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors")


# ── weights ──────────────────────────────────────────────────────────────────────────────────────


def lose(weights):
    del weights["model.layers.1.self_attn.q_norm.bias"], weights["lm_head.weight"]


def gain(weights):
    weights["model.layers.2.mlp.up_proj.weight"] = torch.zeros(96, 64)
    weights["model.vqmodel.decoder.conv_in.bias"] = torch.zeros(3)


def bend(weights):
    weights["model.norm.weight"] = torch.zeros(65)
    weights["model.vqmodel.quantize.embedding.weight"] = torch.zeros(8192, 4)


MISSING = "missing model.layers.1.self_attn.q_norm.bias, lm_head.weight"
GAINED = "unexpected model.layers.2.mlp.up_proj.weight, model.vqmodel.decoder.conv_in.bias"
BENT = (
    "of another shape model.norm.weight (65 instead of 64), "
    "model.vqmodel.quantize.embedding.weight (8192x4 instead of 8192x8)"
)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ([lose], [MISSING]),
        ([gain], [GAINED]),
        ([bend], [BENT]),
        ([lose, gain, bend], [MISSING, GAINED, BENT]),
    ],
)
def test_tensors_that_do_not_fit(changes, parts, source, refused):
    for function in changes:
        change_tensors(source, function)
    message = refused()
    assert f"The weights in {source} do not fit their config: {'; '.join(parts)}." in message
    assert "Nothing was written" in message


def test_many_tensors_are_counted(source, refused):
    change(source, "config.json", num_hidden_layers=4)
    message = refused()
    assert message.count("model.layers.2.") == 6
    assert "and 20 more" in message


@pytest.mark.parametrize("kept", [0, 4, 8, 1000, 0.5, -1])
def test_a_truncated_file(kept, source, refused):
    content = (source / "model.safetensors").read_bytes()
    write(source, "model.safetensors", content[: int(kept * len(content)) if kept == 0.5 else kept])
    message = refused()
    assert f"{source / 'model.safetensors'} cannot be read" in message
    assert "truncated" in message


def test_no_weights(source, refused):
    (source / "model.safetensors").unlink()
    assert f"{source} has neither model.safetensors nor pytorch_model.bin, whole or" in refused()
    (source / "pytorch_model.bin").touch()
    assert f"{source / 'pytorch_model.bin'} cannot be read" in refused()


INDEX = "model.safetensors.index.json"


def test_a_missing_shard(chameleon_folder, tmp_path, refused):
    folder = tmp_path / "shards"
    folder.mkdir()
    for path in chameleon_folder(shard="900KB").iterdir():
        if not path.name.startswith(("model-00002", "model-00003")):
            (folder / path.name).symlink_to(path)
    message = refused(folder)
    n = len(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    missing = ", ".join(f"model-0000{i}-of-{n:05}.safetensors" for i in (2, 3))
    assert f"names {n} shards, of which {missing} are missing" in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is not JSON"),
        ("[]", "holds no JSON object"),
        ("{}", "KeyError"),
        ('{"weight_map": 3}', "AttributeError"),
        ('{"weight_map": {"a": 3}}', "names 1 shards, of which 3 is missing"),
    ],
)
def test_a_broken_index(content, reason, source, refused):
    write(source, INDEX, content)
    message = refused()
    assert str(source / INDEX) in message
    assert reason in message


# ── configs ──────────────────────────────────────────────────────────────────────────────────────


def test_all_unsupported_options_are_named_together(source, refused):
    change(
        source,
        "config.json",
        attention_bias=True,
        mlp_bias=True,
        hidden_act="gelu",
        head_dim=16,
        rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0},
        sliding_window=512,
        vq_config__double_latent=True,
        vq_config__in_channels=1,
        vq_config__attn_type=None,
    )
    change(
        source,
        "processor_config.json",
        image_processor__rescale_factor=1 / 255,
        image_processor__image_mean=[0.5, 0.5, 0.5],
        image_processor__size={"shortest_edge": 9},
        image_processor__do_center_crop=False,
    )
    message = refused()
    for part in (
        "hidden_act = 'gelu' (supported: 'silu')",
        "attention_bias = True (supported: False)",
        "mlp_bias = True (supported: False)",
        "RoPE of type 'yarn' (supported: 'default', 'linear' and 'llama3')",
        "head_dim = 16",
        "sliding_window",
        "vq_config.double_latent = True (supported: False)",
        "vq_config.in_channels = 1",
        "vq_config.attn_type = None",
        "image_processor.rescale_factor = 0.00392156862745098 (supported: 0.0078 or 2/255)",
        "image_processor.image_mean = [0.5, 0.5, 0.5] (supported: [1.0, 1.0, 1.0])",
        "image_processor.size = {'shortest_edge': 9} (supported: {'shortest_edge': 8})",
        "image_processor.do_center_crop = False (supported: True)",
    ):
        assert part in message


def test_the_older_key_of_rope_is_read(source, refused):
    scaling = {"type": "dynamic", "factor": 2}
    change(source, "config.json", rope_parameters=..., rope_scaling=scaling)
    assert "RoPE of type 'dynamic'" in refused()


@pytest.mark.parametrize("factor", [0.5, None, "0.0078"])
@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_image_preparation_is_read_from_either_file(name, factor, source, refused):
    write(source, name, json.dumps({"rescale_factor": factor}))
    assert f"image_processor.rescale_factor = {factor!r} (supported:" in refused()


def test_an_image_processor_that_is_none(source, refused):
    write(source, "processor_config.json", json.dumps({"image_processor": 3}))
    assert "processor_config.json is not a model's config (image_processor is 3," in refused()


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]", "null", b"\xff"])
def test_a_file_that_is_not_what_it_should_be(name, content, source, refused):
    write(source, name, content)
    assert str(source / name) in refused()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file(name, source, refused):
    (source / name).unlink()
    message = refused()
    assert name in message
    assert str(source) in message


@pytest.mark.parametrize("kind", ["gpt2", None])
def test_a_model_of_another_type(kind, source, refused):
    change(source, "config.json", model_type=kind)
    known = "chameleon, llama, mistral, qwen2 and qwen3 can be imported"
    assert f"describes a model of type {kind!r}; {known}" in refused()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"num_attention_heads": 0}, "n_heads must be at least 1"),
        ({"num_attention_heads": 0, "head_dim": 8}, "is not a model's config"),
        ({"hidden_size": "64"}, "d_model must be of type int, got '64'"),
        ({"hidden_size": 65}, "d_model (65) must be a multiple"),
        ({"rope_parameters": 3}, "is not a model's config (rope_parameters is 3,"),
        ({"vq_config": [3]}, "is not a model's config (vq_config is [3],"),
        ({"vq_config__num_res_blocks": 0}, "config.json: n_res_blocks must be at least 1, got 0"),
        ({"vq_config__channel_multiplier": 2}, "channel_multipliers must be a list, got 2"),
        ({"num_hidden_layers": None}, "do not fit their config"),  # 32, as left out
        ({"model_parallel_size": "two"}, "is not a model's config"),
        ({"vocabulary_map": 3}, "is not a model's config (vocabulary_map is 3,"),
    ],
)
def test_invalid_config_values(changes, part, source, refused):
    change(source, "config.json", **changes)
    message = refused()
    assert part in message
    assert str(source) in message


# ── tokenizers ───────────────────────────────────────────────────────────────────────────────────


def test_a_tokenizer_of_another_model(source, text_tokenizer, refused):
    change(source, "config.json", vocabulary_map=None)
    write(source, "tokenizer.json", text_tokenizer.to_json())
    message = refused()
    assert (
        f"{source / 'tokenizer.json'} is not a Chameleon vocabulary: no <s>; no <pad>;" in message
    )
    assert "no image token (IMGIMG...Z)" in message


def test_a_tokenizer_that_contradicts_the_config(source, refused):
    change(source, "config.json", vocabulary_map__IMGIMGBHZ=22, vocabulary_map__IMGIMGBIZ=21)
    message = refused()
    assert (
        "vocabulary_map in config.json differ in 2 tokens, first 'IMGIMGBHZ': 21 and 22" in message
    )


def test_a_tokenizer_of_fewer_codes(source, refused):
    """Neither file alone is wrong."""
    change(source, "config.json", vocabulary_map=None)
    values = json.loads((source / "tokenizer.json").read_text())
    names = [f"IMGIMGIB{c}Z" for c in ("IA", "IB", "IC", "ID", "IE", "IF", "IG", "IH", "II", "IJ",
                                       "JA", "JB")]  # fmt: skip
    for name in names:
        del values["model"]["vocab"][name]
    values["added_tokens"] = [t for t in values["added_tokens"] if t["content"] not in names]
    write(source, "tokenizer.json", json.dumps(values))
    assert "names 8180 image codes, but the image tokenizer has 8192. Do not mix" in refused()


# ── arguments ────────────────────────────────────────────────────────────────────────────────────


def test_options_for_other_models(source, refused):
    assert "`new_rows` does not apply: a Chameleon has image tokens" in refused(new_rows=NewRows())


def test_an_unneeded_image_tokenizer(source, imported_bundle, own_bundle, refused):
    assert "has no decoder either" in refused(image_tokenizer=imported_bundle())
    assert "another codebook" in refused(image_tokenizer=own_bundle)
    assert "No image tokenizer at" in refused(image_tokenizer=source / "none.ckpt")
    change_tensors(source, lambda weights: weights.pop("model.vqmodel.quantize.embedding.weight"))
    message = refused(image_tokenizer=own_bundle)
    assert "names 8192 image codes, but the image tokenizer has 64. Do not mix" in message


def test_an_image_tokenizer_that_is_broken(source, own_bundle, tmp_path, refused):
    folder = tmp_path / "vq"
    shutil.copytree(own_bundle / "image_tokenizer", folder)
    change_tensors(folder, lambda weights: weights.pop("quantize.embedding.weight"))
    message = refused(image_tokenizer=folder)
    assert "The weights in the `image_tokenizer` do not fit their config" in message
    assert "missing quantize.embedding.weight." in message


def test_a_broken_image_decoder(own_bundle, tmp_path, refused):
    export_model(own_bundle, tmp_path / "hf", "hf")
    path = tmp_path / "hf/pardalis.safetensors"
    save_file(dict(list(load_file(path).items())[1:]), path)
    assert f"The weights in {path} do not fit their config: missing decoder." in refused(
        path.parent
    )


def test_a_bundle_is_no_foreign_checkpoint(own_bundle, refused):
    assert f"{own_bundle} is a bundle already" in refused(own_bundle)


def test_no_folder_or_an_empty_one(tmp_path, refused):
    assert f"No folder and no GGUF file at {tmp_path / 'none'}" in refused(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    message = refused(tmp_path / "empty")
    assert "neither config.json (Hugging Face) nor params.json" in message
    (tmp_path / "file").touch()
    assert f"No folder and no GGUF file at {tmp_path / 'file'}" in refused(tmp_path / "file")


@pytest.mark.parametrize("output", ["source", "source/bundle", ".", "link", "source/../source/a"])
def test_an_output_that_overlaps_the_source(output, source, tmp_path, own_bundle):
    (tmp_path / "link").symlink_to(source)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="is, holds or lies in the source"):
        import_model(source, tmp_path / output)
    with pytest.raises(ConfigError, match="is, holds or lies in the source"):
        export_model(source, tmp_path / output, "hf")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["thesis.tex", "bundle.json", "models/notes", "model.safetensors"])
def test_nothing_is_ever_replaced(name, source, own_bundle, tmp_path):
    folder = tmp_path / "precious"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("years of work")
    with pytest.raises(ConfigError, match="precious exists and is not empty; choose another"):
        import_model(source, folder)
    for layout in ("hf", "meta"):
        with pytest.raises(ConfigError, match="precious exists and is not empty; choose another"):
            export_model(own_bundle, folder, layout)
    assert (folder / name).read_text() == "years of work"


def test_a_file_is_never_replaced(source, own_bundle, tmp_path):
    (tmp_path / "file").write_text("years of work")
    with pytest.raises(ConfigError):
        import_model(source, tmp_path / "file")
    with pytest.raises(ConfigError):
        export_model(own_bundle, tmp_path / "file", "hf")
    assert (tmp_path / "file").read_text() == "years of work"


def test_the_folder_where_one_stands(source, own_bundle, tmp_path, monkeypatch):
    for name in ("bundle", "hf"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "bundle")
    import_model(source, ".")
    pardalis.load(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path / "hf")
    export_model(str(own_bundle), ".", "hf")
    assert (tmp_path / "hf/config.json").is_file()


def test_a_link_to_a_folder_stays_a_link(source, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    import_model(source, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    pardalis.load(tmp_path / "disk")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link", "source"]


def test_an_empty_folder_may_be_filled(source, target, own_bundle, tmp_path):
    target.mkdir()
    import_model(source, target)
    pardalis.load(target)
    (tmp_path / "empty").mkdir()
    export_model(own_bundle, tmp_path / "empty", "hf")
    assert (tmp_path / "empty/config.json").is_file()


# ── interruptions ────────────────────────────────────────────────────────────────────────────────


def interrupt(monkeypatch, error: BaseException, after: int = 30) -> None:
    """Raise where the tensors are written, when some are."""
    written = []
    original = tensors._bytes

    def stop(tensor):
        written.append(tensor)
        if len(written) > after:
            raise error
        return original(tensor)

    monkeypatch.setattr(tensors, "_bytes", stop)


def test_an_interrupted_import(source, target, monkeypatch):
    interrupt(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        import_model(source, target)
    assert_untouched(target)


def test_an_interrupted_export(own_bundle, tmp_path, monkeypatch):
    interrupt(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        export_model(own_bundle, tmp_path / "hf", "hf")
    assert not list(tmp_path.iterdir())


def test_a_full_disk(source, target, own_bundle, tmp_path, monkeypatch, refused):
    full = OSError(errno.ENOSPC, "No space left on device")
    interrupt(monkeypatch, full)
    message = refused()
    assert message == (
        f"{target} could not be written: the disk is full; free space on it, or choose another "
        "folder. Nothing there was changed."
    )
    with pytest.raises(BundleError, match="hf could not be written: the disk is full"):
        export_model(own_bundle, tmp_path / "new" / "hf", "hf")
    assert not list((tmp_path / "new").iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from pardalis.interop import import_model, tensors
original, count = tensors._bytes, 0
def die(tensor):
    global count
    count += 1
    if count > 30:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(tensor)
tensors._bytes = die
import_model(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_process_leaves_no_complete_output(source, target):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, source, target],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL
    left = list(target.parent.iterdir())
    assert left == [target.with_name(".bundle.pardalis-partial")]
    with pytest.raises(BundleError, match="is incomplete"):
        pardalis.load(left[0])
    import_model(source, target)
    pardalis.load(target)
    assert list(target.parent.iterdir()) == [target]


# ── what their layout cannot hold ────────────────────────────────────────────────────────────────


def test_all_options_that_the_layout_cannot_hold_are_named_together(own_bundle, tmp_path):
    model = read_bundle(own_bundle)
    unlike = replace(model, config=replace(
        changed(model.config, qk_norm="none"), residual=ResidualConfig(skip=0.5, branch=0.5)
    ))  # fmt: skip
    with pytest.raises(BundleError) as caught:
        write_chameleon(unlike, tmp_path / "hf")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'hf'}: Hugging Face's Chameleon cannot hold this model")
    for part in (
        "model.residual.skip is 0.5 (needed: 1.0)",
        "model.residual.branch is 0.5 (needed: 1.0)",
    ):
        assert part in message
    assert not list(tmp_path.iterdir())


def test_an_image_tokenizer_that_the_layout_cannot_hold_stays_ours(own_bundle, tmp_path, caplog):
    """Every reason is named: the quickstart's are among them."""
    model = read_bundle(own_bundle)
    images = replace(tiny(), quantizer=QUANTIZERS["ibq"](), channels=48)
    write_chameleon(replace(model, image_tokenizer=images), tmp_path / "hf")
    message = caplog.text
    for part in (
        "Hugging Face's Chameleon cannot hold the image tokenizer: ",
        "image_tokenizer.patch_size is 4 (needed: 1)",
        "image_tokenizer.norm_groups is 0 (needed: 32)",
        "image_tokenizer.channels is 48 (needed: 32 divides all widths)",
        "image_tokenizer.quantizer.kind is 'ibq' (needed: one of vq, ema, l2, simvq",
    ):
        assert part in message
    assert not list((tmp_path / "hf").glob("p*processor*"))
    assert ImageTokenizer.load_config(tmp_path / "hf" / "image_tokenizer") == images


def test_each_option_by_itself_is_refused(own_bundle, tmp_path):
    model = read_bundle(own_bundle)
    for change, named in (
        ({"config": changed(model.config, qk_norm="none")}, r"qk_norm\.kind"),
        ({"config": changed(model.config, qk_norm_eps=1e-6)}, r"qk_norm\.eps"),
        ({"config": replace(model.config, norm=LayerNormConfig())}, r"norm\.kind"),
        ({"config": replace(model.config, position=LearnedPositionsConfig())}, r"position\.kind"),
        ({"config": replace(model.config, residual=ResidualConfig(skip=0.5))}, r"residual\.skip"),
        ({"config": changed(model.config, norm_placement="post")}, r"residual\.placement"),
    ):
        unlike = replace(model, **change)
        with pytest.raises(BundleError, match=named) as caught:
            write_chameleon(unlike, tmp_path / "hf")
        assert len(re.findall(r"\(needed", str(caught.value))) == 1


def test_a_broken_bundle_is_not_exported(own_bundle, tmp_path):
    bundle: Bundle = pardalis.load(own_bundle)
    bundle.save(tmp_path / "bundle")
    weights = load_file(tmp_path / "bundle/model.safetensors")
    del weights["head.weight"]
    save_file(weights, tmp_path / "bundle/model.safetensors")
    with pytest.raises(BundleError, match=r"missing head\.weight"):
        export_model(tmp_path / "bundle", tmp_path / "hf", "hf")
    assert not (tmp_path / "hf").exists()
