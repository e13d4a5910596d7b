"""A recipe's sources prepared in parts, by processes of the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from shapes import decoder_config

from pardalis.bundle import Bundle
from pardalis.cli.main import main
from pardalis.data import Shards, Share, Workers
from pardalis.errors import BusyError, ConfigError, DataError, PardalisError
from pardalis.files import exclusive
from pardalis.model import Decoder, initialise
from pardalis.pipeline import StageMissingError, load_recipe, prepare_part, read_records, run

ROOT = Path(__file__).parents[2]
RECIPE = """
name = "tiny"
tokenizers_from = "bundle"

[[sources]]
name = "notes"
reader = "jsonl"
path = "notes.jsonl"
licence = "MIT"

[[sources]]
name = "more"
reader = "jsonl"
path = "more.jsonl"
transforms = [{ kind = "deadly", marks = "." }]

[prepare]
row_tokens = 48
batch_documents = 2
block_documents = 2

[model]
d_model = 32
n_layers = 1
attention = { n_heads = 2 }
feed_forward = { width = 64 }

[training]
batch_rows = 1
[training.schedule]
learning_rate = 1e-3
[training_loop]
steps = 1
"""


@pytest.fixture(scope="module")
def project(codec, tmp_path_factory) -> Path:
    """A recipe whose tokenizers are given, so that the stage ``prepare`` is the first."""
    import deadly_transform  # noqa: F401

    folder = tmp_path_factory.mktemp("project")
    config = decoder_config(
        vocab_size=codec.vocabulary.size,
        context=64,
        d_model=32,
        n_layers=1,
        n_heads=2,
        n_kv_heads=1,
        d_ff=64,
    )
    Bundle(initialise(Decoder(config), 0).eval(), codec, {}).save(folder / "bundle")
    (folder / "marks").mkdir()
    recipe = RECIPE.replace('marks = "."', f'marks = "{folder / "marks"}"')
    (folder / "recipe.toml").write_text(recipe)
    for name, n in (("notes", 7), ("more", 4)):
        lines = [
            json.dumps(
                {"segments": [{"text": f"the owl and {n} cats"}], "licence": "CC0" * (n % 2)}
            )
            for n in range(n)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def expected(project) -> dict[str, bytes]:
    run(load_recipe(project / "recipe.toml"), project / "expected", ["prepare"])
    return shards(project / "expected")


def shards(run: Path) -> dict[str, bytes]:
    found = sorted(path for path in (run / "shards").rglob("*") if path.is_file())
    return {str(path.relative_to(run)): path.read_bytes() for path in found}


def part(project: Path, run: Path, number: int, of: int):
    return prepare_part(load_recipe(project / "recipe.toml"), run, Share(number, of))


def command(project: Path, run: Path, *arguments: str, **options) -> subprocess.Popen:
    deadly = ROOT / "tests" / "support" / "deadly_transform.py"
    return subprocess.Popen(
        [
            sys.executable, "-m", "pardalis", "--import", str(deadly), "data", "prepare",
            str(project / "recipe.toml"), "--out", str(run), "--json", *arguments,
        ],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, **options,
    )  # fmt: skip


@pytest.mark.parametrize("of", [1, 2, 4, 9])
def test_the_last_part_joins_all(project, tmp_path, expected, of: int):
    made = [part(project, tmp_path, number, of) for number in range(of, 0, -1)]
    assert sum(each.blocks for each in made) == 4 + 2
    assert made[-1].is_joined
    assert shards(tmp_path) == expected
    [record] = read_records(tmp_path)
    assert record.name == "prepare"
    assert record.finished
    run(load_recipe(project / "recipe.toml"), tmp_path, ["prepare"])
    assert read_records(tmp_path) == [record]
    again = part(project, tmp_path, 1, of)
    assert (again.blocks, again.is_joined) == (0, True)


def test_a_part_reads_no_source_of_others(project, tmp_path, monkeypatch):
    from pardalis.documents import READERS

    part(project, tmp_path, 1, 3)  # the first part reads through all
    part(project, tmp_path, 2, 3)
    read, reader = [], READERS["jsonl"]
    monkeypatch.setitem(READERS, "jsonl", lambda path: read.append(path.stem) or reader(path))
    assert not part(project, tmp_path, 2, 3).is_joined
    assert not read
    part(project, tmp_path / "new", 1, 3)
    read.clear()
    part(project, tmp_path / "new", 2, 3)
    assert read == ["notes"]


def test_commands_in_two_processes_make_the_same_shards(project, tmp_path, expected):
    both = [command(project, tmp_path, "--part", f"{n}/2", "--jobs", "1") for n in (1, 2)]
    told = [json.loads(each.communicate(timeout=300)[0]) for each in both]
    assert [each.returncode for each in both] == [0, 0]
    if not any(each["is_joined"] for each in told):  # both ended at the same moment
        assert (
            main(
                ["data", "prepare", str(project / "recipe.toml"), "--out", str(tmp_path), "--join"]
            )
            == 0
        )
    assert shards(tmp_path) == expected


def test_joining_needs_all_parts(project, tmp_path, capsys, expected):
    arguments = ["data", "prepare", str(project / "recipe.toml"), "--out", str(tmp_path)]
    assert main([*arguments, "--join"]) == 3
    assert "Nothing of source 'notes', as it is now, is prepared" in capsys.readouterr().err
    part(project, tmp_path, 1, 2)
    assert main([*arguments, "--join"]) == 3
    told = capsys.readouterr().err
    assert "1 of 4 blocks of source 'notes' are missing" in told
    assert "part 2 of 2. Make these parts before" in told
    assert main([*arguments, "--part", "2/2"]) == 0
    assert "part 2 of 2: 3 blocks are made; all are joined" in capsys.readouterr().out
    assert shards(tmp_path) == expected


def test_documents_that_change_between_parts_are_noticed(project, tmp_path, codec):
    for name in ("recipe.toml", "more.jsonl", "notes.jsonl"):
        (tmp_path / name).write_bytes((project / name).read_bytes())
    (tmp_path / "bundle").symlink_to(project / "bundle")
    part(tmp_path, tmp_path / "run", 1, 2)
    (tmp_path / "notes.jsonl").write_text('{"segments": [{"text": "an owl"}]}\n' * 7)
    with pytest.raises(DataError, match=r"'notes', as it is now, .*make its parts first"):
        part(tmp_path, tmp_path / "run", 2, 2)
    for number in (1, 2):  # the change is known now
        made = part(tmp_path, tmp_path / "run", number, 2)
    assert made.is_joined
    assert Shards.open(tmp_path / "run" / "shards" / "notes").n_documents == 7
    (tmp_path / "notes.jsonl").write_text('{"segments": [{"text": "a cat"}]}\n' * 7)
    part(tmp_path, tmp_path / "run", 1, 2)
    text = (tmp_path / "recipe.toml").read_text()
    (tmp_path / "recipe.toml").write_text(text.replace("row_tokens = 48", "row_tokens = 40"))
    with pytest.raises(ConfigError, match="row_tokens = 48, and now it is 40"):
        part(tmp_path, tmp_path / "run", 1, 2)


def test_the_sources_are_read_through_by_workers(project, tmp_path, expected, monkeypatch):
    from pardalis.data import through

    monkeypatch.setattr(through, "_ALONE_S", 0.0)
    recipe = load_recipe(project / "recipe.toml")
    run(recipe, tmp_path / "run", ["prepare"], workers=Workers(jobs=2))
    assert shards(tmp_path / "run") == expected
    for number in (1, 2):
        prepare_part(recipe, tmp_path / "parts", Share(number, 2), workers=Workers(jobs=2))
    assert shards(tmp_path / "parts") == expected
    assert not (tmp_path / "parts" / ".contents").exists()


def test_parts_read_sources_that_others_do_not(project, tmp_path, monkeypatch):
    from pardalis.data import through

    read, own = [], through.survey_parts
    monkeypatch.setattr(
        through, "survey_parts", lambda source, *a: read.append(source.name) or own(source, *a)
    )
    found = tmp_path / ".contents"
    part(project, tmp_path, 2, 2)
    assert read == ["more", "notes"]  # it begins with those that the first part reads last
    (found / "notes" / "found.json").unlink()  # as if it had been killed
    part(project, tmp_path, 1, 3)
    assert read == ["more", "notes", "notes"]


def test_what_was_found_is_forgotten_when_it_is_refused(project, tmp_path):
    for name in ("recipe.toml", "more.jsonl", "notes.jsonl"):
        (tmp_path / name).write_bytes((project / name).read_bytes())
    (tmp_path / "bundle").symlink_to(project / "bundle")
    text = (tmp_path / "recipe.toml").read_text()
    for notes, heldout in ((7, False), (1, True)):
        lines = (project / "notes.jsonl").read_text().splitlines()[:notes]
        (tmp_path / "notes.jsonl").write_text("\n".join(lines))
        fraction = 'heldout_fraction = 0.5\ntokenizers_from = "bundle"'
        changed = text.replace('tokenizers_from = "bundle"', fraction) if heldout else text
        if not heldout:
            changed = changed.replace("row_tokens = 48", "row_tokens = 3")
            Image.new("RGB", (16, 16)).save(tmp_path / "owl.png")
            with (tmp_path / "notes.jsonl").open("a") as file:
                file.write('\n{"segments": [{"image": "owl.png"}]}\n')
        (tmp_path / "recipe.toml").write_text(changed)
        run_folder = tmp_path / f"run-{notes}"
        with pytest.raises(PardalisError, match=r"lies at|row_tokens"):
            part(tmp_path, run_folder, 1, 2)
        assert not list(run_folder.glob(".contents/notes/found.json"))


def test_a_run_waits_for_no_part(project, tmp_path):
    part(project, tmp_path, 1, 2)
    held = tmp_path / "shards" / ".notes.pardalis-blocks"
    with exclusive(held, shared=True), pytest.raises(BusyError, match="Another process works on"):
        run(load_recipe(project / "recipe.toml"), tmp_path, ["prepare"])
    run(load_recipe(project / "recipe.toml"), tmp_path, ["prepare"])


def test_parts_need_the_tokenizers(project, tmp_path):
    recipe = load_recipe(project / "recipe.toml")
    text = (project / "recipe.toml").read_text().replace('tokenizers_from = "bundle"', "")
    (tmp_path / "recipe.toml").write_text(
        text.replace('path = "', f'path = "{project}/')
        + "[text_tokenizer]\n[image_tokenizer]\n[image_tokenizer_training]\n"
        + "[image_tokenizer_loop]\nsteps = 1\n"
    )
    with pytest.raises(StageMissingError, match=r"needs '.*_tokenizer', which is not finished"):
        prepare_part(load_recipe(tmp_path / "recipe.toml"), tmp_path / "run", Share(1, 2))
    assert recipe.tokenizers_from


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part", "3"], "--part must be I/N, such as 3/64, got '3'."),
        (["--part", "3/2"], "--part must be a number from 1 to the number of parts"),
        (["--part", "1/2", "--dry-run"], "--dry-run cannot stand beside --part"),
        (["--jobs", "0"], "--jobs must be at least 1"),
    ],
)
def test_options_that_cannot_be(project, tmp_path, capsys, arguments, message):
    recipe = str(project / "recipe.toml")
    assert main(["data", "prepare", recipe, "--out", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_ctrl_c_ends_the_workers_and_keeps_what_is_made(project, tmp_path, expected):
    marks = project / "marks"
    (marks / "slow").touch()
    try:
        # In a group of its own, as a shell starts it: Ctrl-C reaches all of the group.
        process = command(project, tmp_path, "--jobs", "2", start_new_session=True)
        deadline = time.monotonic() + 120
        while len(seen := list(marks.glob("seen-*"))) < 2:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        told = json.loads(process.communicate(timeout=60)[0])
    finally:
        (marks / "slow").unlink()
    assert (process.returncode, told["kind"]) == (130, "interrupted")
    for path in seen:
        assert not _lives(int(path.name.removeprefix("seen-")))
        path.unlink()
    assert list((tmp_path / "shards").glob("notes/ids-*"))  # the source before is finished
    run(load_recipe(project / "recipe.toml"), tmp_path, ["prepare"], workers=Workers(jobs=1))
    assert shards(tmp_path) == expected


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
