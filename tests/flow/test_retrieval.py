"""Retrieval from a recipe to an answer: the stage, the rows, the commands."""

import json
import shutil
from pathlib import Path

import pytest
import tomli_w
import torch
from forms import _SHAPE, HELD_OUT, MODEL, RETRIEVED, TRAINING, _write_sources
from random_weights import randomised
from small_nets import write_clip

import pardalis
from pardalis.cli.main import main
from pardalis.errors import BundleError, ConfigError, DataError
from pardalis.pipeline import dry_run, load_recipe, read_records, run
from pardalis.retrieval import ClipConfig, Index, Retriever
from pardalis.vq import ImageTokenizer, ImageTokenizerConfig

CAPTIONED = {"name": "captioned", "reader": "folder", "path": "captioned"}
RECIPE = {
    "name": "retrieved",
    "sources": [CAPTIONED | {"transforms": [{"kind": "pair_order"}, RETRIEVED]}],
    "heldout": [HELD_OUT["heldout"][0] | {"transforms": [RETRIEVED]}],
    "retrieval": {
        "embedder": {"kind": "clip", "folder": "clip"},
        "rules": {"max_score": 1.0},
        "separator": "break",
    },
    "image_tokenizer_from": "tokenizer",
} | MODEL | TRAINING  # fmt: skip


def write_recipe(folder: Path, name: str = "recipe", **changes) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps({k: v for k, v in (RECIPE | changes).items() if v is not None}))
    return path


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Sources, nets, a recipe, and its finished run."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("retrieved") / "project"
    _write_sources(folder)
    config = ImageTokenizerConfig(**_SHAPE | {"channel_multipliers": (1, 2)})
    randomised(ImageTokenizer(config)).save(folder / "tokenizer")
    write_clip(folder / "clip")
    write_clip(folder / "other-clip", seed=1)
    run(load_recipe(write_recipe(folder)), folder / "run")
    return folder


def json_of(capsys, *arguments: str) -> dict:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_run_has_an_index_and_candidates(project):
    assert [record.name for record in read_records(project / "run")] == [
        "text_tokenizer", "prepare", "retrieval", "train", "sample", "report",
    ]  # fmt: skip
    index = Index.open(project / "run" / "retrieval" / "index")
    assert len(index) == 6
    folders = sorted(path.name for path in (project / "run/retrieval/neighbours").iterdir())
    assert folders == ["captioned", "unseen"]


def test_rows_hold_retrieved_documents_and_others_in_other_epochs(project, capsys):
    shown = [
        json_of(
            capsys, "data", "show", str(project / "run"), "--source", "captioned", "--row", "0",
            "--epoch", str(epoch),
        )["documents"][0]
        for epoch in range(6)
    ]  # fmt: skip
    assert all(each["text"].count("<begin_image>") == 2 for each in shown)
    assert all(each["text"].count("<break>") == 1 for each in shown)
    assert all(each["ids"] > each["written_ids"] for each in shown)
    assert len({each["text"] for each in shown}) > 1


def decisions(project: Path, path: Path) -> dict[str, str]:
    return {each.stage: each.action for each in dry_run(load_recipe(path), project / "run")}


def test_only_what_has_changed_is_made_again(project):
    assert set(decisions(project, write_recipe(project)).values()) == {"skip"}
    rules = RECIPE["retrieval"] | {"rules": {"max_score": 0.99}}
    found = decisions(project, write_recipe(project, "other", retrieval=rules))
    assert found["prepare"] == "skip"
    assert found["retrieval"] == "run" and found["train"] in ("run", "resume")
    drawn = [CAPTIONED | {"transforms": [{"kind": "pair_order"}, RETRIEVED | {"varies": True}]}]
    found = decisions(project, write_recipe(project, "other", sources=drawn))
    assert found["prepare"] == found["retrieval"] == "skip"
    assert found["train"] in ("run", "resume")
    longer = [CAPTIONED | {"transforms": [RETRIEVED | {"document_tokens": 40}]}]
    found = decisions(project, write_recipe(project, "other", sources=longer))
    assert found["prepare"] == "run"  # the packer keeps other room


