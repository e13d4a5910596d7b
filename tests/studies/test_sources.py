"""Scores by source: which images are compared with which, and what of it is a task."""

import json
import re
import shutil
from pathlib import Path

import PIL.Image
import pytest
from PIL import ImageDraw

from pardalis.cli.main import main
from pardalis.documents import Document, Image, Text
from pardalis.errors import ConfigError, DataError
from pardalis.pipeline import load_recipe, run
from pardalis.studies import sources as sources_module
from pardalis.studies.sources import SourcesConfig, study_sources

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220), "green": (40, 180, 60)}
STYLES = ("a filled drawing", "an outlined drawing")
HELD_OUT = ("green", STYLES[1])

RECIPE = """
name = "shapes"
[[sources]]
name = "pairs"
reader = "jsonl"
path = "pairs.jsonl"
[[sources]]
name = "prose"
reader = "jsonl"
path = "prose.jsonl"
[[heldout]]
name = "cells"
reader = "jsonl"
path = "cells.jsonl"
[[heldout]]
name = "redraw"
reader = "jsonl"
path = "redraw.jsonl"
[[heldout]]
name = "asked"
reader = "jsonl"
path = "asked.jsonl"
[text_tokenizer]
vocab_size = 280
[image_tokenizer]
preset = "tiny"
resolution = 32
channels = 16
z_channels = 16
code_width = 8
n_codes = 32
[image_tokenizer_training]
batch_images = 4
[image_tokenizer_training.schedule]
learning_rate = 2e-3
[image_tokenizer_loop]
steps = 4
[prepare]
row_tokens = 128
[model]
preset = "tiny"
d_model = 32
n_layers = 1
[training]
batch_rows = 2
[training.schedule]
learning_rate = 1e-3
[training_loop]
steps = 2
[sample]
images = 0
captions = 0
pages = 0
guidance = 2.0
image = { temperature = 0.5 }
"""


def drawing(colour: tuple[int, int, int], is_filled: bool) -> PIL.Image.Image:
    image = PIL.Image.new("RGB", (32, 32), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((4, 4, 28, 28), fill=colour if is_filled else None, outline=colour, width=4)
    return image


def write(path: Path, documents: list[dict]) -> None:
    path.write_text("".join(json.dumps(each) + "\n" for each in documents))


def asked(name: str, request: str, *answer: dict) -> dict:
    segments = [
        {"text": request, "role": "user"},
        *({**part, "role": "assistant"} for part in answer),
    ]
    return {"name": name, "segments": segments}


def captioned(pair: dict) -> dict:
    text, image = pair["segments"]
    return {**image, "alt": text["text"]}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """A finished run of circles in two styles, of which one combination is held out."""
    folder = tmp_path_factory.mktemp("shapes")
    documents = {}
    for name, colour in COLOURS.items():
        for style in STYLES:
            file = f"{name}-{STYLES.index(style)}.png"
            drawing(colour, style == STYLES[0]).save(folder / file)
            segments = [{"text": f"{style} of {name}"}, {"image": file}]
            documents[name, style] = {"name": f"{name}/{style}", "segments": segments}
    cell = documents.pop(HELD_OUT)
    known = documents[HELD_OUT[0], STYLES[0]]
    write(folder / "pairs.jsonl", list(documents.values()))
    write(folder / "prose.jsonl", [{"name": "prose", "segments": [{"text": "Green is a colour."}]}])
    write(folder / "cells.jsonl", [cell])
    both = {"name": "redraw", "segments": [*known["segments"], *cell["segments"]]}
    write(folder / "redraw.jsonl", [both])
    write(folder / "asked.jsonl", [
        asked("draw", "Draw green.", captioned(cell)),
        asked("page", "Two, please.", {"text": "Here."}, captioned(known)),
        asked("name", "What is green?", {"text": "A colour."}),
    ])  # fmt: skip
    (folder / "shapes.toml").write_text(RECIPE)
    recipe = load_recipe(folder / "shapes.toml")
    run(recipe, folder / "run", ("text_tokenizer", "image_tokenizer", "prepare", "train"))
    return folder / "run"


ANSWERS = {
    "Draw green.": Document((Image(drawing(COLOURS["green"], False)),)),
    "Two, please.": Document((Text(" Here. "),)),
    "What is green?": Document((Text("a colour."),)),
}


@pytest.fixture
def originals(shapes, monkeypatch):
    """Generation that returns the original of each prompt; the prompts are recorded."""
    prompts = []
    images = {f"{style} of {name}": drawing(colour, style == STYLES[0])
              for name, colour in COLOURS.items() for style in STYLES}  # fmt: skip

    def generate_many(bundle, some, config, seed, retriever=None):
        for prompt in some:
            if config.mode == "text":
                yield Document((Text(" a filled drawing of green "),))
            elif config.mode == "interleaved":  # an answer
                yield ANSWERS[prompt.text]
            else:
                prompts.append((prompt.segments, config))
                yield Document((Image(images[prompt.segments[-1].text]),))

    monkeypatch.setattr(sources_module, "generate_many", generate_many)
    return prompts


def test_every_source_with_captioned_images_is_scored(shapes, originals, tmp_path):
    config = SourcesConfig(label_before=" of ", grid=4)
    result = study_sources(shapes, tmp_path / "out", config)
    assert (
        json.loads((tmp_path / "out" / "sources.json").read_text())["sources"]
        == (result["sources"])
    )
    assert list(result["sources"]) == ["pairs", "cells", "redraw", "asked"]  # prose has no image
    pairs, cells, redraw, _ = result["sources"].values()
    assert [each["is_held_out"] for each in (pairs, cells, redraw)] == [False, True, True]
    assert (pairs["images"], cells["images"], redraw["images"]) == (5, 1, 1)
    for each in (pairs, cells, redraw):
        assert each["retrieval"] == each["retrieval_in_label"] == 1.0
    assert result["gallery"] == 6
    assert result["chance"] == pytest.approx(1 / 6)
    assert pairs["label"] == pairs["label_of_originals"] == 1.0
    assert 0 <= pairs["label_of_reconstructions"] <= 1
    assert cells["by_label"][HELD_OUT[1]]["images"] == 1
    # The filled circle in the place of the outlined one is nearest to itself.
    assert cells["retrieval_of_other_labels"] == 0.0
    assert (cells["caption_exact"], cells["caption_label"], cells["caption_rest"]) == (0, 0, 1)
    assert pairs["captions"] == 5
    assert "captions" not in redraw  # an image after more than a caption has none of its own


def test_answers_need_their_modalities_and_their_text(shapes, originals, tmp_path):
    result = study_sources(shapes, tmp_path / "out", SourcesConfig(label_before=" of "))
    scores = result["sources"]["asked"]
    assert scores["answers"] == 3
    # The page has its text and no image; the drawing is right; the name is right but for its case.
    assert scores["modalities"] == pytest.approx(2 / 3)
    assert scores["answer_exact"] == 1.0
    assert (scores["images"], scores["retrieval"], scores["label"]) == (2, 0.5, 0.5)
    assert scores["by_label"][HELD_OUT[1]]["images"] == 1
    assert len(list((tmp_path / "out" / "images" / "asked").iterdir())) == 1


def test_all_before_the_last_image_is_the_prompt(shapes, originals, tmp_path):
    study_sources(shapes, tmp_path / "out", SourcesConfig())
    segments, config = originals[-1]
    assert [type(segment) for segment in segments] == [Text, Image, Text]
    assert segments[2].text == "an outlined drawing of green"
    # As the recipe's table says.
    assert (config.guidance, config.image_temperature) == (2.0, 0.5)


def test_what_cannot_be_generated_or_compared_is_left_out(shapes, originals, tmp_path, caplog):
    """A damaged image in one source, and a prompt that is longer than the context in another."""
    for path in shapes.parent.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path / path.name)
    shutil.copytree(shapes, tmp_path / "run")
    recipe = (shapes / "recipe.toml").read_text().replace(str(shapes.parent), str(tmp_path))
    (tmp_path / "run" / "recipe.toml").write_text(recipe)
    blue = tmp_path / "blue-0.png"
    blue.write_bytes(blue.read_bytes()[:60])
    long = json.loads((tmp_path / "cells.jsonl").read_text())
    long["segments"][0]["text"] *= 100
    write(tmp_path / "cells.jsonl", [long])
    result = study_sources(tmp_path / "run", tmp_path / "out", SourcesConfig())
    assert {name: each["images"] for name, each in result["sources"].items()} == {
        "pairs": 4,
        "redraw": 1,
        "asked": 2,
    }
    assert "Left out of the scores: 2; the first: " in caplog.text
    assert "blue-0.png is truncated or damaged" in caplog.text
    *with_images, _ = (tmp_path / "asked.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "asked.jsonl").write_text("".join(with_images))
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="No document of the sources can be scored; the first: "):
        study_sources(tmp_path / "run", tmp_path / "other", SourcesConfig())


