"""``pardalis score``: lines of prompts and continuations to numbers."""

import json
import math
from pathlib import Path

import PIL.Image
import pytest
from shapes import decoder_config

import pardalis
from pardalis.bundle import Bundle
from pardalis.cli.main import main
from pardalis.documents import Document, Text
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


def test_bits_per_byte_of_documents(run, folder):
    texts = ["An owl sat.", "Eine kleine Eule saß da."]
    documents = [{"segments": [{"text": text[:4]}, {"text": text[4:]}]} for text in texts]
    expected = pardalis.score(pardalis.load(folder), [("", [text[:4], text[4:]]) for text in texts])
    n_bytes = [len(text.encode()) for text in texts]
    bits = -sum(score.log_prob for score in expected) / math.log(2) / sum(n_bytes)
    code, out, err = run(*documents)
    assert (code, err) == (0, "")
    *_, last = out.splitlines()
    n_tokens = sum(len(score.log_probs) for score in expected)
    assert last == f"{bits:.4f} bits per byte: 2 texts, {sum(n_bytes)} bytes, {n_tokens} tokens"
    found = json.loads(run(*documents, options=["--json"])[1])
    assert [each["bytes"] for each in found] == n_bytes
    assert [each["log_prob"] for each in found] == pytest.approx([s.log_prob for s in expected])
    *_, last = run(*LINES[:2])[1].splitlines()
    assert "bits per byte: 2 texts, 7 bytes, " in last  # of the continuations


def test_images_have_no_bytes(run):
    document = {"segments": [{"text": "red"}, {"image": "red.png"}]}
    assert "bits per byte" not in run(document)[1]
    assert json.loads(run(document, options=["--json"])[1])[0]["bytes"] is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"segments": [{"image": "none.png"}]}, "'none.png', which is not a file"),
        ({"segments": [{"text": "owl", "role": "user"}]}, "The document is a conversation, which"),
        ({"prompt": "a", "continuation": "b"}, "document has unknown keys continuation, prompt"),
        ({"segments": [{"text": "a" * 50}]}, "more than the model's context"),
    ],
)
def test_a_wrong_document_is_named(line, message, run):
    code, out, err = run({"segments": [{"text": "An owl."}]}, "", line)
    assert (code, out) == (6, "")
    assert err.startswith("pardalis: lines.jsonl:3: ")
    assert message in err


QUESTIONS = [
    {"prompt": "What is 2?", "answers": ["two"]},
    {"prompt": [{"image": "red.png"}, "?"], "answers": ["red", "a red square"]},
]


def test_questions_are_answered_and_judged(run, monkeypatch):
    asked = []

    def generate_many(bundle, prompts, config, **how):
        asked.append((prompts, config))
        return [Document((Text(" It is two. Or three."),)), Document((Text("Blue.\nRed."),))]

    monkeypatch.setattr("pardalis.inference.generate_many", generate_many)
    code, out, err = run(*QUESTIONS)
    assert (code, err) == (0, "")
    assert out.splitlines() == ["right: It is two.", "wrong: Blue.", "1 of 2 answers are right"]
    assert json.loads(run(*QUESTIONS, options=["--json"])[1]) == [
        {"answer": " It is two. Or three.", "is_right": True},
        {"answer": "Blue.\nRed.", "is_right": False},
    ]
    prompts, config = asked[0]
    assert prompts == [[Text("What is 2?")], [Path("red.png"), Text("?")]]
    assert (config.chat, config.mode, config.temperature) == (True, "text", 0)


def test_a_model_answers_with_its_most_likely_tokens(run, folder):
    found = json.loads(run(QUESTIONS[0], options=["--json"])[1])
    answer = pardalis.generate(folder, "What is 2?", chat=True, mode="text", temperature=0)
    assert answer.text.startswith(found[0]["answer"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "a", "continuation": "b"}, 'must have a "prompt", its "answers" and nothing'),
        ({"prompt": "a", "answers": []}, '"answers" must be a list of one text or more'),
        ({"prompt": "a", "answers": ["b", " "]}, "none of them empty"),
        ({"prompt": "a", "answers": "b"}, '"answers" must be a list'),
        ({"prompt": "a" * 50, "answers": ["b"]}, "context"),
    ],
)
def test_a_wrong_question_is_named(line, message, run):
    code, out, err = run(QUESTIONS[0], "", line)
    assert (code, out) == (6, "")
    assert err.startswith("pardalis: lines.jsonl:3: ")
    assert message in err


def test_another_kind_of_file(run):
    code, _, err = run("owl", name="lines.txt")
    assert (code, err) == (
        6,
        "pardalis: A file of continuations is a .jsonl file, got lines.txt.\n",
    )
