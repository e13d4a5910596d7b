"""Images for prompts: the metrics from the kept images, and what is refused."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_nets import write_clip
from tiny_tasks import write_task
from torch.nn import functional as F

from pardalis.bundle import Bundle
from pardalis.codec import Codec
from pardalis.documents import Document, Image, open_image
from pardalis.errors import BundleError, ConfigError, DataError, RequestError
from pardalis.evaluate.features import ImageFeatures
from pardalis.evaluate.metrics import image_scores
from pardalis.evaluate.metrics.distribution import frechet, kernel_distance, neighbours
from pardalis.evaluate.metrics.image_scores import IMAGE_SCORES, ImageScore, Judge, Nets
from pardalis.evaluate.tasks import (
    Item,
    Trial,
    evaluate_tasks,
    judging,
    read_items,
    task_of,
    text_to_image,
)
from pardalis.feature_nets.clip import load_clip
from pardalis.vq import ImageTokenizer

TOML = """\
kind = "text_to_image"
prompt = "{prompt}"
reference = "{image}"
metrics = ["frechet", "kernel", "prdc", "retrieval"]
neighbours = 1

[data]
path = "items.jsonl"
images = ["image"]
"""
ITEMS = [
    {"prompt": f'The {animal} says "owl"', "image": f"{colour}.png", "tag": animal}
    for animal, colour in (("owl", "red"), ("fox", "blue"), ("cat", "red"))
]
VALUES = {
    "name": "t", "kind": "text_to_image", "prompt": "{prompt}",
    "data": {"path": "x.jsonl", "images": ["image"]},
}  # fmt: skip


class MeanColours(ImageFeatures):
    """Features that cost nothing: the mean colour."""

    def __init__(self) -> None:
        self.width = 4

    def of(self, images):
        means = [np.asarray(image.convert("RGB")).mean((0, 1)) for image in images]
        vectors = torch.tensor(np.array(means), dtype=torch.float32) / 255
        return F.normalize(F.pad(vectors, (0, 1), value=0.1), dim=1)


@pytest.fixture
def _cheap_features(monkeypatch):
    monkeypatch.setattr(ImageFeatures, "load", MeanColours)


class ByBrightness:
    """An image-text net for which an image is as right as it is bright."""

    def images(self, images):
        light = torch.tensor([np.asarray(each).mean() / 255 for each in images]).float()
        return torch.stack([light, (1 - light**2).sqrt()], 1)

    def texts(self, texts):
        return torch.tensor([[1.0, 0.0]]).expand(len(texts), 2)


@pytest.mark.usefixtures("_cheap_features")
def test_the_numbers_are_those_of_the_kept_images(bundle, tmp_path, caplog):
    path = write_task(tmp_path, toml=TOML, items=ITEMS)
    entry = evaluate_tasks(bundle, [path], tmp_path / "out", seeds=2)["tasks"]["animals"]
    assert entry["seeds"] == [0, 1]  # images are sampled
    assert entry["higher_is_better"] is False
    numbers = entry["numbers"]
    folder = tmp_path / "out" / "animals"
    net = MeanColours()
    expected: dict[str, list[float]] = {}
    for seed in (0, 1):
        records = [r for r in read_items(tmp_path / "out", "animals") if r["seed"] == seed]
        made = net.of([open_image(folder / r["answer"][0]["image"]) for r in records])
        real = [open_image(folder / r["expected"][0]["image"]) for r in records]
        assert {image.size for image in real} == {(16, 16)}
        gallery = net.of(real[:2])  # red and blue, once each
        expected.setdefault("frechet", []).append(frechet(made, gallery).distance)
        expected.setdefault("kernel", []).append(kernel_distance(made, gallery).distance)
        shares = neighbours(made, gallery, 1)
        expected.setdefault("coverage", []).append(shares.coverage)
    for name, values in expected.items():
        number = numbers[f"{name}_efficientnet_lite0"]
        assert number["by_seed"] == pytest.approx(values)
        assert number["value"] == pytest.approx(np.mean(values))
    assert {"retrieval_of_2_efficientnet_lite0", "retrieval_chance"} <= set(numbers)
    assert numbers["retrieval_chance"]["value"] == 0.5
    assert "A Fréchet distance of 2 images in 4 dimensions means little" in caplog.text


@pytest.mark.usefixtures("_cheap_features")
def test_too_few_images_leave_metrics_out(bundle, tmp_path, caplog):
    path = write_task(tmp_path, toml=TOML, items=ITEMS[:1])
    entry = evaluate_tasks(bundle, [path], tmp_path / "out")["tasks"]["animals"]
    assert entry["numbers"] == {}
    for name in ("kernel", "prdc", "retrieval"):
        assert (
            f"Task 'animals': {name} is left out, because it needs at least 2 different images, "
            "and there are 1." in caplog.messages
        )


def test_scores_of_each_image(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(
        image_scores, "load_image_text_net", lambda folder: ("pair_net_12345678", ByBrightness())
    )
    monkeypatch.setattr(text_to_image, "load_ocr", lambda: lambda image: ["OWL!"])
    toml = TOML.replace('"frechet", "kernel", "prdc", "retrieval"', '"image_text", "ocr"').replace(
        "neighbours = 1", 'net = "net"\ngroup = "{tag}"'
    )
    items = [*ITEMS, {"prompt": "no words", "image": "red.png", "tag": "owl"}]
    path = write_task(tmp_path, toml=toml, items=items)
    numbers = evaluate_tasks(bundle, [path], tmp_path / "out")["tasks"]["animals"]["numbers"]
    records = read_items(tmp_path / "out", "animals")
    for record in records:
        image = open_image(tmp_path / "out" / "animals" / record["answer"][0]["image"])
        light = np.asarray(image).mean() / 255
        assert record["scores"]["pair_net_12345678"] == pytest.approx(light, abs=1e-5)
    assert next(iter(numbers)) == "pair_net_12345678"
    assert numbers["word_recall"]["value"] == 1  # of the words that are asked for
    assert "word_recall" not in records[3]["scores"]
    assert {"pair_net_12345678_owl", "pair_net_12345678_fox"} <= set(numbers)


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """A score ``brightness`` of images, and with how many of them it was called."""
    found: list[int] = []

    def score(images, texts):
        assert len(images) == len(texts) and all(text.startswith("The ") for text in texts)
        found.append(len(images))
        return torch.tensor([np.asarray(each).mean() / 255 for each in images])

    def load(nets: Nets) -> Judge:
        return Judge("brightness", score)

    monkeypatch.setitem(IMAGE_SCORES, "brightness", ImageScore(load, higher_is_better=False))
    return found


BRIGHTNESS = TOML.replace('["frechet", "kernel", "prdc", "retrieval"]', '["brightness"]')


def test_nets_are_given_many_images_at_once_and_only_those_without_a_score(
    bundle, tmp_path, calls, monkeypatch
):
    path = write_task(tmp_path, toml=BRIGHTNESS, items=ITEMS)

    def brightness(seeds: int, limit: int | None = None):
        out = tmp_path / "out"
        entry = evaluate_tasks(bundle, [path], out, seeds=seeds, limit=limit)["tasks"]["animals"]
        return entry, read_items(out, "animals")

    entry, records = brightness(1, limit=2)
    assert calls == [2] and entry["higher_is_better"] is False and len(records) == 2
    entry, records = brightness(2)  # what is finished keeps its score
    assert calls == [2, 4] and len(records) == 6
    for record in records:
        image = open_image(tmp_path / "out" / "animals" / record["answer"][0]["image"])
        assert record["scores"]["brightness"] == pytest.approx(np.asarray(image).mean() / 255)
    mean = sum(record["scores"]["brightness"] for record in records) / 6
    assert entry["numbers"]["brightness"]["value"] == pytest.approx(mean)
    monkeypatch.setattr(judging, "_AT_ONCE", 2)
    evaluate_tasks(bundle, [path], tmp_path / "again", seeds=1)
    assert calls == [2, 4, 2, 1]
    assert read_items(tmp_path / "again", "animals") == records[:3]


def test_images_that_were_finished_before_an_interruption_are_judged_then(
    bundle, tmp_path, calls, monkeypatch
):
    path = write_task(tmp_path, toml=BRIGHTNESS, items=ITEMS)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(judging, "bar", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        evaluate_tasks(bundle, [path], tmp_path / "out")
    kept = read_items(tmp_path / "out", "animals")
    assert len(kept) == 3 and not calls and not any(record["scores"] for record in kept)
    evaluate_tasks(bundle, [path], tmp_path / "out")
    after = read_items(tmp_path / "out", "animals")
    assert calls == [3] and [each["answer"] for each in after] == [each["answer"] for each in kept]
    assert all(record["scores"].keys() == {"brightness"} for record in after)


def test_a_score_that_is_no_number_is_an_item_that_failed(bundle, tmp_path, monkeypatch):
    values = iter([0.5, float("nan"), 0.25])
    judge = Judge("odd", lambda images, texts: torch.tensor([next(values) for _ in images]))
    monkeypatch.setitem(IMAGE_SCORES, "odd", ImageScore(lambda nets: judge))
    path = write_task(tmp_path, toml=BRIGHTNESS.replace("brightness", "odd"), items=ITEMS)
    entry = evaluate_tasks(bundle, [path], tmp_path / "out")["tasks"]["animals"]
    assert (entry["items"], entry["failed"]) == (2, 1)
    assert list(entry["failures"]) == ["The score 'odd' of its image is nan, not a number."]
    assert entry["numbers"]["odd"]["value"] == 0.375


def test_an_aesthetic_head_scores_the_vectors_of_a_clip(bundle, tmp_path):
    clip = write_clip(tmp_path / "clip")
    net = load_clip(clip)
    tensors = {"weight": torch.full((1, net.width), 2.0), "bias": torch.tensor([5.0])}
    save_file(tensors, tmp_path / "head.safetensors")
    nets = f'net = "{clip}"\nhead = "{tmp_path / "head.safetensors"}"\n\n[data]'
    toml = BRIGHTNESS.replace("brightness", "aesthetic").replace("\n[data]", nets)
    path = write_task(tmp_path, toml=toml, items=ITEMS)
    numbers = evaluate_tasks(bundle, [path], tmp_path / "out")["tasks"]["animals"]["numbers"]
    [name] = numbers
    assert re.fullmatch(r"aesthetic_[0-9a-f]{8}", name)
    for record in read_items(tmp_path / "out", "animals"):
        image = open_image(tmp_path / "out" / "animals" / record["answer"][0]["image"])
        expected = 2 * float(net.images([image]).sum()) + 5
        assert record["scores"][name] == pytest.approx(expected, abs=1e-4)


def test_images_without_metrics_are_kept(bundle, tmp_path):
    toml = TOML[: TOML.index("reference")] + TOML[TOML.index("\n[data]") :]
    path = write_task(tmp_path, toml=toml, items=ITEMS[:1])
    entry = evaluate_tasks(bundle, [path], tmp_path / "out")["tasks"]["animals"]
    assert (entry["items"], entry["numbers"]) == (1, {})
    [record] = read_items(tmp_path / "out", "animals")
    assert (tmp_path / "out" / "animals" / record["answer"][0]["image"]).is_file()


def test_examples_show_their_images():
    task = task_of(VALUES | {"reference": "{image}", "shots": 1})
    shot, item = (Item(str(n), {"prompt": f"p{n}", "image": Image(b"x")}) for n in range(2))
    prompt = task.prompt_of(Trial(item, (shot,)))
    assert [type(each).__name__ for each in prompt.segments] == ["Text", "Image", "Text"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ["fid"]}, "metrics has 'fid'; each must be one of frechet, kernel, prdc, "),
        ({"metrics": ["aesthetic"], "net": "n"}, "metrics has 'aesthetic', which needs a head; "),
        ({"metrics": ["frechet"]}, "metrics has 'frechet', which compares with real images"),
        ({"metrics": ["image_text"]}, "metrics has 'image_text', which needs a net; give the"),
        ({"shots": 1}, "shots is 1, but examples have no image; name its field in `reference`"),
        ({"generation": {"mode": "text"}}, "generation.mode must be 'image' for text_to_image"),
        ({"candidates": 1}, "candidates must be at least 2"),
    ],
)
def test_a_wrong_task_is_refused(changes, message):
    with pytest.raises(ConfigError) as caught:
        task_of(VALUES | changes)
    assert message in str(caught.value)


def test_an_item_without_a_real_image():
    task = task_of(VALUES | {"reference": "{image}"})
    for value, shown in ((Document(()), "nothing"), ("x", "text"), ([Image(b"")] * 2, "2 images")):
        with pytest.raises(DataError) as caught:
            task.check(Trial(Item("a", {"prompt": "p", "image": value})))
        assert str(caught.value) == f"the template 'reference' gives {shown}; it must be one image."


def test_a_folder_without_a_net(bundle, tmp_path):
    task = task_of(VALUES | {"metrics": ["image_text"], "net": str(tmp_path)})
    with pytest.raises(BundleError, match=r"holds no config.json and model.safetensors that can"):
        task.check_bundle(bundle)


def test_a_bundle_that_cannot_generate_images(bundle, codec):
    config = codec.image_tokenizer.config
    without = ImageTokenizer(replace(config, has_decoder=False)).eval()
    blind = Bundle(bundle.model, Codec(codec.vocabulary, codec.text_tokenizer, without), {})
    with pytest.raises(RequestError, match="Task 't': This model's image tokenizer has no"):
        task_of(VALUES).check_bundle(blind)
