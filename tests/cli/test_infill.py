"""``pardalis generate --infill`` and ``--candidates``."""

import json

import numpy as np
import PIL.Image
import pytest
from shapes import decoder_config

from pardalis.bundle import Bundle
from pardalis.cli.main import main
from pardalis.codec import Codec
from pardalis.model import Decoder, initialise
from pardalis.tokens import END_MASK, mask_names


@pytest.fixture(scope="module")
def folder(codec, tmp_path_factory):
    vocabulary = codec.vocabulary.extended([*mask_names(3), END_MASK], writable=[END_MASK])
    codec = Codec(vocabulary, codec.text_tokenizer, codec.image_tokenizer)
    config = decoder_config(
        vocab_size=vocabulary.size, context=48, d_model=32, n_layers=2, n_heads=4, d_ff=64,
        init_std=0.3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    Bundle(initialise(Decoder(config), 0).eval(), codec, {}).save(folder)
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pixels = np.arange(768, dtype=np.uint8).reshape(16, 16, 3)
    PIL.Image.fromarray(pixels).save("photo.png")

    def call(*arguments):
        code = main(["generate", str(folder), *arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


def test_masks_of_texts(run):
    asked = ("--infill", "An <mask> sat <mask>", "photo.png", "--max-new-tokens", "4")
    code, out, err = run(*asked)
    assert code == 0
    assert not err or "The completion is truncated" in err
    assert out.startswith("An")
    assert out.endswith("[image]\n")
    result = json.loads(run(*asked, "--json", "--logprobs", "1")[1])
    assert len(result["filled"]) == 2
    assert result["logprobs"]
    whole = "".join(part.get("text", "[image]") for part in result["completion"])
    assert whole + "\n" == out


def test_an_image_is_drawn_and_half_of_one(run, tmp_path):
    code, out, _ = run("--infill", "<mask:image>owl", "--out", "owl.png", "--guidance", "2")
    assert (code, out) == (0, "[image]owl\n")
    assert np.asarray(PIL.Image.open(tmp_path / "owl.png")).shape == (16, 16, 3)
    code, out, _ = run("--infill", "owl", "photo.png", "--hide", "0.5:1", "--out", "half.png")
    assert (code, out) == (0, "owl[image]\n")
    assert np.asarray(PIL.Image.open(tmp_path / "half.png")).shape == (16, 16, 3)
    assert run("--infill", "a <mask>", "--max-new-tokens", "3", "--out", "page.html")[0] == 0
    assert (tmp_path / "page.html").is_file()


def test_the_best_of_several(run, tmp_path):
    asked = ("owl", "--mode", "image", "--candidates", "3", "--pool", "half_top_p_half_cd_k")
    code, out, _ = run(*asked, "--out", "owl.png")
    assert (code, out) == (0, "[image]\n")
    result = json.loads(run(*asked, "--json", "--pool-k", "3", "--guidance", "2")[1])
    scores = [each["score"] for each in result["scores"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert run(*asked, "--max-slots", "1", "--rank-by", "likelihood")[0] == 6  # CD-K takes two


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--infill", "owl"], "The prompt has no mask"),
        (["--infill", "a <mask>", "--candidates", "2"], "--infill and --candidates cannot stand"),
        (["--infill", "a <mask>", "--stream"], "leave it out"),
        (
            ["--infill", "a <mask>", "--retrieve", "i"],
            "--retrieve does not apply to --infill",
        ),
        (["owl", "--candidates", "2", "--documents", "1"], "give --retrieve too"),
        (
            ["--infill", "a", "--hide", "0:1"],
            "rows TOP:BOTTOM of one image, such as 0.5:1, but the",
        ),
        (["--infill", "a", "photo.png", "--hide", "half"], "such as 0.5:1, but got 'half'"),
        (["--infill", "a", "photo.png", "--hide", "1.2.3:1"], "such as 0.5:1, but got '1.2.3:1'"),
        (["--infill", "a", "photo.png", "--hide", ".:1"], "such as 0.5:1, but got '.:1'"),
        (["--infill", "a", "photo.png", "--hide", "1:0"], "The rows of a mask must be two numbers"),
        (["--infill", "a <mask>", "--mode", "text"], "mode does not apply to infilling"),
        (["owl", "--mode", "image", "--candidates", "0"], "candidates must be a whole number"),
        (["--infill", "--prompts", "a.txt", "--out", "b"], "are for one prompt; leave --prompts"),
        (["owl", "photo.png", "--hide", "0:1"], "--hide applies to --infill only; give that too"),
        (["owl", "--pool", "same"], "--pool applies to --candidates only; give that too"),
        (["owl", "--pool-alpha", "0.1"], "--pool-alpha applies to --candidates only"),
        (["--infill", "a <mask>", "--pool-k", "3"], "--pool-k applies to --candidates only"),
        (["owl", "--rank-by", "prompt"], "--rank-by applies to --candidates only"),
        (
            ["--infill", "a <mask:foo>"],
            "no <mask:foo>; a mask is <mask>, <mask:image> or <mask:any>",
        ),
        (["owl", "--unconditional", "mask"], "unconditional applies to guidance only"),
    ],
)
def test_what_cannot_be_done(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (6, "")
    assert message in err
