"""``pardalis score``: lines of prompts and continuations to numbers."""

import json

import PIL.Image
import pytest
from shapes import decoder_config

import pardalis
from pardalis.bundle import Bundle
from pardalis.cli.main import main
from pardalis.model import Decoder, initialise


@pytest.fixture(scope="module")
def folder(codec, tmp_path_factory):
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=40, d_model=32, n_layers=2, n_heads=4,
        n_kv_heads=2, d_ff=64, init_std=0.3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    Bundle(initialise(Decoder(config), 0).eval(), codec, {}).save(folder)
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capsys):
    """Run ``pardalis score`` on lines in an empty folder; return its code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    PIL.Image.new("RGB", (20, 20), "red").save("red.png")

    def call(*lines, name="lines.jsonl", options=()):
        texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        (tmp_path / name).write_text("".join(text + "\n" for text in texts))
        code = main(["score", str(folder), name, *options])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


LINES = [
    {"prompt": "An owl", "continuation": " sat"},
    {"prompt": ["what", {"image": "red.png"}], "continuation": [{"text": "owl"}]},
    {"prompt": "red", "continuation": {"image": "red.png"}},
]


def test_numbers_of_each_line(run, folder, tmp_path):
    code, out, err = run(*LINES)
    assert (code, err) == (0, "")
    red = tmp_path / "red.png"
    pairs = [("An owl", " sat"), (["what", red], "owl"), ("red", red)]
    expected = pardalis.score(pardalis.load(folder), pairs)
    for line, score in zip(out.splitlines(), expected, strict=True):
        log_prob, text = line.split(" ", 1)
        assert float(log_prob) == pytest.approx(score.log_prob, abs=1e-3)
        assert text == f"in {len(score.log_probs)} tokens" + ", greedy" * score.greedy
    for found, score in zip(json.loads(run(*LINES, options=["--json"])[1]), expected, strict=True):
        assert found["log_probs"] == pytest.approx(score.log_probs, abs=1e-5)
        assert found["log_prob"] == pytest.approx(score.log_prob, abs=1e-4)
        assert found["greedy"] == score.greedy


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "The line is not JSON: "),
        ({"prompt": "owl"}, 'must have a "prompt", a "continuation" and nothing else, but it has '),
        ({"prompt": "a", "continuation": "b", "seed": 1}, "it has continuation, prompt, seed."),
        ({"continuation": "b"}, 'The line must be an object with a "prompt"'),
        ({"prompt": "a", "continuation": ""}, "The continuation has no tokens"),
        (
            {"prompt": "a" * 39, "continuation": "b"},
            "have 41 tokens, more than the model's context",
        ),
        ({"prompt": "a", "continuation": {"image": "none.png"}}, "'none.png' is not a file in"),
        ({"prompt": {"image": "lines.jsonl"}, "continuation": "a"}, "is not an image"),
    ],
)
def test_a_wrong_line_is_named(line, message, run):
    code, out, err = run(*LINES, "", line)
    assert (code, out) == (6, "")
    assert err.startswith("pardalis: lines.jsonl:5: ")
    assert message in err


def test_another_kind_of_file(run):
    code, _, err = run("owl", name="lines.txt")
    assert (code, err) == (
        6,
        "pardalis: A file of continuations is a .jsonl file, got lines.txt.\n",
    )
