"""A merged bundle is trained further by a recipe, resumes exactly, and generates with guidance."""

import json

import PIL.Image
import pytest
import torch
from parents import CONTEXT, write_parent
from safetensors.torch import load_file

from pardalis.cli.main import main
from pardalis.fusion import CrossMergeConfig, UniformConfig, WidthConfig, merge
from pardalis.pipeline import load_recipe, run
from pardalis.train import Interrupted, loop, read_metrics

RECIPE = f"""
name = "merged"
start_from = "bundle"

[[sources]]
name = "squares"
reader = "jsonl"
path = "squares.jsonl"

[prepare]
row_tokens = {CONTEXT}

[model]
dropout = 0.2

[training]
batch_rows = 2
statistics_every = 2
[training.schedule]
learning_rate = 1e-3
warmup_steps = 1

[training_loop]
steps = 4
save_every = 2
report_every = 1

[sample]
images = 1
captions = 1
pages = 0
"""

TRAIN = ("prepare", "train")
KINDS = {
    "uniform": UniformConfig(weights=(0.25, 0.75)),
    "width": WidthConfig(),
    "cross": CrossMergeConfig(interval=1),
}


@pytest.fixture(scope="module")
def parents(tmp_path_factory, codec):
    folder = tmp_path_factory.mktemp("parents")
    return [write_parent(folder / str(seed), codec, seed) for seed in (1, 2)]


@pytest.fixture
def project(parents, tmp_path):
    """A folder with a recipe and documents; a bundle is to be merged into bundle/."""
    lines = []
    for n in range(4):
        PIL.Image.new("RGB", (16, 16), (60 * n, 90, 250 - 60 * n)).save(tmp_path / f"{n}.png")
        lines.append({"segments": [{"text": f"tint {n}"}, {"image": f"{n}.png"}]})
    (tmp_path / "squares.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_resumes_exactly_and_generates(kind, parents, project, monkeypatch, capsys):
    merge(parents, project / "bundle", KINDS[kind])
    recipe = load_recipe(project / "recipe.toml")
    whole, cut = project / "whole", project / "cut"
    run(recipe, whole, only=TRAIN)
    real = loop.checkpoint.Saver.save

    def save(self, done, *rest):
        real(self, done, *rest)
        if done == 2:
            raise Interrupted(done, 4)

    with monkeypatch.context() as patch:
        patch.setattr(loop.checkpoint.Saver, "save", save)
        with pytest.raises(Interrupted):
            run(recipe, cut, only=TRAIN)
    run(recipe, cut, only=TRAIN)
    assert len(losses(whole)) == 4
    assert losses(cut) == losses(whole)
    weights = [folder / "bundle" / "model.safetensors" for folder in (cut, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    before, after = (
        load_file(f / "model.safetensors") for f in (project / "bundle", cut / "bundle")
    )
    assert before.keys() == after.keys()
    unchanged = [name for name in before if torch.equal(before[name], after[name])]
    assert not unchanged
    made_by = json.loads((cut / "bundle" / "bundle.json").read_text())["made_by"]
    assert made_by["recipe"] == "merged"
    image = project / "image.png"
    request = ["generate", str(cut), "tint", "--mode", "image", "--guidance", "2"]
    assert main([*request, "--out", str(image)]) == 0
    with PIL.Image.open(image) as written:
        assert written.size == (16, 16)


def losses(folder):
    return [line["loss"] for line in read_metrics(folder / "training" / "metrics.jsonl")]


def test_a_model_of_two_trunks_is_trained_from_nothing(parents, project, codec):
    """Without parents, as any other shape that a recipe describes."""
    merge(parents, project / "bundle", KINDS["cross"])
    text = RECIPE.replace('start_from = "bundle"', 'image_tokenizer_from = "bundle"')
    shape = """[model]
kind = "cross"
d_model = 16
n_layers = 2
attention = { n_heads = 2 }
feed_forward = { width = 16 }
cross = { interval = 2, feed_forward = false }
"""
    text = text.replace("[model]\n", shape) + "[text_tokenizer]\nvocab_size = 280\n"
    (project / "recipe.toml").write_text(text)
    out = project / "new"
    run(load_recipe(project / "recipe.toml"), out, only=("text_tokenizer", *TRAIN))
    assert len(losses(out)) == 4
    found = load_file(out / "bundle" / "model.safetensors")
    assert "trunk.image_cross_blocks.0.attention.q_proj.weight" in found
