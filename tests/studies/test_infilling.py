"""Scores of gaps: which tasks are made of a pair, and what a model of known answers gets."""

import json

import numpy as np
import PIL.Image
import pytest
from shapes import decoder_config

from pardalis.bundle import Bundle
from pardalis.cli.main import main
from pardalis.codec import Codec
from pardalis.documents import Document, Image, Text
from pardalis.errors import ConfigError
from pardalis.inference import Mask, score
from pardalis.model import Decoder, initialise
from pardalis.studies.infilling import InfillingConfig, image_task, study_infilling, word_task
from pardalis.tokens import END_MASK, mask_names

RECIPE = """
name = "gaps"
[[sources]]
name = "photos"
reader = "folder"
path = "photos"
[text_tokenizer]
[image_tokenizer]
[image_tokenizer_training]
batch_images = 1
[image_tokenizer_training.schedule]
learning_rate = 1e-3
[image_tokenizer_loop]
steps = 1
[prepare]
row_tokens = 48
[model]
[training]
batch_rows = 1
[training.schedule]
learning_rate = 1e-3
[training_loop]
steps = 1
"""


def write_run(folder, codec, *names: str):
    """Write a run of two captioned photos, with a random model whose vocabulary has these ids."""
    vocabulary = codec.vocabulary.extended(names, writable=[n for n in names if n == END_MASK])
    codec = Codec(vocabulary, codec.text_tokenizer, codec.image_tokenizer)
    config = decoder_config(
        vocab_size=vocabulary.size, context=48, d_model=32, n_layers=2, n_heads=4, d_ff=64,
        init_std=0.3,
    )  # fmt: skip
    Bundle(initialise(Decoder(config), 0).eval(), codec, {}).save(folder / "bundle")
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "photos").mkdir()
    for number, caption in enumerate(("An old owl", "A fox")):
        pixels = np.full((16, 16, 3), 90 * number, np.uint8)
        PIL.Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
        (folder / "photos" / f"{number}.txt").write_text(caption)
    return codec


def test_tasks_of_a_pair():
    image = Image(b"")
    task = word_task((Text("a flat owl "), image), 4)
    assert task.masked == (Text("a"), Mask(), Text(" owl"), image)
    assert (task.before, task.removed) == ((Text("a"),), " flat")
    task = word_task((image, Text("a flat owl")), 0)
    assert task.masked == (image, Mask(), Text(" flat owl"))
    assert (task.before, task.removed) == ((image,), "a")
    assert word_task((image, Text("owl")), 7).masked == (image, Mask())
    task = image_task((Text("owl"), image))
    assert task.masked == (Text("owl"), Mask(image=image, rows=(0.0, 0.5)))
    assert task.before == (Text("owl"),)


def test_a_model_with_masks_is_scored_both_ways(codec, tmp_path, capsys):
    codec = write_run(tmp_path, codec, *mask_names(2), END_MASK)
    out = tmp_path / "scores"
    command = ["evaluate", str(tmp_path), "-o", str(out), "--infill", "5"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "infilled" in shown
    assert "photos" in shown
    result = json.loads((out / "infilling.json").read_text())
    scores = result["sources"]["photos"]
    assert (scores["words"], scores["images"], scores["is_held_out"]) == (2, 2, False)
    for way in ("infilled", "from_left"):
        assert 0 <= scores[f"word_{way}"] <= 1
        assert 0 <= scores[f"codes_{way}"] <= 1
        assert scores[f"word_nats_{way}"] > 0
    # The oracle of one of them: the upper half of each image after its caption.
    nats = []
    for number, caption in enumerate(("An old owl", "A fox")):
        photo = Document((Image(tmp_path / "photos" / f"{number}.png"),))
        [found] = score(tmp_path / "bundle", [(caption, photo)])
        nats += found.log_probs[1:3]
    assert scores["code_nats_from_left"] == pytest.approx(-np.mean(nats), abs=1e-4)
    assert main(command) == 0  # its own folder is replaced
    assert main([*command, "--images", "3"]) == 2
    assert "--images does not apply to --infill" in capsys.readouterr().err
    assert main([*command, "--retrieve", "index"]) == 2
    assert "--retrieve does not apply to --infill" in capsys.readouterr().err
    assert main([*command, "--documents", "1"]) == 6
    assert "give --retrieve too" in capsys.readouterr().err


def test_a_model_without_masks_continues_from_the_left(codec, tmp_path):
    write_run(tmp_path, codec)
    out = tmp_path / "scores"
    result = study_infilling(tmp_path, out, InfillingConfig(tasks=1))
    scores = result["sources"]["photos"]
    assert "word_infilled" not in scores
    assert scores["words"] == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    with pytest.raises(ConfigError, match=r"holds no infilling.json, so it is not replaced"):
        study_infilling(tmp_path, tmp_path / "other", InfillingConfig())
    (out / "mine").touch()
    with pytest.raises(ConfigError, match="scores also holds 'mine', so it is not replaced"):
        study_infilling(tmp_path, out, InfillingConfig())
