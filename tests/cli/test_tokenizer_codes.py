"""``tokenizer encode`` and ``tokenizer decode``, as a user runs them."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from shapes import decoder_config

from pardalis.bundle import Bundle
from pardalis.cli.main import main
from pardalis.model import Decoder, initialise


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Return a function that runs a command in an empty folder and returns what it printed."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)

    def run(*arguments: object, code: int = 0) -> str:
        assert main(["--quiet", "tokenizer", *map(str, arguments)]) == code
        shown = capsys.readouterr()
        assert (shown.out == "") == (code != 0)
        return shown.err if code else shown.out

    return run


@pytest.fixture
def tokenizer(codec, tmp_path) -> Path:
    codec.image_tokenizer.save(tmp_path / "vq")
    return tmp_path / "vq"


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(3):
        array = generator.integers(0, 256, (20, 16, 3), dtype=np.uint8)
        PIL.Image.fromarray(array).save(folder / f"{i}.png")
    (folder / "empty.jpg").touch()
    return folder


def test_round_trip(run, tokenizer, photos):
    shown = run("encode", tokenizer, photos, "-o", "codes")
    rejected = "codes: 4 images, 1 of them rejected, see codes/part-*.rejected.jsonl\n"
    assert shown.startswith(f"{rejected}  4 in ")
    shown = run("encode", tokenizer, photos, "-o", "codes")
    assert shown.startswith(f"{rejected}  4 had been processed before\n  0 in ")
    assert np.load("codes/part-00000.npy").shape == (3, 4)
    shown = json.loads(run("decode", tokenizer, "codes", "-o", "back", "--json"))
    assert shown["images"] == 3
    assert shown["images_per_second"] > 0
    assert sorted(path.name for path in Path("back").iterdir()) == ["0.png", "1.png", "2.png"]
    with PIL.Image.open("back/0.png") as image:
        assert image.size == (16, 16)


def test_options_are_used(run, tokenizer, photos):
    rows = {}
    for name, options in {
        "crop": (),
        "pad": ("--image-fit", "pad"),
        "sixteen": ("--dtype", "bfloat16", "--batch", 2),
    }.items():
        run("encode", tokenizer, photos, "-o", name, *options)
        rows[name] = np.load(f"{name}/part-00000.npy")
    assert not np.array_equal(rows["crop"], rows["pad"])
    assert json.loads(Path("sixteen/codes.json").read_text())["dtype"] == "bfloat16"
    shown = json.loads(run("encode", tokenizer, photos, "-o", "none", "--shard", "1/2", "--json"))
    assert shown["images"] == 0


def test_a_bundle_and_a_jsonl_source_are_accepted(run, codec, photos, tmp_path):
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=8, d_model=8, n_layers=1, n_heads=2,
        n_kv_heads=2, d_ff=8,
    )  # fmt: skip
    Bundle(initialise(Decoder(config), 0).eval(), codec, {}).save(tmp_path / "bundle")
    line = {"name": "first", "segments": [{"image": "photos/0.png"}]}
    Path("pages.jsonl").write_text(json.dumps(line))
    run("encode", "bundle", "pages.jsonl", "-o", "codes")
    assert Path("codes/part-00000.jsonl").read_text() == '"first"\n'


def test_a_tokenizer_folder_shows_the_codes_of_an_image(run, tokenizer, photos):
    run("encode", tokenizer, photos, "-o", "codes")
    first = np.load("codes/part-00000.npy")[0]
    shown = run("show", tokenizer, "--image", photos / "0.png", "--out", "back.png")
    assert shown.split() == [str(code) for code in first]
    assert Path("back.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["encode", "none", "photos", "-o", "codes"], 4, "none does not exist; give the folder of"),
        (["encode", "vq", "none", "-o", "codes"], 3, "none"),
        (["encode", "vq", "photos", "-o", "codes", "--batch", "0"], 2, "--batch must be at least"),
        (["encode", "vq", "photos", "-o", "codes", "--shard", "1"], 2, "--shard must read I/N"),
        (
            ["encode", "vq", "photos", "-o", "codes", "--shard", "2/2"],
            2,
            "rank must be from 0 to size - 1, got rank 2",
        ),
        (["decode", "vq", "photos", "-o", "back"], 3, "No codes in photos: codes.json is missing"),
    ],
)
def test_errors_are_one_line_with_an_exit_code(run, tokenizer, photos, arguments, code, message):
    shown = run(*arguments, code=code)
    assert shown.startswith("pardalis: ")
    assert message in shown
    assert shown.count("\n") == 1
    assert not Path("codes").exists()
