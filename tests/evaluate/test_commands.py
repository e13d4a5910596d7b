import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis.cli.main import build_parser
from pardalis.evaluate.commands import commands, commands_of, quoted


def words_of(command: str) -> list[str]:
    """Return the words that bash makes of a command."""
    script = f"printf '%s\\0' {command}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, timeout=60)
    return done.stdout.decode().split("\0")[:-1]


HARD = [
    "owl", "it's an owl", 'a "red" owl', "$HOME `id` $(id) \\n !!", "Eule\n", "a\tb\r\nc", "-5 °C",
    "--mode", "سلام می\u200cروم", "猫頭鷹", "🦉 👩\u200d🚀", "a\u2028b\u0085c\u202ed", "*", "~",
    "#", "a;b|c&d<e>f", "\x1b[31mred", "'", "''", "\\", "\\'\n",
]  # fmt: skip


@pytest.mark.parametrize("text", HARD)
def test_a_shell_reads_the_text_that_was_quoted(text):
    word = quoted(text)
    assert words_of(word) == [text]
    assert word.isprintable() or "\u200d" in word or "\u200c" in word


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), min_size=1))
def test_a_shell_reads_any_text(texts):
    assert words_of(" ".join(map(quoted, texts))) == texts


def samples(image="owl", original="corpus/owl.png", title="Owl\n", split="train"):
    return {
        "images": [{"split": split, "prompt": image}],
        "captions": [{"split": split, "image": original}],
        "pages": [{"split": split, "prompt": title}],
    }


@pytest.mark.parametrize("text", HARD)
@pytest.mark.parametrize("run", ["runs/owl", "-runs/it's mine"])
def test_the_command_line_takes_the_commands(text, run):
    found = commands(Path(run), samples(text, f"photos/{text}", text))
    bundle, original = Path(run) / "bundle", Path(run) / "photos" / text
    for command, part in zip(found, (text, str(original), text), strict=True):
        program, *arguments = words_of(command)
        assert program == "pardalis"
        options = build_parser().parse_args(arguments)
        assert Path(options.bundle) == bundle
        [given_part] = options.prompt
        assert given_part == part or Path(given_part) == Path(part)


def test_a_prompt_that_would_be_read_as_a_file_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owl").write_text("")
    found = samples()
    found["images"] += [{"split": "heldout", "prompt": "a cat"}]
    found["images"] += [{"split": "train", "prompt": text} for text in ("a.png", "a\0b", "a cat")]
    assert " 'a cat' " in commands(Path("run"), found)[0]
    found["images"] = found["images"][:1]
    assert len(commands(Path("run"), found)) == 2


def test_a_short_prompt_of_training_is_preferred():
    found = samples("long " * 40)
    found["images"] += [{"split": "heldout", "prompt": "seen"}, {"split": "train", "prompt": "b"}]
    assert " b " in commands(Path("run"), found)[0]


def test_without_samples_there_are_no_commands(tmp_path):
    assert commands_of(tmp_path) == []
    (tmp_path / "samples").mkdir()
    for content in ("{", "[]", json.dumps({"images": 7})):
        (tmp_path / "samples" / "samples.json").write_text(content)
        assert commands_of(tmp_path) == []
    assert commands(tmp_path, {"images": [], "captions": [], "pages": []}) == []