def test_the_grid_frames_what_was_held_out(shapes, originals, tmp_path):
    study_sources(shapes, tmp_path / "out", SourcesConfig(label_before=" of ", grid=4))
    grid = PIL.Image.open(tmp_path / "out" / "grid.png")
    assert grid.size == (2 * 44, 44)  # green in both styles
    frame = sources_module._FRAME
    assert [grid.getpixel((44 * column + 2, 20)) == frame for column in range(2)] == [False, True]


def test_images_of_a_real_model_are_written(shapes, tmp_path, capsys):
    out = tmp_path / "scores"
    arguments = ["evaluate", str(shapes), "-o", str(out), "--images", "2", "--captions", "1"]
    assert main([*arguments, "--label-before", " of ", "--temperature", "0"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == [
        "source", "images", "retrieval", "in", "label", "label", "captions", "exact", "F1",
        "answers", "modality", "exact", "F1",
    ]  # fmt: skip
    assert printed[1].split()[:2] == ["pairs", "2"]
    assert len(list((out / "images" / "pairs").iterdir())) == 2
    first = (out / "images" / "pairs" / "0000.png").read_bytes()
    assert main([*arguments, "--label-before", " of ", "--temperature", "0"]) == 0  # replaced
    assert (out / "images" / "pairs" / "0000.png").read_bytes() == first


def test_what_is_refused(shapes, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(ConfigError, match=r"mine exists and holds no sources.json, so it is not"):
        study_sources(shapes, tmp_path / "mine", SourcesConfig())
    assert (tmp_path / "mine" / "thesis.txt").exists()
    with pytest.raises(ConfigError, match=r"No caption of a training source contains ' by '"):
        study_sources(shapes, tmp_path / "out", SourcesConfig(label_before=" by "))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="label_before must not be empty"):
        SourcesConfig(label_before="")
    with pytest.raises(ConfigError, match="candidates must be at least 2, got 1"):
        SourcesConfig(candidates=1)


def test_a_run_without_captioned_images(shapes, tmp_path):
    text = (shapes / "recipe.toml").read_text()
    (tmp_path / "recipe.toml").write_text(
        re.sub(r"(pairs|cells|redraw|asked)\.jsonl", "prose.jsonl", text)
    )
    with pytest.raises(
        ConfigError, match="has conversations, or documents that end with an image after"
    ):
        study_sources(tmp_path, tmp_path / "out", SourcesConfig())


def test_shares_without_values_are_none():
    assert sources_module._share([]) is None
    assert sources_module._share([True, False]) == 0.5
