"""Adapters from the command line: merge, show, generate, score."""

import json
import shutil
from pathlib import Path

import pytest
from random_adapters import of_another_model, random_adapter
from shapes import decoder_config

from pardalis.adapters import DoRAConfig, LoRAConfig, save_adapter
from pardalis.bundle import Bundle, load
from pardalis.cli.main import main
from pardalis.model import Decoder, initialise

CONFIGS = {
    "first": LoRAConfig(rank=4, rows=("image",)),
    "second": DoRAConfig(rank=2, targets=("attention",)),
}
LINE = ("--mode", "text", "--max-new-tokens", "10")


@pytest.fixture(scope="module")
def folders(codec, tmp_path_factory) -> Path:
    """A bundle and two adapters, each also merged into a bundle of its own by the command."""
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=40, d_model=32, n_layers=2, n_heads=4,
        n_kv_heads=2, d_ff=64, init_std=0.3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("adapters")
    model = initialise(Decoder(config), 0).eval()
    Bundle(model, codec, {"recipe": "base"}, "# Licence\n").save(folder / "base")
    for n, (name, adapter) in enumerate(CONFIGS.items()):
        made = random_adapter(model, adapter, codec.vocabulary, seed=n)
        save_adapter(made, folder / name, codec.vocabulary)
        merged = str(folder / f"{name}-merged")
        assert (
            main(["adapter", "merge", str(folder / "base"), str(folder / name), "-o", merged]) == 0
        )
    other = of_another_model(made)
    save_adapter(other, folder / "other", codec.vocabulary)
    return folder


def out(capsys, *arguments) -> str:
    capsys.readouterr()
    assert main([str(each) for each in arguments]) == 0
    return capsys.readouterr().out


def failure(capsys, *arguments) -> str:
    capsys.readouterr()
    assert main([str(each) for each in arguments]) in (2, 4, 6)
    return capsys.readouterr().err


def test_a_merged_bundle_says_where_it_is_from(folders):
    merged = load(folders / "second-merged")
    assert merged.made_by == {"recipe": "base", "adapter": "dora"}
    assert merged.licences == "# Licence\n"


def test_generating_with_an_adapter_is_generating_with_the_merged_bundle(folders, capsys):
    plain = out(capsys, "generate", folders / "base", "an owl", *LINE)
    found = {plain}
    for name in CONFIGS:
        mine = ("--adapter", folders / name)
        text = out(capsys, "generate", folders / "base", "an owl", *LINE, *mine)
        assert text == out(capsys, "generate", folders / f"{name}-merged", "an owl", *LINE)
        found.add(text)
    assert len(found) == 3


def test_lines_of_prompts_choose_their_adapter(folders, capsys, tmp_path):
    named = ({}, {"adapter": "second"}, {"adapter": None}, {"adapter": "third"})
    lines = [{"prompt": "an owl", **each} for each in named]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    loaded = ("--adapter", f"one={folders / 'first'}", "--adapter", folders / "second")
    done = ("generate", folders / "base", *LINE, "--prompts", tmp_path / "p.jsonl", *loaded)
    error = failure(capsys, *done, "--out", tmp_path / "out")
    assert "1 of 4 prompts failed" in error
    records = (tmp_path / "out" / "completions.jsonl").read_text().splitlines()
    texts = ["".join(s["text"] for s in json.loads(r).get("completion", ())) for r in records]
    expected = [
        out(capsys, "generate", folders / name, "an owl", *LINE).removesuffix("\n")
        for name in ("first-merged", "second-merged", "base")
    ]
    assert texts == [*expected, ""]
    assert "adapter 'third' is not loaded; the engine has 'one', 'second'" in records[3]
    # Completions of other adapters are not resumed.
    loaded = ("--adapter", f"one={folders / 'second'}")
    other = ("generate", folders / "base", *LINE, "--prompts", tmp_path / "p.jsonl", *loaded)
    assert "holds completions of another bundle" in failure(
        capsys, *other, "--out", tmp_path / "out"
    )


def test_scores_are_those_of_the_merged_bundle(folders, capsys, tmp_path):
    (tmp_path / "s.jsonl").write_text('{"prompt": "an", "continuation": " owl"}\n')
    mine = out(capsys, "score", folders / "base", tmp_path / "s.jsonl", "--adapter",
               folders / "second")  # fmt: skip
    assert mine == out(capsys, "score", folders / "second-merged", tmp_path / "s.jsonl")
    assert mine != out(capsys, "score", folders / "base", tmp_path / "s.jsonl")


def test_an_adapter_or_its_run_is_described(folders, capsys, tmp_path):
    shown = out(capsys, "show", "adapter", folders / "first")
    assert "lora, rank 4, alpha 32" in shown
    assert "14: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in shown
    assert "32 tokens" in shown
    run = tmp_path / "run"
    shutil.copytree(folders / "first", run / "adapter")
    of_run = out(capsys, "show", "adapter", run)
    assert of_run.splitlines()[1:] == shown.splitlines()[1:]
    given = ("generate", folders / "base", "an owl", *LINE, "--adapter")
    assert out(capsys, *given, run) == out(capsys, *given, folders / "first")
    described = json.loads(out(capsys, "show", "adapter", folders / "second", "--json"))
    assert (described["kind"], described["rows"], described["matrices"]) == ("dora", 0, 8)


def test_mistakes_are_told_in_a_sentence(folders, capsys, tmp_path):
    base = folders / "base"
    message = failure(capsys, "generate", base, "owl", "--adapter", folders / "other")
    assert "The adapter 'other' was trained on another model than this bundle's" in message
    message = failure(capsys, "adapter", "merge", base, folders / "other", "-o", tmp_path / "m")
    assert "The adapter was trained on another model" in message
    assert not (tmp_path / "m").exists()
    message = failure(capsys, "adapter", "merge", base, folders / "first", "-o", base)
    assert "exists and is not empty" in message
    twice = ("--adapter", folders / "first", "--adapter", f"first={folders / 'second'}")
    assert "the name 'first' twice" in failure(capsys, "generate", base, "owl", *twice)
    message = failure(capsys, "generate", base, "owl", "--adapter", tmp_path / "none")
    assert "No adapter at" in message
    message = failure(capsys, "show", "adapter", base)
    assert "is not the folder of an adapter: it has no adapter_config.json" in message
