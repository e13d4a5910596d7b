"""Free answers: completions as `generate` gives them, metrics, votes, and what is refused."""

from dataclasses import replace

import pytest
from tiny_tasks import write_task

import pardalis
from pardalis.bundle import Bundle
from pardalis.codec import Codec
from pardalis.errors import ConfigError, DataError, RequestError
from pardalis.evaluate.tasks import METRICS, Item, Trial, evaluate_tasks, read_items, task_of
from pardalis.vq import ImageTokenizer

TOML = """\
kind = "generate"
prompt = "The {animal}"
answers = ["{answer}"]
metrics = ["contains", "exact"]

[data]
path = "items.jsonl"
id = "animal"

[generation]
max_new_tokens = 8
"""
ITEMS = [{"animal": animal, "answer": "owl"} for animal in ("owl", "fox", "cat")]
VALUES = {
    "name": "t", "kind": "generate", "prompt": "{q}", "answers": ["{a}"], "data": {"path": "x.csv"}
}  # fmt: skip


def test_greedy_completions_are_those_of_generate(bundle, tmp_path):
    path = write_task(tmp_path, toml=TOML, items=ITEMS)
    entry = evaluate_tasks(bundle, [path], tmp_path / "out", seeds=3)["tasks"]["animals"]
    assert entry["seeds"] == [0]  # without sampling there is nothing to repeat
    prompts = [f"The {item['animal']}" for item in ITEMS]
    alone = pardalis.generate_many(bundle, prompts, mode="text", max_new_tokens=8)
    for record, response in zip(read_items(tmp_path / "out", "animals"), alone, strict=True):
        assert record["details"]["completions"] == [response.text]
        assert record["scores"]["contains"] == METRICS["contains"].score(response.text, ["owl"])
        assert record["details"]["ended"] == [response.reason]


def test_samples_depend_on_the_item_and_the_seed_alone(bundle, tmp_path):
    toml = TOML.replace("max_new_tokens = 8", "max_new_tokens = 8\ntemperature = 1.0").replace(
        "[data]", "samples = 3\n\n[data]"
    )
    path = write_task(tmp_path, toml=toml, items=ITEMS)
    entry = evaluate_tasks(bundle, [path], tmp_path / "out", seeds=2)["tasks"]["animals"]
    assert entry["items"] == 6
    assert set(entry["numbers"]) == {"contains", "contains_maj3", "exact", "exact_maj3"}
    records = read_items(tmp_path / "out", "animals")
    texts = {
        (record["seed"], record["id"], text)
        for record in records
        for text in record["details"]["completions"]
    }
    assert len(texts) > 12
    (tmp_path / "other").mkdir()
    alone = write_task(tmp_path / "other", toml=toml, items=ITEMS[1:2])
    evaluate_tasks(bundle, [alone], tmp_path / "alone")
    [record] = read_items(tmp_path / "alone", "animals")
    assert record == records[1]


class Said:
    reason = "eos"

    def __init__(self, text: str) -> None:
        self.text, self.segments = text, ()


def test_the_vote_of_samples():
    values = {"metrics": ["numeric"], "samples": 3, "generation": {"temperature": 1.0}}
    task = task_of(VALUES | values)
    trial = Trial(Item("a", {"q": "?", "a": "so #### 7"}))
    said = [Said("it is 7.0"), Said("9"), Said("7")]
    assert task.score(trial, (), said).scores == {
        "numeric": pytest.approx(2 / 3),
        "numeric_maj3": 1,
    }
    said = [Said("none"), Said("9"), Said("it is 7")]
    assert task.score(trial, (), said).scores == {
        "numeric": pytest.approx(1 / 3),
        "numeric_maj3": 0,
    }
    said = [Said("none"), Said("no"), Said("")]
    assert task.score(trial, (), said).scores == {"numeric": 0, "numeric_maj3": 0}


@pytest.mark.parametrize(
    ("part", "text", "answer"),
    [
        ("all", " a b.\nc ", "a b.\nc"),
        ("line", "\n a b. d\nc ", "a b. d"),
        ("sentence", " a b. d", "a b."),
        ("boxed", r"so \boxed{1}", "1"),
        ("line", "", ""),
    ],
)
def test_the_part_of_a_completion(part, text, answer):
    task = task_of(VALUES | {"part": part})
    outcome = task.score(Trial(Item("a", {"q": "?", "a": "x"})), (), [Said(text)])
    assert outcome.details["answers"] == [answer]


@pytest.mark.parametrize(
    ("metric", "answer", "accepted", "score"),
    [
        ("exact", " an  owl", ["an owl"], 1),
        ("exact", "An owl", ["an owl"], 0),
        ("exact_case", "An owl", ["a fox", "an owl"], 1),
        ("exact_squad", "The owl!", ["owl"], 1),
        ("contains", "It is an owl.", ["Owl"], 1),
        ("contains", "It is 15", ["5"], 0),
        ("numeric", "1,234.0 owls", ["1234"], 1),
        ("letter", "(B)", ["B"], 1),
        ("f1", "a snowy owl", ["fox", "snowy owl"], 0.8),
    ],
)
def test_metrics_by_name(metric, answer, accepted, score):
    assert METRICS[metric].score(answer, accepted) == pytest.approx(score)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ["bleu"]}, "metrics has 'bleu'; each must be one of exact, exact_case"),
        ({"metrics": []}, "metrics must have at least one entry"),
        ({"answers": []}, "answers must have at least one entry"),
        ({"generation": {"seed": 1}}, "generation.seed is set by the evaluation; leave it out"),
        (
            {"generation": {"temprature": 1}},
            "generation: Unknown key 'temprature'; did you mean 'temperature'",
        ),
        ({"generation": {"top_p": 2.0}}, "generation.top_p must lie in (0, 1], got 2.0"),
        ({"samples": 2}, "samples is 2, but generation.temperature is 0, so all are the same"),
    ],
)
def test_a_wrong_task_is_refused(changes, message):
    with pytest.raises(ConfigError) as caught:
        task_of(VALUES | changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "changes", "message"),
    [
        ({"a": ""}, {}, "the template 'answers' gives no text; the item needs what is right."),
        ({"a": []}, {}, "'answers' gives no text"),
        ({"a": "owl"}, {"metrics": ["numeric"]}, "answer 'owl' has nothing that the metric 'num"),
    ],
)
def test_an_item_without_an_answer(fields, changes, message):
    with pytest.raises(DataError) as caught:
        task_of(VALUES | changes).check(Trial(Item("a", {"q": "?"} | fields)))
    assert message in str(caught.value)


def test_a_bundle_that_generates_no_images(bundle, codec, tmp_path):
    config = codec.image_tokenizer.config
    without = ImageTokenizer(replace(config, has_decoder=False)).eval()
    blind = Bundle(bundle.model, Codec(codec.vocabulary, codec.text_tokenizer, without), {})
    toml = TOML + 'mode = "image"\n'
    path = write_task(tmp_path, toml=toml, items=ITEMS)
    with pytest.raises(RequestError, match="Task 'animals': This model's image tokenizer has no"):
        evaluate_tasks(blind, [path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_generated_images_are_kept(bundle, tmp_path):
    toml = TOML.replace("max_new_tokens = 8", 'mode = "image"')
    path = write_task(tmp_path, toml=toml, items=ITEMS[:1])
    evaluate_tasks(bundle, [path], tmp_path / "out")
    [record] = read_items(tmp_path / "out", "animals")
    [segment] = record["answer"]
    assert (tmp_path / "out" / "animals" / segment["image"]).is_file()
