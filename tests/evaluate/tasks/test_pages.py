"""The page of an evaluation, and comparisons: paired differences over the same items."""

import json
import shutil

import numpy as np
import pytest
from tiny_tasks import CHOICE, ITEMS, write_lines, write_task

from pardalis.bundle import Bundle
from pardalis.cli.main import main
from pardalis.errors import ConfigError
from pardalis.evaluate.tasks import compare_results, evaluate_tasks, read_items
from pardalis.evaluate.tasks.page import worst
from pardalis.model import Decoder, initialise

LOSSES = 'kind = "perplexity"\n\n[data]\nkind = "documents"\npath = "items.jsonl"\n'
DOCUMENTS = [
    {"name": name, "segments": [{"text": text}, {"image": image}]}
    for name, text, image in (("a", "An owl", "red.png"), ("b", "A <b>fox</b>", "blue.png"))
]


@pytest.fixture(scope="module")
def evaluated(bundle, tmp_path_factory):
    """Three models on a task of choices and one of losses."""
    folder = tmp_path_factory.mktemp("evaluated")
    choice = write_task(folder / "a")
    losses = write_task(folder / "b", "losses", LOSSES, DOCUMENTS)
    for seed in range(3):
        model = initialise(Decoder(bundle.model.config), seed).eval()
        other = Bundle(model, bundle.codec, {"steps": 10 * seed})
        evaluate_tasks(other, [choice, losses], folder / f"out{seed}")
    return folder


def test_the_page_has_numbers_items_and_images(evaluated):
    page = (evaluated / "out0" / "index.html").read_text()
    assert page.count('id="animals"') == page.count('id="losses"') == 1
    assert "The owl is" in page
    assert "A &lt;b&gt;fox&lt;/b&gt;" in page
    assert page.count('<img src="data:image/png') == 4  # two among the worst, two drawn
    assert "Worst items" in page


def test_the_page_of_several_seeds_and_of_failed_items(bundle, tmp_path):
    items = [*ITEMS, ITEMS[0] | {"id": "long", "animal": "owl and fox " * 100}]
    path = write_task(tmp_path, items=items)
    evaluate_tasks(bundle, [path], tmp_path / "out", shots=1, seeds=2)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "95 % interval over seeds" in page
    assert "items failed and are in no number" in page
    assert "2 seeds" in page


def test_paired_differences(evaluated):
    folders = [evaluated / f"out{seed}" for seed in range(3)]
    result = compare_results(folders, evaluated / "page.html")
    scores = [[r["scores"]["margin"] for r in read_items(f, "animals")] for f in folders]
    compared = result["tasks"]["animals"]
    for number, difference in enumerate(compared["differences"], 1):
        expected = np.mean(np.array(scores[number]) - np.array(scores[0]))
        assert difference["margin"]["value"] == pytest.approx(expected)
        assert difference["margin"]["low"] <= expected <= difference["margin"]["high"]
        assert "chance" not in difference
    bits = [each["bits_per_byte"]["value"] for each in result["tasks"]["losses"]["numbers"]]
    differences = [each["bits_per_byte"] for each in result["tasks"]["losses"]["differences"]]
    assert [each["value"] for each in differences] == pytest.approx(
        [value - bits[0] for value in bits[1:]]
    )
    better, worse = result["tasks"]["losses"]["better_and_worse"][0]
    assert better + worse == 2
    page = (evaluated / "page.html").read_text()
    assert page.count("<svg") == 2
    assert "training step" in page


def test_the_same_results_do_not_differ(evaluated):
    result = compare_results([evaluated / "out0"] * 2)
    difference = result["tasks"]["animals"]["differences"][0]["accuracy"]
    assert difference == {"value": 0, "low": 0, "high": 0}


def test_what_does_not_compare(evaluated, bundle, tmp_path):
    def refused(message, *folders):
        with pytest.raises(ConfigError) as caught:
            compare_results([evaluated / "out0", *folders])
        assert message in str(caught.value)

    refused("`folders` must be at least two folders of results, got 1.")
    refused("is not empty and holds no results", evaluated)
    changed = write_task(tmp_path / "x", toml=CHOICE.replace('is"', 'was"'))
    evaluate_tasks(bundle, [changed], tmp_path / "changed", limit=1)
    refused("is not that of", tmp_path / "changed")
    refused("prompt was 'The {animal} is' and is", tmp_path / "changed")
    other = write_task(tmp_path / "y", items=[ITEMS[0] | {"answer": 1}, *ITEMS[1:]])
    evaluate_tasks(bundle, [other], tmp_path / "other", limit=1)
    refused("the content of items.jsonl changed", tmp_path / "other")
    third = write_task(tmp_path / "z", "third")
    evaluate_tasks(bundle, [third], tmp_path / "third", limit=1)
    refused("The folders have no task in common", tmp_path / "third")
    copy = shutil.copytree(evaluated / "out1", tmp_path / "copy")
    write_lines(copy / "animals" / "items.jsonl", [])
    refused("no finished item of the task 'animals' in common", copy)


def test_the_command_line(bundle_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_task(tmp_path)
    command = ["evaluate", str(bundle_folder), "--tasks", "animals.toml", "--limit", "2"]
    assert main([*command, "-o", "a"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("animals  accuracy")
    assert shown.endswith("a/index.html\n")
    assert main([*command, "-o", "a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"]["animals"]["items"] == 2
    assert main(["evaluate", "compare", "a", "a", "-o", "page.html", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["tasks"]) == ["animals"]
    assert (tmp_path / "page.html").is_file()
    assert main(["evaluate", "tasks", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["arc_easy"]["kind"] == "choice"
    assert all(len(each["files"]) == len(set(each["files"])) for each in listed.values())


def test_the_worst_items_of_a_task_whose_first_number_is_one_of_the_corpus():
    records = [{"id": str(i), "scores": {"rouge_l": i / 10}} for i in range(9, 0, -1)]
    entry = {"numbers": {"cider_d": {}, "rouge_l": {}}, "higher_is_better": True}
    assert [record["id"] for record in worst(records, entry)] == list("123456")
    entry = {"numbers": {"frechet": {}, "rouge_l": {}}, "higher_is_better": False}
    assert worst(records, entry)[0]["id"] == "1"
    entry = {"numbers": {"rouge_l": {}}, "higher_is_better": False}
    assert worst(records, entry)[0]["id"] == "9"
