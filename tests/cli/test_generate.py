"""One prompt or a file of them, from the command line."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from pardalis.bundle import Bundle, load
from pardalis.cli import prompts as prompts_module
from pardalis.cli.main import build_parser, main
from pardalis.cli.prompts import DEFAULTS
from pardalis.inference import generate_many
from pardalis.interop.model import read_bundle
from pardalis.model import Decoder, ModelConfig, initialise


@pytest.fixture(scope="module")
def folder(codec, tmp_path_factory):
    config = ModelConfig(
        vocab_size=codec.vocabulary.size, context=40, d_model=32, n_layers=2, n_heads=4,
        n_kv_heads=2, d_ff=64, init_std=0.3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    Bundle(initialise(Decoder(config), 0).eval(), codec, {}).save(folder)
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capsys):
    """Run ``pardalis generate`` in an empty folder; return its code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = main(["generate", str(folder), *arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


def records(path="answers"):
    with open(f"{path}/answers.jsonl") as file:
        return [json.loads(line) for line in file]


def write_jsonl(path, *lines):
    with open(path, "w") as file:
        file.writelines((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines)


def test_the_defaults_of_a_line_are_those_of_the_command():
    options = build_parser().parse_args(["generate", "bundle", "owl"])
    assert {name: getattr(options, name) for name in DEFAULTS} == DEFAULTS


def test_one_image(run, tmp_path):
    code, out, _ = run("owl", "--mode", "image", "--out", "owl.png", "--guidance", "2")
    assert (code, out) == (0, "[image]\n")
    assert np.asarray(PIL.Image.open(tmp_path / "owl.png")).shape == (16, 16, 3)


def test_streamed_text_is_the_text(run):
    asked = ("An owl", "--max-new-tokens", "12", "--temperature", "1.5", "--seed", "4")
    _, whole, _ = run(*asked)
    assert run(*asked, "--stream") == (0, whole, "")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["owl", "--stream", "--json"], 6, "choose one"),
        (["owl", "--mode", "text", "--guidance", "2"], 6, "leave guidance out"),
        (["owl", "--guidance", "2", "--contrastive", "0.1", "5"], 6, "exclude each other"),
        (["owl", "--contrastive", "0.1", "1.5"], 6, "k of contrastive decoding must be a whole"),
        (["owl", "--contrastive", "2", "5"], 6, "alpha must lie in [0, 1], got 2.0"),
        (["owl", "--top-p", "0"], 6, ": top_p must lie in (0, 1], got 0.0"),
        (["owl", "--image-top-p", "0"], 6, ": image_top_p must lie in (0, 1], got 0.0"),
        (["owl", "--contrastive", "0.1", "inf"], 6, "k of contrastive decoding must be a whole"),
        ([], 6, 'A prompt is needed: give texts and images, "" to begin with nothing'),
        (["a red owl.png"], 6, "No image at a red owl.png"),
        (["owl.svg"], 6, "No image at owl.svg"),
        (["owl", "--mode", "text", "--out", "owl.png"], 6, "will have no image to write"),
        (["owl", "--max-images", "0", "--out", "owl.png"], 6, "will have no image to write"),
        (["owl", "--out", "file/owl.png"], 2, "file is a file, but a folder is to be written"),
        (["owl", "--out", "folder.md"], 6, "folder.md is a folder, but a file is to be written"),
        (["owl", "--max-slots", "0"], 2, "max_slots must be at least 1, got 0"),
        (["--prompts", "none.txt", "--out", "answers"], 3, "none.txt does not exist"),
        (["--prompts", "none.csv", "--out", "answers"], 6, "are read from a .txt or .jsonl"),
        (["--prompts", "none.txt"], 6, "--prompts takes its prompts from the file"),
        (["owl", "--prompts", "none.txt", "--out", "answers"], 6, "neither parts of a prompt"),
        (["--prompts", "none.txt", "owl", "--out", "answers"], 6, "neither parts of a prompt"),
        (["--prompts", "empty.txt", "--out", "answers"], 2, "empty.txt holds no prompt"),
        (["--prompts", "owl.txt", "--out", "file"], 2, "file is a file, but a folder is"),
        (["--prompts", "owl.txt", "--out", "file/answers"], 2, "file is a file, but a folder is"),
        (["--prompts", "owl.txt", "--out", "a", "--temperature", "-1"], 6, "temperature must be"),
        (
            ["--prompts", "owl.txt", "--out", "a", "--max-new-tokens", "0"],
            6,
            "max_new_tokens must be",
        ),
        (
            ["--prompts", "owl.jsonl", "--out", "a", "--mode", "text", "--guidance", "2"],
            6,
            "leave guidance out",
        ),
    ],
)
def test_what_is_refused_is_one_line(run, tmp_path, arguments, code, message):
    (tmp_path / "file").touch()
    (tmp_path / "folder.md").mkdir()
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "owl.txt").write_text("owl\n")
    write_jsonl("owl.jsonl", {"prompt": "owl"})
    before = sorted(tmp_path.iterdir())
    found, out, err = run(*arguments)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert message in err
    assert sorted(tmp_path.iterdir()) == before


