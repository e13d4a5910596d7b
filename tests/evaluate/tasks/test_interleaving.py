"""Interleaving: what follows the beginnings of a document."""

import PIL.Image
import pytest
from small_nets import write_clip
from tiny_tasks import write_task

from pardalis.documents import Document, Image, Text, open_image
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate.metrics.image_text import image_text_cosine
from pardalis.evaluate.tasks import Item, Trial, evaluate_tasks, read_items, task_of
from pardalis.feature_nets.clip import load_clip

VALUES = {
    "name": "t", "kind": "interleaving", "data": {"kind": "documents", "path": "x.jsonl"},
}  # fmt: skip
IMAGE = Image(PIL.Image.new("RGB", (4, 4)))
PAGE = Document((Text("An owl."), IMAGE, Text("A fox."), IMAGE, Text("The end.")))


def score(task, item, *answers):
    results = [Document(tuple(each)) for each in answers]
    return task.score(Trial(item), (), results)


def test_each_place_is_compared_with_the_document():
    task = task_of(VALUES)
    item = Item("a", {"document": PAGE})
    places = task.places_of(item)
    assert [wanted for _, wanted in places] == ["image", "text", "image", "text"]
    assert places[2][0] == Document(PAGE.segments[:3])
    right = score(task, item, [IMAGE], [Text("x")], [IMAGE, Text("x")], [Text("x"), IMAGE])
    assert right.scores == {"modality": 1, "image_recall": 1, "image_unasked": 0}
    assert right.expected == Document(PAGE.segments[1:])
    wrong = score(task, item, [Text("So:"), IMAGE], [], [Text("x")], [IMAGE])
    assert wrong.scores == {"modality": 0, "image_recall": 0.5, "image_unasked": 0.5}
    assert [each["found"] for each in wrong.details["places"]] == ["text", "end", "text", "image"]


def test_the_best_constant_answer_stands_beside_the_numbers(tmp_path):
    task = task_of(VALUES | {"positions": 3})
    item = Item("a", {"document": PAGE})
    outcome = score(task, item, [IMAGE], [Text("x")], [IMAGE])
    record = {"id": "a", "seed": 0, "scores": outcome.scores, "details": outcome.details}
    numbers = task.summarise([record], tmp_path)
    assert next(iter(numbers)) == "modality"
    assert numbers["constant"].value == pytest.approx(2 / 3)


def test_the_image_that_is_shown_is_the_first_one_with_the_text_before_it():
    task, item = task_of(VALUES), Item("a", {"document": PAGE})
    first = score(task, item, [IMAGE], [], [], [])
    assert first.details["text"] == "An owl." and first.answer.images
    third = score(task, item, [Text("x")], [], [Text(" Red: "), IMAGE, Text("end")], [IMAGE])
    assert third.details["text"] == "Red:" and len(third.answer.segments) == 3
    fourth = score(task, item, [], [], [], [IMAGE])
    assert fourth.details["text"] == "A fox."
    assert score(task, item, [Text("x")], [], [], []).answer.segments == (Text("x"),)


def test_a_net_says_how_an_image_fits_the_text_before_it(tmp_path):
    clip = write_clip(tmp_path / "clip")
    IMAGE.source.save(tmp_path / "a.png")
    head = {"seed": 0, "input": "x", "scores": {"modality": 1.0}, "details": {"text": "An owl."}}
    with_image = head | {"id": "a", "answer": [{"text": "Look:"}, {"image": "a.png"}]}
    without = head | {"id": "b", "answer": [{"text": "An owl."}]}
    judged = task_of(VALUES | {"net": str(clip)}).judged([with_image, without], tmp_path)
    scores = {each["id"]: each["scores"] for each in judged}
    name = next(name for name in scores["a"] if name.startswith("clip_"))
    expected = image_text_cosine(load_clip(clip), [open_image(tmp_path / "a.png")], ["An owl."])
    assert scores["a"] == {"modality": 1, name: pytest.approx(float(expected), abs=1e-5)}
    assert scores["b"] == {"modality": 1}
    assert task_of(VALUES).judged([with_image], tmp_path) == [with_image]


def test_an_item_says_what_must_follow():
    task = task_of(VALUES | {"document": "{prompt}", "next": "{wants}"})
    item = Item("a", {"prompt": "Draw an owl.", "wants": "image"})
    assert task.places_of(item) == [(Document((Text("Draw an owl."),)), "image")]
    assert score(task, item, [Text("Here:"), IMAGE]).scores == {"modality": 0, "image_recall": 1}
    with pytest.raises(DataError, match="'next' gives 'both'; it must be 'text' or 'image'"):
        task.check(Trial(Item("a", {"prompt": "x", "wants": "both"})))


def test_a_model_goes_on_from_each_place(bundle, tmp_path):
    toml = 'kind = "interleaving"\n\n[data]\nkind = "documents"\npath = "items.jsonl"\n'
    segments = [{"text": "An owl"}, {"image": "red.png"}, {"text": " sat"}]
    path = write_task(tmp_path, toml=toml, items=[{"name": "a", "segments": segments}])
    entry = evaluate_tasks(bundle, [path], tmp_path / "out")["tasks"]["animals"]
    assert set(entry["numbers"]) == {"modality", "image_recall", "image_unasked", "constant"}
    [record] = read_items(tmp_path / "out", "animals")
    assert [each["expected"] for each in record["details"]["places"]] == ["image", "text"]
    assert record["prompt"] == [{"text": "An owl"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shots": 1}, "shots does not apply to interleaving; leave it out."),
        ({"chat": True}, "chat does not apply to interleaving; leave it out."),
        ({"generation": {"mode": "text"}}, "generation.mode must be 'interleaved'"),
        ({"positions": 0}, "positions must be at least 1"),
    ],
)
def test_a_wrong_task_is_refused(changes, message):
    with pytest.raises(ConfigError) as caught:
        task_of(VALUES | changes)
    assert message in str(caught.value)


def test_a_document_of_one_segment():
    item = Item("a", {"document": Document((Text("only"), Text(" text")))})
    with pytest.raises(DataError, match="has no text beside an image, so nothing follows"):
        task_of(VALUES).check(Trial(item))
