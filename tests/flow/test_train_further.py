"""Training a bundle further: on other documents, with its tokenizers, from its weights."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import PIL.Image
import pytest
import safetensors.torch
import torch

import pardalis
from pardalis.cli.main import main
from pardalis.data import Shards
from pardalis.data.source import read_source
from pardalis.errors import ConfigError
from pardalis.inference import TokenLoop
from pardalis.model import Decoder, initialise
from pardalis.pipeline import load_codec, load_recipe, run, training_loader
from pardalis.train import Interrupted, loop, read_metrics
from pardalis.vq import ImageTokenizer

RECIPE = """
name = "further"
start_from = "base/run/bundle"

[[sources]]
name = "squares"
reader = "jsonl"
path = "squares.jsonl"

[prepare]
row_tokens = 48

[training]
batch_rows = 2
[training.schedule]
kind = "warmup_cosine"
learning_rate = 1e-3
warmup_steps = 2

[training_loop]
steps = 6
save_every = 2
report_every = 1

[sample]
images = 2
captions = 2
pages = 0
"""

TRAIN = ("prepare", "train")
WEIGHTS = "bundle/model.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, write_project) -> Path:
    """A folder with a finished run in base/, and a recipe that trains it on other documents."""
    folder = tmp_path_factory.mktemp("further")
    (folder / "base").mkdir()
    first = write_project(folder / "base")
    stages = ("text_tokenizer", "image_tokenizer", "prepare", "train")
    long = ["training_loop.steps=60", "training_loop.save_every=60"]  # far from its initial values
    run(load_recipe(first / "recipe.toml", long), first / "run", only=stages)
    (first / "run" / "bundle" / "LICENCES.md").write_text("# Of the base\n")
    lines = []
    for n in range(8):
        PIL.Image.new("RGB", (20, 20), (30 * n, 90, 250 - 30 * n)).save(folder / f"{n}.png")
        image = {"image": f"{n}.png"}
        lines.append({"name": f"{n}", "segments": [{"text": f"the square of tint {n}"}, image]})
    (folder / "squares.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


@pytest.fixture
def project(trained, tmp_path) -> Path:
    """A copy of that folder, with the times of its files."""
    return shutil.copytree(trained, tmp_path / "project")


def go(project: Path, *changes: str, name: str = "run", only: tuple[str, ...] = TRAIN) -> Path:
    run(load_recipe(project / "recipe.toml", changes), project / name, only)
    return project / name


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "training" / "metrics.jsonl")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / WEIGHTS)


def test_training_starts_from_the_loaded_weights(project):
    folder = go(project, "training_loop.steps=1", "training.schedule.warmup_steps=0")
    base = pardalis.load(project / "base" / "run" / "bundle")
    recipe = load_recipe(folder / "recipe.toml")
    batch = training_loader(recipe, folder, base.codec).batch(0)

    def first_loss(model: Decoder) -> float:
        with torch.no_grad():
            objective = recipe.training.objective.build({"image": base.codec.vocabulary.image})
            return float(objective.metrics(objective(model, batch))["loss"])

    [found] = losses(folder)
    assert found == pytest.approx(first_loss(base.model), rel=1e-6)  # measured: equal
    fresh = initialise(Decoder(base.model.config), recipe.training.init_seed)
    assert abs(found - first_loss(fresh)) > 0.3  # measured: 1.4


def test_the_codec_is_that_of_the_bundle(project):
    folder, base = go(project), project / "base" / "run" / "bundle"
    codec = pardalis.load(base).codec
    shards = Shards.open(folder / "shards" / "squares", codec.fingerprint)
    [source] = load_recipe(project / "recipe.toml").sources
    documents = list(read_source(source))
    assert [shards.document(i) for i in range(len(documents))] == [
        codec.encode(document) for document in documents
    ]

    assert load_codec(folder).fingerprint == codec.fingerprint
    for name in ("text_tokenizer.json", "image_tokenizer/model.safetensors"):
        assert (folder / "bundle" / name).read_bytes() == (base / name).read_bytes()
    assert pardalis.load(folder / "bundle").codec.vocabulary == codec.vocabulary
    assert not {"text_tokenizer", "image_tokenizer"} & {path.name for path in folder.iterdir()}


def test_the_new_bundle_records_its_origin(project, capsys):
    (project / "run" / "corpus").mkdir(parents=True)
    (project / "run" / "corpus" / "LICENCES.md").write_text("# Of the run\n")
    go(project)
    bundle = pardalis.load(project / "run" / "bundle")
    licences = (project / "run" / "shards" / "LICENCES.md").read_text()
    assert licences.startswith("# Of the run\n\n# Licences of the sources of further\n")
    assert "| squares | not stated |" in licences
    assert bundle.licences == f"# Of the base\n\n{licences}"
    assert bundle.made_by["recipe"] == "further"
    assert bundle.made_by["start_from"] == {"recipe": "tiny-run", "steps": 60}
    assert bundle.made_by["numbers"]["step"] == 6
    base = pardalis.load(project / "base" / "run" / "bundle")
    assert bundle.model.config.context == base.model.config.context

    shutil.copytree(project / "run" / "corpus", project / "again" / "corpus")
    go(project, "start_from=run/bundle", name="again")  # the third in a row, on the same documents
    bundle = pardalis.load(project / "again" / "bundle")
    assert bundle.licences == f"# Of the base\n\n{licences}"
    assert bundle.made_by["start_from"]["start_from"] == {"recipe": "tiny-run", "steps": 60}
    assert main(["show", "bundle", str(project / "again" / "bundle")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("a bundle") == 2
    assert re.search(r"recipe +tiny-run", shown)
    assert re.findall(r"^  steps? +(\d+)$", shown, re.M) == ["6", "6", "60"]


def test_an_interrupted_run_resumes_with_the_same_numbers(project, monkeypatch):
    dropout = "model.dropout=0.2"  # its random masks must be the same
    whole = go(project, dropout, name="whole")
    assert losses(whole) != losses(go(project, name="without"))
    real = loop.checkpoint.Saver.save

    def save(self, done, *rest):
        real(self, done, *rest)
        if done == 4:
            raise Interrupted(done, 6)

    with monkeypatch.context() as patch:
        patch.setattr(loop.checkpoint.Saver, "save", save)
        with pytest.raises(Interrupted):
            go(project, dropout, name="cut")
    cut = go(project, dropout, name="cut")
    assert losses(cut) == losses(whole)
    assert (cut / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_another_bundle_trains_again_and_keeps_the_old_results(project):
    folder = go(project)
    before, metrics = losses(folder), (folder / "training" / "metrics.jsonl").stat()
    go(project)
    assert (folder / "training" / "metrics.jsonl").stat().st_mtime_ns == metrics.st_mtime_ns

    path = project / "base" / "run" / WEIGHTS
    changed = {name: tensor * 0.9 for name, tensor in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(changed, path)
    go(project)
    assert losses(folder)[0] != before[0]
    [aside] = folder.glob("training.*")
    assert [line["loss"] for line in read_metrics(aside / "metrics.jsonl")] == before


def test_a_bundle_of_16_bits_is_trained_in_32(project):
    path = project / "base" / "run" / WEIGHTS
    halved = {name: t.bfloat16() for name, t in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(halved, path)
    folder = go(project, "training.schedule.learning_rate=1e-6")
    found = weights(folder)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert all(
        torch.allclose(found[name], halved[name].float(), atol=1e-5) for name in found
    )  # 3e-6
    head = found["head.weight"]
    assert not torch.equal(head, head.bfloat16().float())  # a small step was not lost


def test_inspecting_a_run_and_sampling_from_its_model(project, capsys):
    folder = go(project, only=())
    samples = json.loads((folder / "samples" / "samples.json").read_text())
    assert len(samples["images"]) == len(samples["captions"]) == 2
    page = (folder / "report.html").read_text()
    assert "The given\n    image tokenizer" in page
    assert "PSNR of held-out images" not in page
    capsys.readouterr()
    assert main(["tokenizer", "show", str(folder), "--text", "red", "--json"]) == 0
    assert "".join(json.loads(capsys.readouterr().out)["tokens"]) == "red"
    assert main(["data", "show", str(folder), "--source", "squares", "--row", "0"]) == 0
    shown = capsys.readouterr().out
    assert "the square of tint" in shown
    assert "<begin_image>[4 codes]<end_image>" in shown
    assert main(["data", "show", str(folder), "--position", "77", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"] == "squares"


@pytest.mark.parametrize(
    ("stored", "choice", "dtype"),
    [
        (torch.float32, [], torch.float32),
        (torch.bfloat16, [], torch.bfloat16),
        (torch.float32, ["--dtype", "bfloat16"], torch.bfloat16),
        (torch.bfloat16, ["--dtype", "float32"], torch.float32),
        (torch.bfloat16, ["--dtype", "stored"], torch.bfloat16),
    ],
)
def test_the_compute_dtype_can_be_chosen(project, monkeypatch, capsys, stored, choice, dtype):
    path = project / "base" / "run" / WEIGHTS
    found = {name: t.to(stored) for name, t in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(found, path)
    seen = []

    def loop(model, *rest):
        seen.append({parameter.dtype for parameter in model.parameters()})
        return TokenLoop(model, *rest)

    monkeypatch.setattr("pardalis.inference.engine.TokenLoop", loop)
    assert main(["generate", str(path.parent), "red line", "--mode", "image", *choice]) == 0
    assert capsys.readouterr().out.strip() == "[image]"
    assert seen == [{dtype}]


def test_the_documented_recipe_works(project):
    """It is run on a smaller model, for fewer steps."""
    page = (Path(__file__).parents[2] / "docs" / "your-own-data.md").read_text()
    section = page.split("## Start from a trained model\n")[1].split("\n## ")[0]
    recipe, *_ = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    (project / "owls.toml").write_text(recipe)
    shutil.copytree(project / "base" / "run" / "bundle", project / "runs" / "quickstart" / "bundle")
    (project / "owls").mkdir()
    for n in range(3):
        shutil.copy(project / f"{n}.png", project / "owls" / f"{n}.png")
        (project / "owls" / f"{n}.txt").write_text(f"owl {n}")
    found = load_recipe(project / "owls.toml", ["prepare.row_tokens=64", "training_loop.steps=21"])
    assert found.prepare.row_tokens == 64 < load_recipe(project / "owls.toml").prepare.row_tokens
    run(found, project / "runs" / "owls", only=TRAIN)
    assert pardalis.load(project / "runs" / "owls" / "bundle").made_by["recipe"] == "owls"


def test_a_model_that_cannot_generate_images_is_trained_and_writes_captions(project):
    bundle = pardalis.load(project / "base" / "run" / "bundle")
    tokenizer = bundle.codec.image_tokenizer
    config = dataclasses.replace(tokenizer.config, has_decoder=False)
    blind = ImageTokenizer(config)
    blind.load_state_dict(tokenizer.state_dict(), strict=False)
    blind.save(project / "base" / "run" / "bundle" / "image_tokenizer")
    with pytest.raises(ConfigError, match=r"has no decoder.*set sample.images and sample.pages"):
        go(project, only=())
    folder = go(project, "sample.images=0", only=())
    report = json.loads((folder / "report.json").read_text())
    assert (report["n_captions_train"], report["psnr"]) == (2, None)
    assert not pardalis.load(folder / "bundle").codec.image_tokenizer.config.has_decoder
