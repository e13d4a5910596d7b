"""Fine-tuning on conversations, end to end: three of them are learnt, and answered greedily."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

import pardalis
from pardalis.cli.main import main
from pardalis.data import PrepareReport
from pardalis.documents import Document, Image, Text
from pardalis.errors import DataError
from pardalis.pipeline import load_recipe, run
from pardalis.train import read_metrics

RECIPE = """
name = "talk"
start_from = "base/run"
image_fit = "pad"

[[sources]]
name = "talk"
reader = "chat"
path = "talk"

[prepare]
row_tokens = 64

[model]
dropout = 0.0

[training]
batch_rows = 2
[training.objective]
kind = "sft"
[training.schedule]
kind = "warmup_cosine"
learning_rate = 1e-2
warmup_steps = 5

[training_loop]
steps = 150
save_every = 50
report_every = 10

[sample]
images = 0
captions = 0
pages = 0
"""

WHAT = {"type": "image_url", "image_url": {"url": "red.png"}}
CONVERSATIONS = [
    [("user", "What is the owl?"), ("assistant", "A bird.")],
    [("user", [WHAT, {"type": "text", "text": "Which?"}]), ("assistant", "red ellipse")],
    [("user", "Draw it."), ("assistant", [{"type": "image", "image": "blue.png"}])],
]
ALONE = {"messages": [{"role": "user", "content": "alone?"}]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, write_project) -> Path:
    """A folder with a finished run in base/, and one of its fine-tuning in run/."""
    folder = tmp_path_factory.mktemp("sft")
    (folder / "base").mkdir()
    first = write_project(folder / "base")
    stages = ("text_tokenizer", "image_tokenizer", "prepare", "train")
    run(load_recipe(first / "recipe.toml"), first / "run", only=stages)
    (folder / "talk").mkdir()
    for name in ("red", "blue"):
        shutil.copy(first / "images" / f"{name}-ellipse.png", folder / "talk" / f"{name}.png")
    records = [
        {"messages": [{"role": role, "content": content} for role, content in turns]}
        for turns in CONVERSATIONS
    ]
    lines = "".join(json.dumps(record) + "\n" for record in [*records, ALONE])
    (folder / "talk" / "talk.jsonl").write_text(lines)
    (folder / "recipe.toml").write_text(RECIPE)
    run(load_recipe(folder / "recipe.toml"), folder / "run")
    return folder


@pytest.fixture(scope="module")
def bundle(trained) -> pardalis.Bundle:
    return pardalis.load(trained / "run")


def answer(bundle: pardalis.Bundle, *prompt) -> Document:
    return pardalis.generate(bundle, list(prompt), chat=True, temperature=0.0, max_new_tokens=24)


def test_the_answers_are_learnt(trained, bundle):
    red, blue = trained / "talk" / "red.png", trained / "talk" / "blue.png"
    assert answer(bundle, "What is the owl?").text == "A bird."
    assert answer(bundle, red, "Which?").text == "red ellipse"
    drawn = answer(bundle, "Draw it.")
    [image] = drawn.images
    assert not drawn.text
    codes = bundle.codec.image_tokenizer.codes_of([blue])
    [expected] = bundle.codec.image_tokenizer.images_of(codes)
    assert np.array_equal(np.asarray(image.source), np.asarray(expected))


def test_the_loss_is_that_of_the_answers(trained):
    metrics = read_metrics(trained / "run" / "training" / "metrics.jsonl")
    assert metrics[0]["loss"] > 2 and metrics[-1]["loss"] < 0.05
    report = PrepareReport.from_dict(
        json.loads((trained / "run" / "shards" / "talk" / "report.json").read_text())
    )
    assert (report.read, report.written, report.rejected["no-answer"].count) == (4, 3, 1)
    assert (report.turns.prompt_images, report.turns.answer_images) == (1, 1)
    assert metrics[-1]["tokens"] == 2 * report.turns.answer_tokens  # the one row, twice


def test_the_report_shows_what_is_learnt(trained):
    page = (trained / "run" / "report.html").read_text()
    assert "What of the conversations is learnt" in page and "22.2 %" in page  # 4 of 18 tokens
    assert "has no turn of the assistant" in page


def test_images_of_prompts_are_padded_and_those_of_answers_cropped(trained, bundle):
    assert bundle.codec.image_fit == "pad"
    wide = Image(np_image(), role="user"), Image(np_image(), role="assistant")
    document = Document((wide[0], Text("?", "user"), wide[1]))
    ids = bundle.codec.encode(document).ids
    images = [
        ids[span.start : span.stop].tolist()
        for span in bundle.codec.grammar.spans(ids)
        if span.kind.name == "IMAGE"
    ]
    assert images[0] != images[1]


def np_image():
    import PIL.Image

    pixels = np.zeros((16, 48, 3), dtype=np.uint8)
    pixels[:, :16], pixels[:, 32:] = (255, 0, 0), (0, 0, 255)
    return PIL.Image.fromarray(pixels)


def test_data_show_marks_what_is_learnt(trained, capsys, monkeypatch):
    show = ["data", "show", str(trained / "run"), "--source", "talk", "--row", "0", "--loss-mask"]
    assert main(show) == 0
    plain = capsys.readouterr().out
    assert "What is the owl?<end_turn>«A bird.<eos>»" in plain
    assert "Draw it.<end_turn>«<begin_image>[4 codes]<end_image><eos>»" in plain
    assert main([*show, "--json"]) == 0
    documents = json.loads(capsys.readouterr().out)["documents"]
    runs = {each["name"]: each["runs"] for each in documents}
    assert [(r["weight"], r["text"]) for r in runs["talk:1"]] == [
        (0, "<bos>What is the owl?<end_turn>"), (1, "A bird.<eos>"),
    ]  # fmt: skip
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert main(show) == 0
    coloured = capsys.readouterr().out
    assert "\x1b[1;32mA bird.<eos>\x1b[0m" in coloured and "«" not in coloured


def test_another_average_does_not_prepare_again(trained, tmp_path, caplog):
    folder = shutil.copytree(trained / "run", tmp_path / "run")
    few = [
        "training_loop.steps=2",
        "training.schedule.warmup_steps=0",
        "training.objective.average=conversation",
    ]
    with caplog.at_level(logging.INFO):
        run(load_recipe(trained / "recipe.toml", few), folder, only=("prepare", "train"))
    assert any("prepare" in message and "unchanged" in message for message in caplog.messages)
    again = read_metrics(folder / "training" / "metrics.jsonl")
    assert again[-1]["step"] == 2


def test_another_objective_prepares_again(trained, tmp_path):
    """Nobody trains on prompts by mistake, or on answers only: the shards are of one objective."""
    folder = shutil.copytree(trained / "run", tmp_path / "run")
    plain = [
        "training_loop.steps=2",
        "training.schedule.warmup_steps=0",
        "training.objective.kind=next_token",
    ]
    run(load_recipe(trained / "recipe.toml", plain), folder, only=("prepare", "train"))
    report = PrepareReport.from_dict(
        json.loads((folder / "shards" / "talk" / "report.json").read_text())
    )
    assert report.turns is None and report.tokens["text"] > 0


def test_documents_without_roles_are_refused(trained, tmp_path):
    plain = ["sources.0.reader=jsonl", f"sources.0.path={trained / 'base' / 'pairs.jsonl'}"]
    with pytest.raises(DataError, match=r"(?s)no usable document: 10 read, 10 rejected.*no-answer"):
        run(load_recipe(trained / "recipe.toml", plain), tmp_path / "run")


def test_the_command_to_try_is_chat(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    assert main(["run", "recipe.toml", "--out", "run"]) == 0
    assert "\npardalis chat run/bundle\n" in capsys.readouterr().out
