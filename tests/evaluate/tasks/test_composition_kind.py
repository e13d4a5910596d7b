"""Composition: generated images are judged by the scenes of their prompts."""

import numpy as np
import pytest
from tiny_tasks import write_task

from pardalis import config as configs
from pardalis.documents import Document, Image
from pardalis.documents.scenes import Group, Scene, draw_scene
from pardalis.errors import DataError
from pardalis.evaluate.tasks import Item, Trial, evaluate_tasks, read_items, task_of

PAIR = Scene(
    groups=(Group(colour="red", shape="circle"), Group(colour="blue", shape="square")),
    relation="left of",
)
THREE = Scene(groups=(Group(count=3, colour="green"),))
VALUES = {
    "name": "t", "kind": "composition", "prompt": "{prompt}", "data": {"path": "x.jsonl"},
    "group": "{asks}",
}  # fmt: skip


def scored(scene: Scene, shown: Scene, asks: str = "position"):
    fields = {"prompt": scene.text, "scene": configs.to_dict(scene), "asks": asks}
    trial = Trial(Item(scene.text, fields))
    drawing = Image(draw_scene(shown, 64, np.random.default_rng(0)))
    return task_of(VALUES).score(trial, (), [Document((drawing,))])


def test_each_aspect_is_judged_where_the_scene_names_it():
    assert scored(PAIR, PAIR).scores == {
        "accuracy": 1, "count": 1, "colours": 1, "shapes": 1, "relation": 1
    }  # fmt: skip
    turned = Scene(groups=PAIR.groups, relation="right of")
    assert scored(PAIR, turned).scores == {
        "accuracy": 0, "count": 1, "colours": 1, "shapes": 1, "relation": 0
    }  # fmt: skip
    assert scored(THREE, PAIR).scores == {"accuracy": 0, "count": 0, "colours": 0}
    assert len(scored(THREE, THREE).details["found"]) == 3


def test_numbers_by_aspect_and_by_what_is_asked(tmp_path):
    records = []
    for n, (scene, shown, asks) in enumerate(
        [(PAIR, PAIR, "position"), (THREE, THREE, "count"), (THREE, PAIR, "count")]
    ):
        outcome = scored(scene, shown, asks)
        records.append(
            {"id": str(n), "seed": 0, "scores": outcome.scores, "details": outcome.details}
        )
    numbers = task_of(VALUES).summarise(records, tmp_path)
    assert list(numbers)[:5] == ["accuracy", "count", "colours", "shapes", "relation"]
    assert numbers["accuracy"].value == pytest.approx(2 / 3)
    assert numbers["accuracy_position"].value == 1
    assert numbers["accuracy_count"].value == 0.5


def test_an_evaluation_keeps_images_and_what_was_found(bundle, tmp_path):
    toml = 'kind = "composition"\nprompt = "{prompt}"\n\n[data]\npath = "items.jsonl"\n'
    items = [{"prompt": PAIR.text, "scene": configs.to_dict(PAIR)}]
    path = write_task(tmp_path, toml=toml, items=items)
    entry = evaluate_tasks(bundle, [path], tmp_path / "out")["tasks"]["animals"]
    assert next(iter(entry["numbers"])) == "accuracy"
    assert entry["higher_is_better"] is True
    [record] = read_items(tmp_path / "out", "animals")
    assert isinstance(record["details"]["found"], list)
    assert (tmp_path / "out" / "animals" / record["answer"][0]["image"]).is_file()


@pytest.mark.parametrize(
    ("scene", "message"),
    [
        ("two circles", "the template 'scene' gives 'two circles', which is no scene"),
        ({"groups": []}, "the scene of the item is wrong: groups must have 1 to 16 objects"),
        ({"groups": [{"colour": "pink"}]}, "the scene of the item is wrong: "),
        ({"objects": []}, "the scene of the item is wrong: "),
    ],
)
def test_an_item_without_a_scene(scene, message):
    with pytest.raises(DataError) as caught:
        task_of(VALUES).check(Trial(Item("a", {"prompt": "p", "scene": scene, "asks": ""})))
    assert message in str(caught.value)
