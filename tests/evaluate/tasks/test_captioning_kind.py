"""Captions: the metrics of a corpus from kept items, and what is refused."""

from functools import partial

import numpy as np
import pytest
from tiny_tasks import write_task

from pardalis.documents import Image
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate.metrics.captioning import BleuCounts, cider_d, rouge_l
from pardalis.evaluate.metrics.intervals import bootstrap_of
from pardalis.evaluate.metrics.ptb import caption_words
from pardalis.evaluate.tasks import Item, Trial, captioning, evaluate_tasks, read_items, task_of

VALUES = {
    "name": "t", "kind": "captioning", "prompt": "{image}Caption:", "references": ["{captions}"],
    "data": {"path": "items.jsonl", "images": ["image"]},
}  # fmt: skip
TOML = """\
kind = "captioning"
prompt = "{image}Caption:"
references = ["{captions}"]
metrics = ["cider_d", "bleu", "rouge_l", "meteor"]
shots = 1

[generation]
max_new_tokens = 6
temperature = 1.0

[data]
path = "items.jsonl"
id = "id"
images = ["image"]
"""
ITEMS = [
    {"id": str(n), "image": "red.png", "captions": captions}
    for n, captions in enumerate([["an old owl", "the owl"], ["a red fox ran"], ["the cat sat"]])
]


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    few = partial(bootstrap_of, resamples=100)
    monkeypatch.setattr(captioning, "bootstrap_of", few)


class Said:
    reason = "eos"

    def __init__(self, text: str) -> None:
        self.text, self.segments = text, ()


def records_of(task, captions, seed=0):
    references = [["an old owl sat", "the owl"], ["a red fox ran"], ["the cat sat on it"]]
    found = []
    for n, caption in enumerate(captions):
        item = Item(str(n), {"image": Image(b""), "captions": references[n]})
        outcome = task.score(Trial(item), (), [Said(caption)])
        found.append(
            {"id": item.id, "seed": seed, "scores": outcome.scores, "details": outcome.details}
        )
    return found


FIRST = ["an old owl sat\nA fox", "the fox ran", "a dog"]
SECOND = ["the owl sat", "a red fox ran", "the cat sat"]


def test_numbers_are_those_of_the_corpus(tmp_path):
    task = task_of(VALUES)
    records = records_of(task, FIRST)
    captions = [caption_words(text.splitlines()[0]) for text in FIRST]
    references = [[caption_words(t) for t in r["details"]["references"]] for r in records]
    numbers = task.summarise(records, tmp_path)
    assert next(iter(numbers)) == "cider_d"
    assert numbers["cider_d"].value == pytest.approx(cider_d(captions, references).mean())
    assert numbers["rouge_l"].value == pytest.approx(rouge_l(captions, references).mean())
    bleu = BleuCounts.of(captions, references).corpus()
    assert numbers["bleu_4"].value == pytest.approx(bleu[3])
    assert numbers["bleu_1"].value == pytest.approx(bleu[0])
    assert numbers["bleu_4"].low <= bleu[3] <= numbers["bleu_4"].high
    assert numbers["words"].value == pytest.approx(np.mean([len(each) for each in captions]))


def test_seeds_share_the_weights_of_one_corpus(tmp_path):
    task = task_of(VALUES)
    first, second = records_of(task, FIRST), records_of(task, SECOND, seed=1)
    alone = [task.summarise(each, tmp_path) for each in (first, second)]
    both = task.summarise([*first, *second], tmp_path)
    for name in ("cider_d", "bleu_1", "rouge_l"):
        assert both[name].by_seed == pytest.approx([each[name].value for each in alone])


def test_differences_are_those_of_the_numbers(tmp_path):
    task = task_of(VALUES)
    first, second = records_of(task, FIRST), records_of(task, SECOND)
    before, after = task.summarise(first, tmp_path), task.summarise(second, tmp_path)
    found = task.differences(first, second)
    for name in ("cider_d", "bleu_4", "rouge_l"):
        assert found[name].value == pytest.approx(after[name].value - before[name].value)
        assert found[name].low <= found[name].value <= found[name].high


def test_meteor_where_it_is(tmp_path, monkeypatch):
    task = task_of(VALUES | {"metrics": ["meteor"]})
    records = records_of(task, FIRST)
    monkeypatch.setattr(captioning, "why_no_meteor", lambda: "no java")
    assert list(task.summarise(records, tmp_path)) == ["words"]
    monkeypatch.setattr(captioning, "why_no_meteor", lambda: None)
    monkeypatch.setattr(captioning, "meteor", lambda captions, references: (0.25, None))
    assert task.summarise(records, tmp_path)["meteor"].value == 0.25


def test_images_stand_in_the_prompt_and_in_its_examples(bundle, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(captioning, "why_no_meteor", lambda: "METEOR is left out, because.")
    path = write_task(tmp_path, toml=TOML, items=ITEMS)
    entry = evaluate_tasks(bundle, [path], tmp_path / "out", seeds=2)["tasks"]["animals"]
    assert caplog.messages.count("METEOR is left out, because.") == 1
    assert entry["seeds"] == [0, 1]
    assert len(entry["numbers"]["cider_d"]["by_seed"]) == 2
    record = read_items(tmp_path / "out", "animals")[0]
    kinds = ["image" if "image" in each else "text" for each in record["prompt"]]
    assert kinds == ["image", "text", "image", "text"]
    assert record["details"]["references"] == ITEMS[0]["captions"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"references": []}, "references must have at least one entry"),
        ({"metrics": []}, "metrics must have at least one entry"),
        ({"metrics": ["spice"]}, "metrics"),
        ({"generation": {"seed": 1}}, "generation.seed is set by the evaluation; leave it out"),
        ({"generation": {"top_p": 2.0}}, "generation.top_p must lie in (0, 1], got 2.0"),
    ],
)
def test_a_wrong_task_is_refused(changes, message):
    with pytest.raises(ConfigError) as caught:
        task_of(VALUES | changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "changes", "message"),
    [
        ({"captions": []}, {}, "'references' gives no words; the item needs a caption"),
        ({"captions": ["..."]}, {}, "'references' gives no words; the item needs a caption"),
        ({"captions": ["owl"]}, {"prompt": "Caption:"}, "the prompt holds no image to describe"),
    ],
)
def test_an_item_that_has_nothing_to_compare(fields, changes, message):
    with pytest.raises(DataError) as caught:
        task_of(VALUES | changes).check(Trial(Item("a", {"image": Image(b"")} | fields)))
    assert message in str(caught.value)
