"""One prompt or a file of them, from the command line."""

import argparse
import dataclasses
import io
import json
import os
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from shapes import decoder_config

from pardalis.bundle import Bundle, load
from pardalis.cli.generate import add_options, config_of
from pardalis.cli.main import build_parser, main
from pardalis.inference import GenerationConfig
from pardalis.interop.model import read_bundle
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
    """Run ``pardalis generate`` in an empty folder; return its code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = main(["generate", str(folder), *arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


def write_jsonl(path, *lines):
    with open(path, "w") as file:
        file.writelines((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines)


def test_images_that_are_not_kept_are_told(run, tmp_path):
    small = ["owl", "--mode", "image"]
    code, out, err = run(*small)
    assert (code, out) == (0, "[image]\n")
    assert err == "The images are not kept; --out FILE.png, .html or .md writes them.\n"
    for others in (["--out", "owl.png"], ["--json"], ["--mode", "text"]):
        assert "not kept" not in run(*small, *others)[2]


def test_an_image_of_too_many_pixels_is_told_once(run, tmp_path):
    """Pillow warns of it too, with a line of its own source."""
    PIL.Image.new("1", (9500, 9500)).save(tmp_path / "huge.png")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        code, _, err = run("huge.png", "--mode", "text")
    assert (code, found) == (3, [])
    assert err == (
        "pardalis: huge.png has more than 80 million pixels, the most that is decoded; scale it "
        "down.\n"
    )


def test_every_option_of_generation_is_a_flag():
    options = build_parser().parse_args(["generate", "bundle", "owl"])
    assert config_of(options) == GenerationConfig()
    names = {option.name for option in dataclasses.fields(GenerationConfig)} - {"adapter"}
    assert not names & {*vars(options)}  # only what is given is there
    parser = argparse.ArgumentParser()
    add_options(parser.add_argument_group())
    assert names <= {action.dest for action in parser._actions}
    options = build_parser().parse_args(["generate", "b", "owl", "--stop", "a", "--stop", "\n"])
    assert options.stop == ["a", "\n"]
    flags = ["--image-temperature", "0.5", "--max-images", "2", "--chat", "--mode", "text"]
    options = build_parser().parse_args(["generate", "bundle", "owl", *flags])
    found = (options.image_temperature, options.max_images, options.chat, options.mode)
    assert found == (0.5, 2, True, "text")


def test_one_image(run, tmp_path):
    code, out, _ = run("owl", "--mode", "image", "--out", "owl.png", "--guidance", "2")
    assert (code, out) == (0, "[image]\n")
    assert np.asarray(PIL.Image.open(tmp_path / "owl.png")).shape == (16, 16, 3)


def test_stop_strings_end_the_text(run):
    asked = ("An owl", "--mode", "text", "--max-new-tokens", "12", "--temperature", "1.5")
    _, whole, _ = run(*asked)
    stops = ("--stop", "never", "--stop", whole[3:5])
    assert run(*asked, *stops) == (0, whole[:3] + "\n", "")
    assert run(*asked, *stops, "--stream") == (0, whole[:3] + "\n", "")


def test_log_probabilities_as_json(run):
    _, out, _ = run("owl", "--json", "--max-new-tokens", "4", "--logprobs", "2")
    [*tokens, last] = json.loads(out)["logprobs"]
    for token in (*tokens, last):
        assert token.keys() == {"token_id", "log_prob", "top"}
        assert token["log_prob"] <= token["top"][0][1] <= 0
        assert len(token["top"]) == 2
    assert "logprobs" not in json.loads(run("owl", "--json", "--max-new-tokens", "4")[1])


def test_streamed_text_is_the_text(run):
    asked = ("An owl", "--max-new-tokens", "12", "--temperature", "1.5", "--seed", "4")
    _, whole, _ = run(*asked)
    assert run(*asked, "--stream") == (0, whole, "")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["owl", "--stream", "--json"], 6, "choose one"),
        (["owl", "--logprobs", "2"], 6, "--logprobs adds to what --json prints; give --json too"),
        (["owl", "--logprobs", "-1", "--json"], 6, "--logprobs must be a whole number, 0 or more"),
        (["owl", "--stop", ""], 6, "--stop must hold texts of at least one character"),
        (["owl", "--guidance", "2", "--contrastive-alpha", "0.1"], 6, "exclude each other"),
        (["owl", "--contrastive-alpha", "2"], 6, "alpha must lie in [0, 1], got 2.0"),
        (["owl", "--top-p", "0"], 6, "p must lie in (0, 1], got 0.0"),
        (["owl", "--image-top-p", "0"], 6, "p must lie in (0, 1], got 0.0"),
        ([], 6, 'A prompt is needed: give texts and images, "" for an empty prompt'),
        (["a red owl.png"], 6, "No image at a red owl.png"),
        (["owl.svg"], 6, "No image at owl.svg"),
        (["owl", "--mode", "text", "--out", "owl.png"], 6, "will have no image to write"),
        (["owl", "--max-images", "0", "--out", "owl.png"], 6, "will have no image to write"),
        (["owl", "--out", "file/owl.png"], 2, "file is a file, but a folder is to be written"),
        (["owl", "--out", "folder.md"], 6, "folder.md is a folder, but a file is to be written"),
        (["owl", "--max-slots", "0"], 2, "must be at least 1, got 0"),
        (["--prompts", "none.txt", "--out", "completions"], 3, "none.txt does not exist"),
        (
            ["--prompts", "none.csv", "--out", "completions"],
            6,
            "A file of prompts is a .txt or .jsonl",
        ),
        (["--prompts", "none.txt"], 6, "--prompts reads prompts from a file"),
        (["owl", "--prompts", "none.txt", "--out", "completions"], 6, "neither parts of a prompt"),
        (["--prompts", "none.txt", "owl", "--out", "completions"], 6, "neither parts of a prompt"),
        (["--prompts", "empty.txt", "--out", "completions"], 2, "empty.txt has no prompts"),
        (["--prompts", "owl.txt", "--out", "file"], 2, "file is a file, but a folder is"),
        (
            ["--prompts", "owl.txt", "--out", "file/completions"],
            2,
            "file is a file, but a folder is",
        ),
        (["--prompts", "owl.txt", "--out", "a", "--temperature", "-1"], 6, "temperature must be 0"),
        (
            ["--prompts", "owl.txt", "--out", "a", "--max-new-tokens", "0"],
            6,
            "must be a whole number, 1 or more, got 0",
        ),
    ],
)
def test_errors_are_one_line_with_an_exit_code(run, tmp_path, arguments, code, message):
    (tmp_path / "file").touch()
    (tmp_path / "folder.md").mkdir()
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "owl.txt").write_text("owl\n")
    write_jsonl("owl.jsonl", {"prompt": "owl"})
    before = sorted(tmp_path.iterdir())
    found, out, err = run(*arguments)
    assert (found, err.count("\n")) == (code, 1)
    assert message in err
    assert err == f"pardalis: {json.loads(out)['error']}\n" if "--json" in arguments else not out
    assert sorted(tmp_path.iterdir()) == before


def test_prompt_parts_may_follow_options(run):
    asked = ("--max-new-tokens", "8", "--temperature", "1.5")
    _, expected, _ = run("owl", "-3", *asked)
    assert run(*asked, "owl", "-3") == (0, expected, "")
    assert run("owl", *asked[:2], "-3", *asked[2:]) == (0, expected, "")
    assert run("owl", *asked, "--", "-3") == (0, expected, "")


@pytest.mark.parametrize("arguments", [["--tune", "owl"], ["owl", "--mode", "text", "--tune=3"]])
def test_unknown_options_are_refused_at_any_position(run, capsys, arguments):
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


def test_json_output(run):
    code, out, _ = run("owl", "--mode", "image", "--json")
    result = json.loads(out)
    assert (code, result["out"]) == (0, None)
    assert [list(segment) for segment in result["completion"]] == [["image"]]


def test_a_file_of_prompts(run, tmp_path):
    write_jsonl("prompts.jsonl", {"prompt": "owl"}, {"prompt": "x" * 60})
    asked = ("--prompts", "prompts.jsonl", "--out", "completions", "--max-new-tokens", "3")
    code, out, err = run(*asked, "--json")
    summary = json.loads(out)["result"]
    assert (code, summary["requests"], summary["failed"]) == (6, 2, 1)
    assert "1 of 2 prompts failed; see the errors in completions/completions.jsonl" in err
    write_jsonl("prompts.jsonl", {"prompt": "owl"}, {"prompt": "fox"})
    code, out, _ = run(*asked)
    assert code == 0
    assert out.startswith("completions: 2 prompts, 1 of them completed before; ")
    settings = json.loads((tmp_path / "completions" / "settings.json").read_text())
    assert settings["options"]["max_new_tokens"] == 3
    assert Path(settings["bundle"]).is_absolute()


def test_a_seed_of_a_line_gives_the_completion_of_a_single_prompt(run, tmp_path):
    write_jsonl("prompts.jsonl", {"prompt": "fox"}, {"prompt": "owl", "seed": 7})
    run("--prompts", "prompts.jsonl", "--out", "completions", "--mode", "image")
    run("owl", "--mode", "image", "--seed", "7", "--out", "owl.png")
    found = PIL.Image.open(tmp_path / "completions" / "images" / "000001-0.png")
    assert (np.asarray(found) == np.asarray(PIL.Image.open(tmp_path / "owl.png"))).all()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_any_encoding(run, folder, monkeypatch, encoding):
    asked = ("\N{OWL}", "--mode", "text", "--max-new-tokens", "20", "--temperature", "3")
    _, expected, _ = run(*asked)
    assert not expected.isascii()
    for flags in ([], ["--stream"], ["--json"]):
        terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr("sys.stdout", terminal)
        assert main(["generate", str(folder), *asked, *flags]) == 0
        terminal.flush()
        shown = terminal.buffer.getvalue()
        if "--json" in flags:
            [segment] = json.loads(shown.decode(encoding))["completion"]
            assert segment["text"] + "\n" == expected
        else:
            assert shown == expected.encode(encoding, "backslashreplace")


@pytest.mark.parametrize("arguments", [["-owl"], ["-hello"], ["owl", "--tune"]])
def test_a_part_that_begins_with_a_dash_gets_a_hint(run, capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert "; a part of the prompt that begins with a dash stands after --" in message
    assert "usage: pardalis generate BUNDLE" in message
    assert run("--max-new-tokens", "1", "--", *arguments)[0] == 0


def test_a_value_that_begins_with_a_dash_gets_a_hint(run, capsys):
    with pytest.raises(SystemExit):
        run("owl", "--stop", "-x")
    assert "a value that begins with a dash is written --option=-value" in capsys.readouterr().err
    assert run("owl", "--stop=-x", "--max-new-tokens", "1")[0] == 0


def test_bytes_that_are_no_utf_8(run, tmp_path):
    bad = os.fsdecode(b"\xffowl")
    code, out, err = run(bad)
    assert (code, out, err.count("\n")) == (6, "", 1)
    assert "'\\udcffowl' of the prompt is neither a file nor UTF-8 text" in err
    code, out, err = run("owl", "--stop", bad)
    assert (code, out) == (6, "")
    assert "--stop holds broken Unicode" in err
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / f"{bad}.png")
    assert run(f"{bad}.png", "--mode", "text", "--max-new-tokens", "1")[0] == 0


def test_a_truncated_completion_is_reported(run, caplog):
    run("owl", "--mode", "text", "--max-new-tokens", "4", "--temperature", "2", "--seed", "1")
    assert caplog.messages == [
        "The completion is truncated at 4 tokens; raise --max-new-tokens for a longer one."
    ]
    caplog.clear()
    _, out, _ = run("x" * 35, "--mode", "text", "--temperature", "2", "--seed", "1", "--json")
    result = json.loads(out)
    assert result["reason"] == "length"
    assert result["usage"]["prompt_tokens"] + result["usage"]["completion_tokens"] == 40
    assert caplog.messages == [
        "The completion is truncated because the model's context of 40 tokens is full."
    ]
    caplog.clear()
    run("owl", "--mode", "image")
    assert caplog.messages == []
