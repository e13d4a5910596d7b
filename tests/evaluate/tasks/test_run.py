"""The runner: resume, what decides an evaluation, failed items, and bad input."""

import json
import math
from pathlib import Path

import pytest
import torch
from tiny_tasks import CHOICE, ITEMS, write_lines, write_task

from pardalis.bundle import Bundle
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate.tasks import bundle_digest, evaluate_tasks, read_items, run
from pardalis.model import Decoder, initialise


@pytest.fixture(scope="module")
def finished(bundle, tmp_path_factory) -> Path:
    """A finished evaluation beside its task; tests must not change it."""
    folder = tmp_path_factory.mktemp("finished")
    evaluate_tasks(bundle, [write_task(folder)], folder / "out")
    return folder


class Stopped(Exception):
    pass


def stop_after(monkeypatch, n: int) -> list[str]:
    """Let the runner stop when it has kept n items; return the ids of those, as they come."""
    kept: list[str] = []
    append = run.TaskResults.append

    def counted(self, record):
        append(self, record)
        kept.append(record["id"])
        if len(kept) == n:
            raise Stopped

    monkeypatch.setattr(run.TaskResults, "append", counted)
    return kept


def without_time(folder: Path) -> dict:
    value = json.loads((folder / "results.json").read_text())
    for entry in value["tasks"].values():
        del entry["seconds"]
    return value


def test_an_interrupted_evaluation_continues(bundle, finished, tmp_path, monkeypatch):
    task = finished / "animals.toml"
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 2)
        evaluate_tasks(bundle, [task], tmp_path)
    with open(tmp_path / "animals" / "items.jsonl", "a") as file:
        file.write('{"id": "q4", "seed": 0, "inp')  # the line that a kill cut off
    again = stop_after(monkeypatch, 99)
    evaluate_tasks(bundle, [task], tmp_path)
    assert len(again) == len(ITEMS) - 2
    for name in ("animals/items.jsonl", "animals/task.json"):
        assert (tmp_path / name).read_bytes() == (finished / "out" / name).read_bytes()
    assert without_time(tmp_path) == without_time(finished / "out")


def test_a_larger_limit_adds_items_and_a_smaller_keeps_them(
    bundle, finished, tmp_path, monkeypatch
):
    task = finished / "animals.toml"
    assert evaluate_tasks(bundle, [task], tmp_path, limit=2)["tasks"]["animals"]["items"] == 2
    new = stop_after(monkeypatch, 99)
    assert evaluate_tasks(bundle, [task], tmp_path, limit=4)["tasks"]["animals"]["items"] == 4
    assert sorted(new) == ["q2", "q3"]
    assert evaluate_tasks(bundle, [task], tmp_path, limit=1)["tasks"]["animals"]["items"] == 1
    assert len(read_items(tmp_path, "animals")) == 4
    assert len(new) == 2


def test_examples_depend_on_the_seed_and_the_item_alone(bundle, finished, tmp_path):
    task = finished / "animals.toml"
    results = evaluate_tasks(bundle, [task], tmp_path / "a", shots=2, seeds=3)
    entry = results["tasks"]["animals"]
    assert entry["seeds"] == [0, 1, 2]
    assert entry["items"] == 3 * len(ITEMS)
    assert len(entry["numbers"]["accuracy"]["by_seed"]) == 3
    records = read_items(tmp_path / "a", "animals")
    for record in records:
        [prompt] = record["prompt"]
        own = next(item["animal"] for item in ITEMS if item["id"] == record["id"])
        assert prompt["text"].count("\n\n") == 2
        assert prompt["text"].count(f"The {own} is") == 1
    evaluate_tasks(bundle, [task], tmp_path / "b", shots=2, limit=1)
    [alone] = read_items(tmp_path / "b", "animals")
    assert alone["prompt"] == records[0]["prompt"]
    assert len({r["prompt"][0]["text"] for r in records if r["id"] == "q0"}) > 1
    with pytest.raises(ConfigError, match="shots is 5 in task 'animals', but there are only 5"):
        evaluate_tasks(bundle, [task], tmp_path / "c", shots=5)


def test_what_changes_an_evaluation_is_told(bundle, finished, tmp_path):
    def evaluate(**options):
        return evaluate_tasks(options.pop("bundle", bundle), [path], tmp_path / "out", **options)

    path = write_task(tmp_path)
    evaluate(limit=2)
    before = (tmp_path / "out" / "animals" / "items.jsonl").read_bytes()
    other = Bundle(initialise(Decoder(bundle.model.config), 1).eval(), bundle.codec, {})
    with pytest.raises(ConfigError, match="holds results of another bundle, None; choose"):
        evaluate(bundle=other)
    with pytest.raises(ConfigError, match=r"2 finished items .* \(task.shots was 0 and is 1\)"):
        evaluate(shots=1)
    path.write_text(CHOICE.replace('is"', 'was"'))
    with pytest.raises(ConfigError, match=r"task.prompt was 'The \{animal\} is' and is"):
        evaluate()
    path.write_text(CHOICE)
    write_lines(tmp_path / "items.jsonl", ITEMS[:3])
    with pytest.raises(ConfigError, match=r"the content of data.items.jsonl changed"):
        evaluate()
    assert (tmp_path / "out" / "animals" / "items.jsonl").read_bytes() == before