def test_an_index_of_a_run_is_built_searched_and_used(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    built = json_of(
        capsys, "retrieval", "build", "run", "--source", "captioned", "--clip", "clip",
        "--separator", "break", "-o", "index",
    )  # fmt: skip
    assert (built["documents"], built["mixed_modal"], built["width"]) == (6, 6, 24)
    found = json_of(
        capsys, "retrieval", "search", "index", "noise number 3", "--image", "captioned/3.png",
        "--clip", "clip", "--bundle", "run", "--out", "found.html", "--documents", "3",
        "--max-score", "1",
    )["found"]  # fmt: skip
    assert len(found) == 3 and found[0]["by"] == "text" and found[-1]["by"] == "image"
    assert all(each["text"].startswith("noise number") and each["images"] == 1 for each in found)
    assert "<img" in Path("found.html").read_text()
    answer = json_of(
        capsys, "generate", "run", "noise", "--mode", "text", "--max-new-tokens", "4",
        "--retrieve", "index", "--documents", "1", "--clip", "clip",
    )  # fmt: skip
    retriever = Retriever(Path("index"), 1, embedder=ClipConfig(folder=Path("clip")))
    response = pardalis.generate("run", "noise", mode="text", max_new_tokens=4, retriever=retriever)
    assert answer["retrieved"][0]["name"] == response.retrieved[0].name
    assert answer["usage"]["prompt_tokens"] == response.usage.prompt_tokens
    assert main(["retrieval", "search", "index", "noise", "--clip", "clip"]) == 0
    assert " by text " in capsys.readouterr().out


def test_documents_without_a_run(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    arguments = ["-o", "of-folder", "--codec", "run", "--clip", "clip"]
    built = json_of(capsys, "retrieval", "build", "captioned", *arguments)
    assert built["sources"] == ["documents"] and built["documents"] == 6


def test_a_run_may_retrieve_from_another_index(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    arguments = ["-o", "own", "--codec", "run", "--clip", "clip"]
    json_of(capsys, "retrieval", "build", "captioned", *arguments)
    transforms = [RETRIEVED | {"index": "own"}]
    changes = {
        "sources": [CAPTIONED | {"transforms": transforms}],
        "heldout": None,
        "start_from": "run/bundle",
        "image_tokenizer_from": None,
        "model": None,
        "retrieval": {"embedder": {"kind": "clip", "folder": "clip"}, "rules": {"max_score": 1.0}},
    }
    path = write_recipe(project, "further", **changes)
    run(load_recipe(path), project / "further")
    assert not (project / "further" / "retrieval" / "index").exists()
    captured = json_of(
        capsys, "data", "show", "further", "--source", "captioned", "--row", "0"
    )["documents"]  # fmt: skip
    assert captured[0]["text"].count("<begin_image>") == 2
    other = {"retrieval": {"embedder": {"kind": "clip", "folder": "other-clip"}}}
    for table, error, message in (
        (other, DataError, "was made by nets of the fingerprint"),
        ({"retrieval": None}, ConfigError, r"made by a CLIP.*in a recipe by retrieval\.embedder"),
    ):
        path = write_recipe(project, "further", **changes | table)
        with pytest.raises(error, match=message):
            dry_run(load_recipe(path), project / "further-2")
    inside = [CAPTIONED | {"transforms": [RETRIEVED | {"index": "{run}/mine"}]}]
    path = write_recipe(project, "further", **changes | {"sources": inside})
    shutil.copytree("own", "further-2/mine")
    run(load_recipe(path), project / "further-2", only=["prepare", "retrieval"])
    assert (project / "further-2" / "retrieval" / "neighbours" / "captioned").is_dir()


def retrieval(**changes) -> dict:
    return {"retrieval": RECIPE["retrieval"] | changes}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (retrieval(sources=["unseen"]), ConfigError, "names 'unseen', which is no training source"),
        (
            retrieval(separator="stop")
            | {"tokenizers_from": "run/bundle", "image_tokenizer_from": None},
            DataError,
            "The separator 'stop' of retrieved documents",
        ),
        (
            retrieval(embedder={"kind": "clip", "folder": "none"}),
            BundleError,
            r"none/config\.json does not exist; give the weights",
        ),
        (
            retrieval(rules={"candidates": 1}) | {
                "sources": [CAPTIONED | {"transforms": [
                    RETRIEVED | {"documents": 2, "document_tokens": 24}]}],
                "prepare": {"row_tokens": 120},
            },
            ConfigError,
            r"draws documents = 2 of retrieval\.rules\.candidates = 1",
        ),
        (
            {"sources": [CAPTIONED | {"transforms": [RETRIEVED, RETRIEVED]}]},
            ConfigError,
            "lists 'retrieval' twice",
        ),
        (
            {"sources": [CAPTIONED | {"transforms": [RETRIEVED | {"index": "none"}]}]},
            ConfigError,
            "retrieve from several indices",
        ),
        (
            {
                "sources": [CAPTIONED | {"transforms": [RETRIEVED | {"index": "none"}]}],
                "heldout": None,
            },
            DataError,
            "none does not exist; build an index there",
        ),
        (
            {"training": RECIPE["training"] | {"objective": {"kind": "sft"}}},
            ConfigError,
            "would also learn what is retrieved; set learn_retrieved = false",
        ),
        (
            {"sources": [CAPTIONED | {"transforms": [RETRIEVED | {"documents": 9}]}]},
            ConfigError,
            "leave no room for a document in a row of 96 tokens",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_anything_runs(project, tmp_path, changes, error, message):
    path = write_recipe(project, "mistaken", **changes)
    with pytest.raises(error, match=message):
        run(load_recipe(path), tmp_path / "run")
    assert not (tmp_path / "run" / "text_tokenizer").exists()
    assert not (tmp_path / "run" / "shards").exists()


def test_flags_without_an_index_are_refused(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    assert main(["generate", "run", "noise", "--documents", "1"]) == 6
    assert "--documents applies to retrieved documents; give --retrieve too" in (
        capsys.readouterr().err
    )
