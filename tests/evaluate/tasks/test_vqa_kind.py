"""Short answers about images: the soft accuracy, answer types, and examples."""

import pytest
from tiny_tasks import write_task

from pardalis.evaluate.metrics.vqa import vqa_accuracy
from pardalis.evaluate.tasks import Item, Trial, evaluate_tasks, read_items, task_of

VALUES = {
    "name": "t", "kind": "vqa", "prompt": "{q}", "answers": ["{answers}"],
    "data": {"path": "x.jsonl"}, "group": "{type}",
}  # fmt: skip
PEOPLE = ["bird", "Two owls", *["two owls"] * 2, *["owls"] * 6]


class Said:
    reason = "eos"

    def __init__(self, text: str) -> None:
        self.text, self.segments = text, ()


def score(task, text, kind="number"):
    item = Item("a", {"q": "?", "answers": PEOPLE, "type": kind})
    return task.score(Trial(item), (), [Said(text)])


@pytest.mark.parametrize("text", [" The 2 owls.\nQuestion: What", "owls", "bird", "fox"])
def test_the_first_line_is_scored_as_vqa_does(text):
    answer = text.strip().splitlines()[0]
    assert score(task_of(VALUES), text).scores == {"vqa": vqa_accuracy(answer, PEOPLE)}


def test_numbers_of_each_answer_type(tmp_path):
    task = task_of(VALUES)
    said = [("0", "owls", "number"), ("1", "fox", "number"), ("2", "bird", "other")]
    records = []
    for name, text, kind in said:
        outcome = score(task, text, kind)
        records.append(
            {"id": name, "seed": 0, "scores": outcome.scores, "details": outcome.details}
        )
    numbers = task.summarise(records, tmp_path)
    assert list(numbers) == ["vqa", "vqa_number", "vqa_other"]
    assert numbers["vqa_number"].value == 0.5
    assert numbers["vqa_other"].value == vqa_accuracy("bird", PEOPLE)


def test_examples_show_the_most_frequent_answer(bundle, tmp_path):
    toml = """\
kind = "vqa"
prompt = "{image}Q: {q} A:"
answers = ["{answers}"]
shots = 1

[generation]
max_new_tokens = 2

[data]
path = "items.jsonl"
images = ["image"]
"""
    items = [{"image": "red.png", "q": f"What {n}?", "answers": PEOPLE} for n in range(2)]
    path = write_task(tmp_path, toml=toml, items=items)
    entry = evaluate_tasks(bundle, [path], tmp_path / "out")["tasks"]["animals"]
    assert list(entry["numbers"]) == ["vqa"]
    record = read_items(tmp_path / "out", "animals")[0]
    texts = [each["text"] for each in record["prompt"] if "text" in each]
    assert texts == ["Q: What 1? A: owls\n\n", "Q: What 0? A:"]
    assert record["expected"] == [{"text": "owls"}]


def test_an_answer_is_ten_tokens_at_most_by_default():
    assert task_of(VALUES).options(0).max_new_tokens == 10
    assert task_of(VALUES | {"generation": {"max_new_tokens": 3}}).options(0).max_new_tokens == 3