def test_parts_may_stand_after_options(run):
    asked = ("--max-new-tokens", "8", "--temperature", "1.5")
    _, expected, _ = run("owl", "-3", *asked)
    assert run(*asked, "owl", "-3") == (0, expected, "")
    assert run("owl", *asked[:2], "-3", *asked[2:]) == (0, expected, "")
    assert run("owl", *asked, "--", "-3") == (0, expected, "")


@pytest.mark.parametrize("arguments", [["--tune", "owl"], ["owl", "--mode", "text", "--tune=3"]])
def test_unknown_options_are_refused_wherever_they_stand(run, capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert "unrecognized arguments: --tune" in capsys.readouterr().err


def test_a_bundle_in_the_working_folder(run, folder, monkeypatch, capsys, tmp_path):
    _, expected, _ = run("", "--max-new-tokens", "8")
    monkeypatch.chdir(folder)
    assert main(["generate", ".", "", "--max-new-tokens", "8"]) == 0
    assert capsys.readouterr().out == expected
    assert load(".").codec.vocabulary == load(folder).codec.vocabulary
    assert read_bundle(Path(".")).config == load(folder).model.config


def test_a_text_that_ends_like_an_image(run):
    assert run("Look:\nowl.png", "--max-new-tokens", "3")[0] == 0


def test_a_text_file_is_as_many_prompts(run, folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("owl\n\nfox\r\nAn owl sat\n")
    asked = ("--prompts", "prompts.txt", "--out", "answers", "--mode", "image", "--seed", "3")
    code, out, _ = run(*asked, "--json")
    summary = json.loads(out)
    assert code == 0
    assert (summary["requests"], summary["failed"], summary["images"]) == (3, 0, 3)
    assert summary["tokens"] == 18
    found = records()
    assert [record["index"] for record in found] == [0, 1, 2]
    assert {(record["reason"], record["ids"]) for record in found} == {("images", 6)}
    expected = generate_many(load(folder), ["owl", "fox", "An owl sat"], mode="image", seed=3)
    for record, document in zip(found, expected, strict=True):
        [segment] = record["answer"]
        drawn = np.asarray(PIL.Image.open(tmp_path / "answers" / segment["image"]))
        assert (drawn == np.asarray(document.images[0].source)).all()


def test_lines_have_options_of_their_own_and_bad_ones_say_why(run, tmp_path):
    PIL.Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    (tmp_path / "torn.png").write_bytes(b"torn")
    good = [
        {"prompt": "owl", "mode": "image", "max_images": 2, "seed": 7},
        {"prompt": ["what", {"image": "red.png"}], "mode": "text", "max_new_tokens": 3},
        {"prompt": [{"text": "owl"}], "max_new_tokens": 4, "temperature": 1, "chat": True},
        {"prompt": "owl", "mode": "image", "contrastive": [0.1, 3]},
        {"prompt": "owl", "mode": "image", "guidance": 3, "image_guidance": 1.5},
    ]
    bad = [
        ("{", "prompts.jsonl:6 is not JSON: Expecting property name enclosed in double quotes at"),
        ({"text": "owl"}, 'must be an object with a "prompt"'),
        ({"prompt": "owl", "colour": 1}, "has unknown keys colour; known are prompt, mode"),
        ({"prompt": "owl", "mode": "sing"}, "under 'mode'; it must be one of text, image"),
        (
            {"prompt": "owl", "max_new_tokens": 2.5},
            "under 'max_new_tokens'; it must be a whole number",
        ),
        ({"prompt": "owl", "chat": 1}, "under 'chat'; it must be true or false"),
        ({"prompt": "owl", "contrastive": 1}, "it must be two numbers, alpha and k"),
        ({"prompt": "owl", "temperature": True}, "under 'temperature'; it must be a number"),
        ({"prompt": "owl", "temperature": -1}, "temperature must be 0 or more, got -1.0"),
        ({"prompt": "owl", "image_top_k": -1}, "image_top_k must be"),
        ({"prompt": [{"image": "blue.png"}]}, "names the image 'blue.png', which is not"),
        ({"prompt": [{"image": "torn.png"}]}, "torn.png is not an image"),
        ({"prompt": [3]}, "neither a text nor a list of texts"),
        ({"prompt": "x" * 60}, "has 61 ids, which fills the model's context of 40"),
        ('{"prompt": "\\ud800"}', "half of a surrogate pair"),
        ('{"prompt": "owl", "guidance": 1e999}', "under 'guidance'; it must be a number"),
    ]
    write_jsonl("prompts.jsonl", *good, *(line for line, _ in bad))
    asked = (
        "--prompts",
        "prompts.jsonl",
        "--out",
        "answers",
        "--guidance",
        "2",
        "--max-slots",
        "3",
    )
    code, _, err = run(*asked)
    assert code == 6
    assert f"pardalis: {len(bad)} of {len(good) + len(bad)} prompts could not be answered" in err
    found = records()
    assert [record["index"] for record in found] == list(range(len(good) + len(bad)))
    for record, (_, message) in zip(found[len(good) :], bad, strict=True):
        assert message in record["error"]
    answers = [record["answer"] for record in found[: len(good)]]
    assert [len(segment) for segment in answers[0]] == [1, 1]
    assert [path for segment in answers[0] for path in segment.values()] == [
        "images/000000-0.png", "images/000000-1.png",
    ]  # fmt: skip
    assert all("text" in segment for segment in answers[1])
    assert found[2]["ids"] <= 4


def test_a_seed_of_its_own_is_a_prompt_alone(run, tmp_path):
    write_jsonl("prompts.jsonl", {"prompt": "fox"}, {"prompt": "owl", "seed": 7})
    run("--prompts", "prompts.jsonl", "--out", "answers", "--mode", "image")
    run("owl", "--mode", "image", "--seed", "7", "--out", "owl.png")
    drawn = PIL.Image.open(tmp_path / "answers" / "images" / "000001-0.png")
    assert (np.asarray(drawn) == np.asarray(PIL.Image.open(tmp_path / "owl.png"))).all()


def test_goes_on_where_it_was(run, tmp_path, monkeypatch):
    asked = ("--prompts", "prompts.jsonl", "--out", "answers", "--max-new-tokens", "5", "--json")
    lines = [{"prompt": "owl"}, {"prompt": "x" * 60}, {"prompt": "fox"}, {"prompt": "cat"}]
    write_jsonl("prompts.jsonl", *lines)
    assert run(*asked)[0] == 6
    before = records()
    # Killed while it wrote the last line.
    answers = tmp_path / "answers" / "answers.jsonl"
    answers.write_text(answers.read_text()[:-30])
    lines[1] = {"prompt": "mended"}
    write_jsonl("prompts.jsonl", *lines)
    submitted = []
    ask = prompts_module.ask

    def watched(bundle, parts, options, number=0):
        submitted.append(parts)
        return ask(bundle, parts, options, number)

    monkeypatch.setattr(prompts_module, "ask", watched)
    code, out, _ = run(*asked)
    assert code == 0
    assert json.loads(out)["unchanged"] == 2
    assert submitted == [[], ["mended"], ["cat"]]  # first the options by themselves
    after = records()
    assert [record["index"] for record in after] == [0, 1, 2, 3]
    assert [after[i] for i in (0, 2, 3)] == [before[i] for i in (0, 2, 3)]
    code, _, err = run(*asked[:-2], "6")
    assert code == 2
    assert "holds answers of another bundle or to other options" in err
    assert records() == after


def test_answers_stand_in_the_file_as_they_finish(run, monkeypatch):
    """An error in the middle loses nothing that was answered."""
    write_jsonl("prompts.jsonl", *({"prompt": p} for p in ("owl", "fox", "cat", "oak")))
    asked = ("--prompts", "prompts.jsonl", "--out", "answers", "--max-new-tokens", "3")
    ask, asked_so_far = prompts_module.ask, []

    def torn(bundle, parts, options, number=0):
        asked_so_far.append(parts)
        if parts == ["oak"]:
            raise KeyboardInterrupt
        return ask(bundle, parts, options, number)

    monkeypatch.setattr(prompts_module, "ask", torn)
    assert run(*asked, "--max-slots", "1")[0] == 130
    assert 1 <= len(records()) < 4
    monkeypatch.setattr(prompts_module, "ask", ask)
    assert run(*asked, "--max-slots", "1")[0] == 0
    assert [record["index"] for record in records()] == [0, 1, 2, 3]


def test_a_line_may_draw_where_the_others_write(run):
    write_jsonl("prompts.jsonl", {"prompt": "owl"}, {"prompt": "fox", "mode": "image"})
    asked = ("--prompts", "prompts.jsonl", "--out", "answers", "--mode", "text")
    assert run(*asked, "--guidance", "2", "--max-new-tokens", "8")[0] == 0
    assert ["image" in record["answer"][0] for record in records()] == [False, True]


def test_a_folder_without_answers_takes_other_options(run):
    write_jsonl("prompts.jsonl", {"prompt": "x" * 60})
    asked = ("--prompts", "prompts.jsonl", "--out", "answers")
    assert run(*asked)[0] == 6
    write_jsonl("prompts.jsonl", {"prompt": "owl"})
    assert run(*asked, "--max-new-tokens", "3")[0] == 0


def test_a_file_of_prompts_may_begin_with_a_mark(run, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "owl"}\n', encoding="utf-8-sig")
    assert run("--prompts", "prompts.jsonl", "--out", "answers", "--max-new-tokens", "3")[0] == 0


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"3",
        b'{"index": [1], "prompt": "", "answer": []}',
        b'{"index": 0, "prompt": {}, "answer": []}',
        b'{"index": 0, "prompt": "DIGEST", "answer": 3}',
        b'{"index": 0, "prompt": "DIGEST", "answer": [{"text": "\xc3"}]}',
        b'{"index": 0, "prompt": "DIGEST", "answer": [{"text": "\\ud800"}]}',
        b'{"index": true, "prompt": "DIGEST", "answer": []}',
        b'{"index": 0, "prompt": "DIGEST", "answer": [{"image": "images/none.png"}]}',
    ],
    ids=range(10),
)
def test_damaged_answers_are_asked_again(run, tmp_path, damage):
    (tmp_path / "prompts.txt").write_text("owl\nfox\n")
    asked = ("--prompts", "prompts.txt", "--out", "answers", "--max-new-tokens", "3", "--json")
    assert run(*asked)[0] == 0
    expected = records()
    answers = tmp_path / "answers" / "answers.jsonl"
    first, second = answers.read_bytes().splitlines()
    digest = expected[0]["prompt"].encode()
    answers.write_bytes(damage.replace(b"DIGEST", digest) + b"\n" + second + b"\n")
    code, out, err = run(*asked)
    assert (code, "Traceback" in err) == (0, False)
    assert json.loads(out)["unchanged"] == 1
    assert answers.read_bytes().splitlines() == [first, second]


