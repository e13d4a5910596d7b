"""Choice among contexts: the same ending after each of them."""

import pytest
from tiny_tasks import write_task

import pardalis
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate.tasks import Item, Trial, evaluate_tasks, read_items, task_of

TOML = """\
kind = "context_choice"
choices = ["{beginnings}"]
answer = "{right}"
ending = "{ending}"

[data]
path = "items.jsonl"
"""
ITEMS = [
    {"beginnings": ["The owl", "The old fox"], "ending": " sat on the oak.", "right": n % 2}
    for n in range(2)
]
VALUES = {
    "name": "t", "kind": "context_choice", "choices": ["{beginnings}"], "answer": "{right}",
    "ending": "{ending}", "data": {"path": "x.jsonl"},
}  # fmt: skip


def test_the_ending_is_scored_after_each_context(bundle, tmp_path):
    path = write_task(tmp_path, toml=TOML, items=ITEMS)
    numbers = evaluate_tasks(bundle, [path], tmp_path / "out")["tasks"]["animals"]["numbers"]
    assert numbers["accuracy"]["value"] == 0.5  # the same choice, which is right once
    first, _ = read_items(tmp_path / "out", "animals")
    for context, value in zip(ITEMS[0]["beginnings"], first["details"]["log_probs"], strict=True):
        [alone] = pardalis.score(bundle, [(context, ITEMS[0]["ending"])])
        assert value == pytest.approx(alone.log_prob, abs=1e-4)
    assert len(set(first["details"]["tokens"])) == 1


def test_an_example_is_the_whole_sentence():
    task = task_of(VALUES)
    items = [Item(str(n), fields) for n, fields in enumerate(ITEMS)]
    prompt = task.prompt_of(Trial(items[1], (items[0],)))
    assert prompt.text == "The owl sat on the oak.\n\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalise": ["bytes"]}, "normalise must be ['none'] for context_choice"),
        ({"chat": True}, "chat does not apply to context_choice"),
    ],
)
def test_what_does_not_apply(changes, message):
    with pytest.raises(ConfigError) as caught:
        task_of(VALUES | changes)
    assert message in str(caught.value)


def test_a_sentence_without_an_ending():
    item = Item("a", dict(ITEMS[0], ending=""))
    with pytest.raises(DataError, match="'ending' gives nothing whose likelihood could count"):
        task_of(VALUES).check(Trial(item))