def test_a_changed_image_is_told(bundle, tmp_path):
    toml = CHOICE.replace('"The {animal} is"', '"{image}"').replace(
        'path = "items.jsonl"', 'path = "items.jsonl"\nimages = ["image"]'
    )
    items = [{"id": "a", "image": "red.png", "choices": ["an", "owl"], "answer": 1}]
    path = write_task(tmp_path, toml=toml, items=items)
    evaluate_tasks(bundle, [path], tmp_path / "out")
    (tmp_path / "red.png").write_bytes((tmp_path / "blue.png").read_bytes())
    with pytest.raises(ConfigError, match="holds the item 'a' with other images or fields"):
        evaluate_tasks(bundle, [path], tmp_path / "out")
    (tmp_path / "red.png").unlink()
    with pytest.raises(DataError, match=r"'animals': The image .*red.png of the item 'a' is miss"):
        evaluate_tasks(bundle, [path], tmp_path / "out")


def test_an_item_that_fails_is_kept_with_the_reason(bundle, tmp_path):
    items = [ITEMS[0], ITEMS[1] | {"animal": "owl and fox " * 100}]
    path = write_task(tmp_path, items=items)
    entry = evaluate_tasks(bundle, [path], tmp_path / "out")["tasks"]["animals"]
    assert (entry["items"], entry["failed"]) == (1, 1)
    assert "shorten it" in next(iter(entry["failures"]))
    assert "error" in read_items(tmp_path / "out", "animals")[1]
    write_lines(tmp_path / "items.jsonl", items[1:])
    with pytest.raises(DataError, match="No item of the task 'animals' could be evaluated: The pr"):
        evaluate_tasks(bundle, [path], tmp_path / "none")
    assert len(read_items(tmp_path / "none", "animals")) == 1


def test_scores_that_are_no_numbers(bundle, tmp_path):
    model = initialise(Decoder(bundle.model.config), 0).eval()
    with torch.no_grad():
        model.head.weight.fill_(math.nan)
    broken = Bundle(model, bundle.codec, {})
    with pytest.raises(DataError, match="the log-probability nan, which is not a finite number"):
        evaluate_tasks(broken, [write_task(tmp_path)], tmp_path / "out")


def test_the_digest_of_a_bundle(bundle):
    same = Bundle(initialise(Decoder(bundle.model.config), 0).eval(), bundle.codec, {"name": "x"})
    assert bundle_digest(same) == bundle_digest(bundle)
    half = Bundle(same.model.to(torch.bfloat16), bundle.codec, {})
    assert bundle_digest(half) != bundle_digest(bundle)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "items.jsonl has no items; is it the right file?"),
        ([ITEMS[0], ITEMS[0]], "two items with the id 'q0', number 1 and 2; ids must differ."),
        (
            [{"id": "a"}],
            "Task 'animals', item 'a': the template 'prompt' names the field {animal}, w",
        ),
        (["x"], "items.jsonl:1 holds no record: it is a JSON str; an object was expected."),
        ([{"animal": "owl"}], "record 1, has no text and no integer 'id' to name the item by."),
    ],
)
def test_bad_items_are_refused_before_a_model_is_loaded(items, message, tmp_path):
    path = write_task(tmp_path, items=items)
    with pytest.raises(DataError) as caught:
        evaluate_tasks(tmp_path / "no bundle", [path], tmp_path / "out")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_bad_tasks_and_folders(bundle, finished, tmp_path):
    for tasks, message in (
        ([], "`tasks` names nothing; give the names of tasks or TOML files."),
        (["arc_eazy"], "no task 'arc_eazy' among those that come with Pardalis, and it is no"),
        (["arc_eazy"], "did you mean 'arc_easy'?"),
        ([tmp_path / "none.toml"], "No task at"),
        ([finished / "animals.toml"] * 2, "`tasks` has the task 'animals' twice"),
    ):
        with pytest.raises(ConfigError) as caught:
            evaluate_tasks(bundle, tasks, tmp_path / "out")
        assert message in str(caught.value)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(ConfigError, match="other is not empty and holds no results of an evaluati"):
        evaluate_tasks(bundle, [finished / "animals.toml"], tmp_path / "other")
    with pytest.raises(DataError, match=r"items\.jsonl does not exist; a file of the task's items"):
        evaluate_tasks(bundle, [finished / "animals.toml"], tmp_path / "out", data=tmp_path)
