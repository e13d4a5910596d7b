"""A bundle from a checkpoint: the weights of that step, and who made them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from shapes import decoder_config

import pardalis
from pardalis import config as configs
from pardalis.bundle import Bundle
from pardalis.cli.main import main
from pardalis.codec import Codec
from pardalis.errors import BundleError
from pardalis.model import Decoder, ModelConfig, initialise
from pardalis.pipeline import load_codec, load_recipe
from pardalis.pipeline.export import checkpoint_bundle
from pardalis.train import checkpoint
from pardalis.train.settings import keep_settings

RECIPE = """
name = "further"
start_from = "start"
[[sources]]
name = "pairs"
reader = "jsonl"
path = "pairs.jsonl"
[prepare]
row_tokens = 128
[training]
batch_rows = 4
[training.schedule]
learning_rate = 1e-3
warmup_steps = 1
[training_loop]
steps = 30
"""


def model_of(config: ModelConfig, step: int) -> Decoder:
    return initialise(Decoder(config), seed=step)


@pytest.fixture(scope="module")
def made(codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that started from a bundle and has checkpoints of steps 10 and 20."""
    folder = tmp_path_factory.mktemp("export")
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=160, d_model=16, n_layers=1, n_heads=2,
        n_kv_heads=2, d_ff=16,
    )  # fmt: skip
    start = Bundle(
        model_of(config, 0), codec, {"recipe": "first", "numbers": {"loss": 9.0}}, "A.\n"
    )
    start.save(folder / "start")
    (folder / "recipe.toml").write_text(RECIPE)
    run = folder / "run"
    for step in (10, 20):
        state = {"model": model_of(config, step).state_dict(), "optimizer": {"m": torch.ones(99)}}
        checkpoint.save(run / "training", step, state, {})
    settings = {"model": configs.to_dict(config), "codec": codec.fingerprint}
    keep_settings(run / "training", 30, settings)
    lines = [{"step": step, "time_s": 1.0, "loss": 30.0 - step} for step in (5, 10, 15, 20, 25)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "training" / "metrics.jsonl").write_text(text)
    recipe = load_recipe(folder / "recipe.toml")
    (run / "recipe.toml").write_text(configs.to_toml(recipe))
    (run / "shards").mkdir()
    (run / "shards" / "LICENCES.md").write_text("B.\n")
    return run


@pytest.mark.parametrize(("options", "step"), [([], 20), (["--step", "10"], 10)])
def test_a_checkpoint_becomes_a_bundle(
    made: Path, tmp_path: Path, options: list[str], step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    assert main(["export", str(made), "-o", str(out), "--to", "bundle", *options]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    bundle = pardalis.load(out)
    expected = model_of(bundle.model.config, step).state_dict()
    for name, tensor in bundle.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert bundle.made_by == {
        "recipe": "further",
        "steps": step,
        "start_from": {"recipe": "first"},
        "numbers": {"step": step, "time_s": 1.0, "loss": 30.0 - step},
    }
    assert bundle.licences == "A.\n\nB.\n"


def test_the_weights_may_be_halved(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    arguments = ["export", str(made), "-o", str(out), "--to", "bundle", "--dtype", "bfloat16"]
    assert main(arguments) == 0
    assert {p.dtype for p in pardalis.load(out).model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--to", "bundle", "--step", "11"], 4, "no checkpoint of step 11; it has those of 10, 20"),
        (["--to", "bundle", "--ranks", "2"], 2, "--ranks does not apply: a bundle is for any"),
        (["--to", "hf", "--step", "10"], 2, "--step does not apply: only a run has steps"),
        (["--to", "hf"], 4, "The run {run} has no bundle yet; run its stage 'pardalis train'"),
    ],
)
def test_what_does_not_apply_is_refused(
    made: Path,
    tmp_path: Path,
    options: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["export", str(made), "-o", str(tmp_path / "new"), *options]) == code
    assert message.format(run=made) in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def bundle_of(run: Path) -> Bundle:
    return checkpoint_bundle(load_recipe(run / "recipe.toml"), run, load_codec(run))


def test_a_run_without_checkpoints(copied: Path) -> None:
    shutil.rmtree(copied / "training" / "checkpoints")
    with pytest.raises(BundleError, match=r"training holds no checkpoint; the stage 'train'"):
        bundle_of(copied)


@pytest.mark.parametrize("text", ["", "{}", '{"settings": {"model": {"d_model": 3}}}'])
def test_settings_that_cannot_be_read(copied: Path, text: str) -> None:
    (copied / "training" / "settings.json").write_text(text)
    with pytest.raises(
        BundleError, match=r"settings\.json cannot be read, so the shape of the decoder is unknown"
    ):
        bundle_of(copied)


def test_other_tokenizers_than_the_decoder_learnt_with(copied: Path) -> None:
    path = copied / "training" / "settings.json"
    settings = json.loads(path.read_text())
    settings["settings"]["codec"] = "another"
    path.write_text(json.dumps(settings))
    with pytest.raises(BundleError, match=r"The tokenizers of .* have changed since .*00000020"):
        bundle_of(copied)


def test_settings_of_another_shape(copied: Path) -> None:
    path = copied / "training" / "settings.json"
    settings = json.loads(path.read_text())
    settings["settings"]["model"]["feed_forward"]["width"] = 24
    path.write_text(json.dumps(settings))
    with pytest.raises(
        BundleError, match=r"does not fit .*settings\.json: state/model/.* has shap"
    ):
        bundle_of(copied)