@pytest.mark.parametrize("content", [b"\xff", b"", b"{"])
def test_unreadable_settings_are_one_sentence(run, tmp_path, content):
    (tmp_path / "prompts.txt").write_text("owl\n")
    asked = ("--prompts", "prompts.txt", "--out", "answers", "--max-new-tokens", "3")
    run(*asked)
    (tmp_path / "answers" / "settings.json").write_bytes(content)
    code, _, err = run(*asked)
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot be read from answers/settings.json" in err


def test_images_count_with_their_bytes(run, tmp_path):
    for colour in ("red", "blue"):
        PIL.Image.new("RGB", (20, 20), colour).save(tmp_path / f"{colour}.png")
    write_jsonl("prompts.jsonl", *({"prompt": [{"image": f"{c}.png"}]} for c in ("red", "blue")))
    asked = ("--prompts", "prompts.jsonl", "--out", "answers", "--mode", "image", "--json")
    asked = (*asked, "--max-images", "1")

    def unchanged():
        code, out, _ = run(*asked)
        assert code == 0
        return json.loads(out)["unchanged"]

    assert [unchanged(), unchanged()] == [0, 2]
    before = records()
    PIL.Image.new("RGB", (20, 20), "green").save(tmp_path / "red.png")
    assert unchanged() == 1
    assert [a["prompt"] == b["prompt"] for a, b in zip(before, records(), strict=True)] == [
        False, True,
    ]  # fmt: skip
    (tmp_path / "answers" / "images" / "000001-0.png").unlink()
    assert unchanged() == 1
    assert unchanged() == 2
