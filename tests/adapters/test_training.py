"""Training an adapter: what is trained, stored, resumed and written."""

import json

import pytest
import safetensors.torch
import torch
from shapes import decoder_config

import pardalis
from pardalis.adapters import LoRAConfig, install, load_adapter, merge
from pardalis.cli.main import main
from pardalis.errors import ConfigError
from pardalis.model import Decoder, initialise
from pardalis.pipeline import load_recipe, run, training_loader
from pardalis.train import Interrupted, checkpoint, loop, read_metrics
from pardalis.train.optimizer import AdamWConfig, Optimizer

STAGES = ("prepare", "train")


def go(project, *changes, name="run"):
    recipe = load_recipe(project / "recipe.toml", changes)
    run(recipe, project / name, only=STAGES)
    return project / name


def weights(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def losses(folder):
    return [line["loss"] for line in read_metrics(folder / "training" / "metrics.jsonl")]


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_run_writes_an_adapter_and_the_merged_bundle(project, kind):
    folder = go(project, f"adapter.kind={kind}", "training_loop.steps=20")
    found = losses(folder)
    assert found[-1] < found[0] - 0.5
    base, bundle = pardalis.load(project / "base"), pardalis.load(folder / "bundle")
    adapter = load_adapter(folder / "adapter", base.codec.vocabulary)
    assert adapter.config.kind == kind
    merged = merge(base.model, adapter).state_dict()
    assert all(torch.equal(merged[name], t) for name, t in bundle.model.state_dict().items())
    assert bundle.made_by["adapter"] == kind
    assert bundle.made_by["start_from"] == {"recipe": "base"}


def test_only_the_adapter_changes_and_is_stored(project):
    folder = go(project, 'adapter.targets=["q", "down"]')
    newest = checkpoint.newest(folder / "training")
    state, _ = checkpoint.load(newest)
    names = {
        *(f"trunk.blocks.{n}.attention.q_proj.lora_{x}" for n in (0, 1) for x in "AB"),
        *(f"trunk.blocks.{n}.feed_forward.down_proj.lora_{x}" for n in (0, 1) for x in "AB"),
        "embedding.rows",
        "head.rows",
    }
    assert state["model"].keys() == state["optimizer"].keys() == names
    assert {tensor.dtype for tensor in state["model"].values()} == {torch.float32}
    before, after = weights(project / "base"), weights(folder / "bundle")
    vocabulary = pardalis.load(project / "base").codec.vocabulary
    rows = torch.zeros(vocabulary.size, dtype=torch.bool)
    rows[[*vocabulary.image, vocabulary.begin_image_id]] = True
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    adapted = {name.rpartition(".")[0] + ".weight" for name in names}
    assert changed == adapted
    for name in ("embedding.weight", "head.weight"):
        assert torch.equal(before[name][~rows], after[name][~rows])
        # An embedding that no token of the data has does not decay.
        assert not torch.equal(before[name][rows], after[name][rows])
    lines = read_metrics(folder / "training" / "metrics.jsonl")
    parts = {key.partition(".")[2] for key in lines[-1] if key.startswith("update_ratio.")}
    assert parts == {"adapter"}
    assert 0 < lines[-1]["update_ratio.adapter"] < 1


def test_an_interrupted_run_resumes_bit_for_bit(project, monkeypatch):
    changes = ("adapter.kind=dora", "adapter.dropout=0.2", "training.neftune_alpha=5")
    whole = go(project, *changes, name="whole")
    assert losses(whole) != losses(go(project, "adapter.kind=dora", name="without"))
    real = loop.checkpoint.Saver.save

    def save(self, done, *rest):
        real(self, done, *rest)
        if done == 4:
            raise Interrupted(done, 6)

    with monkeypatch.context() as patch:
        patch.setattr(loop.checkpoint.Saver, "save", save)
        with pytest.raises(Interrupted):
            go(project, *changes, name="cut")
    assert not (project / "cut" / "adapter").exists()
    cut = go(project, *changes, name="cut")
    assert losses(cut) == losses(whole)
    for name in ("adapter/adapter_model.safetensors", "bundle/model.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "float32"])
def test_the_frozen_matrices_may_be_stored_in_fewer_bits(project, dtype):
    """Losses are near those of 32 bits; what is trained has 32."""
    plain, narrow = go(project), go(project, f"adapter.base_dtype={dtype}", name="narrow")
    assert losses(narrow) == pytest.approx(losses(plain), rel=0.01)
    assert (losses(narrow) == losses(plain)) is (dtype == "float32")
    adapter = weights_of_adapter(narrow)
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}


def weights_of_adapter(folder):
    return safetensors.torch.load_file(folder / "adapter" / "adapter_model.safetensors")


def test_a_bundle_of_16_bits_stays_in_16(project):
    path = project / "base" / "model.safetensors"
    halved = {name: tensor.bfloat16() for name, tensor in weights(project / "base").items()}
    safetensors.torch.save_file(halved, path)
    folder = go(project)
    assert {t.dtype for t in weights(folder / "bundle").values()} == {torch.bfloat16}
    assert {t.dtype for t in weights_of_adapter(folder).values()} == {torch.float32}
    wide = go(project, "adapter.base_dtype=float32", name="wide")
    assert losses(wide) == pytest.approx(losses(folder), rel=1e-5)  # products are in 32 bits


def test_the_first_loss_is_that_of_the_model(project):
    folder = go(project, "adapter.kind=dora", "training_loop.steps=2")
    base = pardalis.load(project / "base")
    recipe = load_recipe(project / "recipe.toml")
    objective = recipe.training.objective.build({"image": base.codec.vocabulary.image})
    batch = training_loader(recipe, folder, base.codec).batch(0)
    with torch.no_grad():
        expected = float(objective.metrics(objective(base.model, batch))["loss"])
    assert losses(folder)[0] == pytest.approx(expected, rel=1e-6)


def test_another_adapter_is_another_run(project):
    folder = go(project)
    before = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    go(project, "adapter.rank=8")
    after = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (before["r"], after["r"]) == (4, 8)
    [aside] = folder.glob("adapter.*")
    assert json.loads((aside / "adapter_config.json").read_text()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('adapter.targets=["attenton"]', r"adapter.targets names 'attenton', .* it has attention, "
         "q, k, v, o, feed_forward, gate, up, down"),
        ('adapter.targets=["head"]', "adapter.targets names 'head'"),
        ('adapter.rows=["images"]', r"adapter.rows names 'images', .* all, special, image, text"),
        ("adapter.rank=0", r"adapter.rank must be at least 1, got 0"),
        ("adapter.kind=lara", r"adapter.kind must be one of 'lora', 'dora', .* did you mean"),
        ("training.optimizer.kind=muon", "matrices between hidden states, which adapter freezes"),
        ("training.qk_clip=10", "qk_clip scales matrices that adapter freezes"),
        ("parallel.tensor=2", r"adapter.rows does not work with parallel.tensor = 2"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_anything_runs(project, change, message):
    with pytest.raises(ConfigError, match=message):
        go(project, change)
    assert not (project / "run" / "shards").exists()


def test_an_adapter_needs_a_model_to_start_from(project):
    text = (project / "recipe.toml").read_text().replace('start_from = "base"\n', "")
    (project / "recipe.toml").write_text(text)
    with pytest.raises(ConfigError, match="adapter is trained beside a model"):
        load_recipe(project / "recipe.toml", ["model.preset=tiny", "image_tokenizer_from=base"])


def test_a_plan_counts_what_is_trained(project, capsys):
    assert main(["plan", str(project / "recipe.toml"), "--device", "cpu", "--json"]) == 0
    adapted = json.loads(capsys.readouterr().out)
    folder = go(project, "training_loop.steps=2")
    adapter = load_adapter(folder / "adapter", pardalis.load(project / "base").codec.vocabulary)
    assert adapted["trained"] == adapter.n_parameters < adapted["parameters"]
    assert adapted["memory"]["gradients"] == 4 * adapter.n_parameters
    assert main(["plan", str(project / "recipe.toml"), "--device", "cpu"]) == 0
    assert f"{adapter.n_parameters:,}" in capsys.readouterr().out
    for dtype, size in (("bfloat16", 2), ("int8", 1)):
        change = ["--set", f"adapter.base_dtype={dtype}"]
        command = ["plan", str(project / "recipe.toml"), "--device", "cpu", "--json", *change]
        assert main(command) == 0
        narrow = json.loads(capsys.readouterr().out)
        inside = adapted["parts"]["attention"] + adapted["parts"]["feed_forward"]
        outside = adapted["parts"]["embedding"] + adapted["parts"]["head"]
        saved = adapted["memory"]["weights"] - narrow["memory"]["weights"]
        assert saved == inside * (4 - size) + outside * (2 if dtype == "bfloat16" else 0)


def test_rows_may_have_their_own_learning_rate():
    config = decoder_config(
        vocab_size=20, context=8, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, d_ff=16
    )
    model = initialise(Decoder(config), 0)
    install(model, LoRAConfig(rank=2, rows=("image",), rows_rate=5.0), [3, 4, 9])
    optimizer = Optimizer(model, AdamWConfig(), peak=1.0)
    optimizer.set_learning_rate(0.1)
    rates = {n: g["lr"] for g in optimizer.param_groups for n in g["param_names"]}
    assert {name for name, rate in rates.items() if rate == 0.5} == {"embedding.rows", "head.rows"}
    assert {rate for name, rate in rates.items() if "lora" in name} == {0.1}


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_a_wrong_rate_of_rows(rate):
    with pytest.raises(ConfigError, match=r"rows_rate must be (above 0|a finite number), got"):
        LoRAConfig(rows_rate=rate)
