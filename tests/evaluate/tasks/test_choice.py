"""Choice by likelihood: the numbers are those of scores one by one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_tasks import CHOICE, ITEMS, write_task

import pardalis
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate.tasks import (
    Item,
    Trial,
    evaluate_tasks,
    load_items,
    load_task,
    read_items,
    shipped_tasks,
    task_of,
)

VALUES = {
    "name": "t", "kind": "choice", "prompt": "{question}", "choices": ["{choices}"],
    "answer": "{answer}", "data": {"path": "x.jsonl"},
}  # fmt: skip


def test_scores_are_those_of_the_choices(bundle, tmp_path):
    results = evaluate_tasks(bundle, [write_task(tmp_path)], tmp_path / "out")
    records = read_items(tmp_path / "out", "animals")
    accuracy = []
    pairs = [(f"The {i['animal']} is", f" {choice}") for i in ITEMS for choice in i["choices"]]
    scores = iter(pardalis.score(bundle, pairs))
    for item, record in zip(ITEMS, records, strict=True):
        alone = [next(scores) for _ in item["choices"]]
        sums = np.array([score.log_prob for score in alone])
        assert record["details"]["log_probs"] == pytest.approx(sums, abs=1e-4)
        lengths = {
            "accuracy": np.ones(3),
            "accuracy_tokens": np.array([len(score.log_probs) for score in alone]),
            "accuracy_characters": np.array([len(c) for c in item["choices"]]),
            "accuracy_bytes": np.array([len(c.encode()) for c in item["choices"]]),
        }
        for name, length in lengths.items():
            assert record["scores"][name] == float(np.argmax(sums / length) == item["answer"])
        wrong = np.delete(sums, item["answer"])
        assert record["scores"]["margin"] == pytest.approx(
            sums[item["answer"]] - wrong.max(), abs=1e-4
        )
        accuracy.append(record["scores"]["accuracy"])
    numbers = results["tasks"]["animals"]["numbers"]
    assert numbers["accuracy"]["value"] == pytest.approx(np.mean(accuracy))
    assert numbers["chance"] == {"value": pytest.approx(1 / 3)}


def test_choices_of_different_lengths_are_told_where_no_score_is_normalised(
    bundle, tmp_path, caplog
):
    evaluate_tasks(bundle, [write_task(tmp_path)], tmp_path / "out")
    assert "different lengths" not in caplog.text
    toml = CHOICE.replace('["none", "tokens", "characters", "bytes"]', '["none"]')
    evaluate_tasks(bundle, [write_task(tmp_path, "plain", toml)], tmp_path / "out")
    assert (
        "Task 'plain': the choices of 5 of 5 items have different lengths in tokens, and the sum "
        "of log-probabilities favours short ones; add 'tokens' or 'bytes' to normalise to see the "
        "accuracy without that."
    ) in caplog.messages
    items = [{**ITEMS[0], "choices": ["an owl"] * 2, "answer": 0}]
    caplog.clear()
    evaluate_tasks(bundle, [write_task(tmp_path, "equal", toml, items)], tmp_path / "equal")
    assert "different lengths" not in caplog.text


def test_an_unconditional_prompt(bundle, tmp_path):
    toml = CHOICE.replace('"none", "tokens"', '"unconditional", "none"').replace(
        "[data]", 'unconditional = "Answer:"\n\n[data]'
    )
    evaluate_tasks(bundle, [write_task(tmp_path, toml=toml)], tmp_path / "out", limit=2)
    for item, record in zip(ITEMS, read_items(tmp_path / "out", "animals"), strict=False):
        prompts = f"The {item['animal']} is", "Answer:"
        pairs = [(prompt, f" {choice}") for prompt in prompts for choice in item["choices"]]
        given = np.array([score.log_prob for score in pardalis.score(bundle, pairs)])
        assert record["details"]["chosen"] == np.argmax(given[:3] - given[3:])


def test_an_unconditional_prompt_may_be_empty(bundle, tmp_path):
    toml = 'normalise = ["unconditional"]\nunconditional = ""\n' + CHOICE.replace(
        'normalise = ["none", "tokens", "characters", "bytes"]\n', ""
    )
    task = load_task(write_task(tmp_path, toml=toml))
    [item, *_] = load_items(task.data, tmp_path)
    *_, last = task.requests(Trial(item), bundle)
    [score] = pardalis.score(bundle, [(last.prompt, last.continuation)])
    assert last.prompt.segments == () and score.log_prob < 0


def test_images_in_prompts_and_choices(bundle, tmp_path):
    toml = CHOICE.replace('"The {animal} is"', '"{image}What?"').replace(
        'path = "items.jsonl"', 'path = "items.jsonl"\nimages = ["image", "choices"]'
    )
    toml = toml.replace('"none", "tokens", "characters", "bytes"', '"none", "tokens"')
    items = [{"id": "a", "image": "red.png", "choices": ["red.png", "blue.png"], "answer": 1}]
    evaluate_tasks(bundle, [write_task(tmp_path, toml=toml, items=items)], tmp_path / "out")
    [record] = read_items(tmp_path / "out", "animals")
    red, blue = tmp_path / "red.png", tmp_path / "blue.png"
    alone = pardalis.score(bundle, [([red, "What?"], red), ([red, "What?"], blue)])
    assert record["details"]["log_probs"] == pytest.approx([s.log_prob for s in alone], abs=1e-4)
    assert record["prompt"] == [{"image": "red.png"}, {"text": "What?"}]
    assert record["expected"] == [{"image": "blue.png"}]


@pytest.mark.parametrize(
    ("fields", "changes", "right"),
    [
        ({"choices": ["a", "b"], "answer": "b"}, {}, 1),
        ({"choices": ["a", "b"], "answer": 1}, {}, 1),
        ({"choices": ["1", "0"], "answer": 1}, {}, 1),  # an integer is the number of a choice
        ({"choices": ["1", "0"], "answer": "1"}, {}, 0),  # a text is its text
        ({"choices": ["a", "b"], "answer": "B"}, {"labels": ["A", "B", "C"]}, 1),
        ({"choices": ["a", "b"], "answer": 2}, {"labels": ["1", "2"]}, 1),
        ({"x": "a", "y": "b", "answer": "2"}, {"choices": ["{x}", "{y}"], "labels": ["1", "2"]}, 1),
        ({"answer": True}, {"choices": ["no", "yes"], "labels": ["False", "True"]}, 1),
        (
            {"c": {"text": ["a", "b"], "label": ["1", "2"]}, "answer": "2"},
            {"choices": ["{c.text}"], "labels": ["{c.label}"]},
            1,
        ),
    ],
)
def test_the_right_choice(fields, changes, right):
    task = task_of(VALUES | changes)
    assert task.choices_of(Item("a", {"question": "?"} | fields))[1] == right


@pytest.mark.parametrize(
    ("fields", "changes", "message"),
    [
        (
            {"choices": ["a", "b"], "answer": "c"},
            {},
            "the answer 'c' is none of the choices, 'a', ",
        ),
        ({"choices": ["a", "b"], "answer": 2}, {}, "the answer '2' is none of the choices"),
        ({"choices": ["a"], "answer": "B"}, {"labels": ["A", "B"]}, "'B' is none of the choices"),
        ({"choices": [], "answer": 0}, {}, "there are 0 choices; 1 to 1000 are needed."),
        ({"choices": ["a", ""], "answer": 0}, {}, "choice 2 of 2 is empty"),
        ({"choices": "a", "answer": 0}, {"prompt": "{quesion}"}, "did you mean {question}?"),
        ({"choices": [["a"]], "answer": 0}, {}, "it is a list, where a text, a number or an"),
    ],
)
def test_an_item_that_does_not_fit_is_refused(fields, changes, message):
    task = task_of(VALUES | changes)
    with pytest.raises(DataError) as caught:
        task.check(Trial(Item("a", {"question": "?"} | fields)))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choices": []}, "choices must have at least one entry."),
        ({"normalise": ["unconditional"]}, "unconditional is missing, but normalise names it"),
        ({"normalise": ["byte"]}, "normalise.0 must be one of 'none', 'tokens'"),
        ({"prompt": "{a"}, "prompt has a brace '{' alone at character 0"),
        ({"prompt": "{a|upper}"}, "prompt has the filter 'upper'; it must be one of lettered"),
        ({"kind": "choise"}, "kind must be one of 'choice'"),
        ({"name": "../x"}, "name must be a name of letters"),
        ({"shot": 1}, "Unknown key 'shot'; did you mean 'shots'?"),
        ({"data": {"path": "x.txt"}}, "data.path must end in .jsonl, .json, .csv"),
    ],
)
def test_a_wrong_task_is_refused(changes, message):
    with pytest.raises(ConfigError) as caught:
        task_of(VALUES | changes)
    assert message in str(caught.value)


def test_few_shot_examples_and_turns():
    task = task_of(VALUES | {"preamble": "Exam.\n", "separator": "##", "shots": 1})
    shot, item = (
        Item(name, {"question": f"{name}?", "choices": ["x", "y"], "answer": 1}) for name in "ab"
    )
    assert task.prompt_of(Trial(item, (shot,))).text == "Exam.\na? y##b?"
    chat = replace(task, chat=True, preamble="Exam.")
    turns = [(s.role, s.text) for s in chat.prompt_of(Trial(item, (shot,))).segments]
    assert turns == [("system", "Exam."), ("user", "a?"), ("assistant", "y"), ("user", "b?")]


def test_a_shipped_task_reads_back():
    for name, path in shipped_tasks().items():
        assert load_task(Path(path)).name == name
