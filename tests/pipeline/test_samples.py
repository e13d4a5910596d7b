import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import PIL.Image
import pytest
from shapes import decoder_config

from pardalis import config as configs
from pardalis.bundle import Bundle
from pardalis.documents import Document, Image, Text, open_image
from pardalis.errors import ConfigError
from pardalis.inference import GenerationConfig, SamplingConfig
from pardalis.model import Decoder, initialise
from pardalis.pipeline import prompts as prompts_module
from pardalis.pipeline import samples as samples_module
from pardalis.pipeline.recipe import SampleConfig
from pardalis.pipeline.samples import write_samples

CONTEXT = 24  # an image takes 6 tokens
LONG = "An owl sat on the old oak, the cat on the owl, and the fox ran from both of them. " * 2


@pytest.fixture
def bundle(codec) -> Bundle:
    return bundle_of(codec, CONTEXT)


def bundle_of(codec, context: int) -> Bundle:
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=context, d_model=16, n_layers=1, n_heads=2,
        n_kv_heads=2, d_ff=32,
    )  # fmt: skip
    return Bundle(initialise(Decoder(config), seed=0).eval(), codec, made_by={})


def image(run: Path, name: str) -> Path:
    path = run / "images" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (16, 16), (sum(map(ord, name)) % 256, 80, 160)).save(path)
    return path


def pair(run: Path, name: str, caption: str = "owl") -> Document:
    return Document((Text(caption), Image(image(run, name))), name=name)


def page(run: Path, name: str, text: str) -> Document:
    return Document((Text(text), Image(image(run, name)), Text("It sat.")), name=name)


def sample(
    bundle: Bundle,
    run: Path,
    train: Iterable[Document],
    heldout: Iterable[Document] = (),
    **settings,
):
    config = SampleConfig(**({"images": 3, "captions": 2, "pages": 2, "batch": 2} | settings))
    write_samples(bundle, {"train": train, "heldout": heldout}, config, run)
    return json.loads((run / "samples" / "samples.json").read_text())


def names(entries) -> set[str]:
    return {entry["name"] for entry in entries}


def test_each_split_is_sampled_with_its_originals(bundle, tmp_path):
    train = [pair(tmp_path, f"train-{i}") for i in range(5)]
    train.append(page(tmp_path, "page", "Owl\nAn owl."))
    found = sample(bundle, tmp_path, train, [pair(tmp_path, "unseen")])
    assert [entry["split"] for entry in found["images"]] == ["train"] * 3 + ["heldout"]
    assert [entry["split"] for entry in found["captions"]] == ["train"] * 2 + ["heldout"]
    for entry in found["images"]:
        assert open_image(tmp_path / "samples" / entry["generated"]).size == (16, 16)
        assert (tmp_path / entry["original"]).is_file()
    assert len(found["gallery"]) == 6
    assert found["captioned"] == {"train": 5, "heldout": 1}
    assert found["left_out"] == {"unreadable": 0, "too_long": 0, "too_long_of": {}}
    assert (found["context"], found["caption_tokens"]) == (CONTEXT, 24)
    assert found["image_tokens_per_second"] > 0


def test_the_same_seed_gives_the_same_samples(bundle, tmp_path):
    def of_seed(seed):
        documents = [pair(tmp_path, str(i), f"owl {i}") for i in range(9)]
        found = sample(bundle, tmp_path, documents, seed=seed, gallery=5)
        return {key: found[key] for key in ("images", "captions", "gallery")}

    assert of_seed(0) == of_seed(0) != of_seed(1)


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_an_image_that_does_not_open_is_left_out_and_counted(bundle, tmp_path, caplog, damage):
    documents = [pair(tmp_path, str(i)) for i in range(4)]
    path = tmp_path / "images" / "2.png"
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[:60])
    found = sample(bundle, tmp_path, documents, images=9, captions=9)
    for kind in ("images", "captions", "gallery"):
        assert names(found[kind]) == {"0", "1", "3"}
    assert found["captioned"]["train"] == 3
    assert found["left_out"] == {"unreadable": 1, "too_long": 0, "too_long_of": {}}
    [warning] = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert "1 unreadable, 0 too long" in warning
    assert str(path) in warning


def test_prompts_that_are_too_long_are_left_out_and_counted(bundle, tmp_path, caplog):
    documents = [
        pair(tmp_path, "short"), pair(tmp_path, "long", LONG),
        page(tmp_path, "title", "Owl\nAn owl."), page(tmp_path, "one line", LONG),
    ]  # fmt: skip
    found = sample(bundle, tmp_path, documents)
    assert names(found["images"]) == {"short"}
    assert names(found["captions"]) == names(found["gallery"]) == {"short", "long"}
    assert [entry["prompt"] for entry in found["pages"]] == ["Owl\n"]
    kinds = {"images": 1, "pages": 1}
    assert found["left_out"] == {"unreadable": 0, "too_long": 2, "too_long_of": kinds}
    [warning] = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert "0 unreadable, 2 too long" in warning
    assert f"context of {CONTEXT}" in warning


@pytest.mark.parametrize("spare", [0, 1])
def test_an_image_is_generated_exactly_when_it_fits(codec, tmp_path, spare):
    prompt_ids = len(codec.encode_prompt(Document((Text("owl"),))))
    context = prompt_ids + codec.grammar.tokens_per_image - 1 + spare
    found = sample(bundle_of(codec, context), tmp_path, [pair(tmp_path, "owl")], captions=0)
    assert len(found["images"]) == spare
    assert found["left_out"]["too_long"] == 1 - spare


@pytest.mark.parametrize("spare", [1, 2])
def test_an_image_is_captioned_exactly_when_two_tokens_fit(codec, tmp_path, spare):
    context = 1 + codec.grammar.tokens_per_image + spare
    found = sample(bundle_of(codec, context), tmp_path, [pair(tmp_path, "owl")], images=0)
    assert len(found["captions"]) == spare - 1
    assert found["left_out"]["too_long"] == 2 - spare


@pytest.mark.parametrize(
    ("text", "title"), [("Owl\nAn owl.\n", "Owl\n"), ("Owl", "Owl"), ("\nOwl", None)]
)
def test_a_title_is_the_first_line_with_its_newline(bundle, tmp_path, text, title):
    found = sample(bundle, tmp_path, [page(tmp_path, "page", text)])
    assert [entry["prompt"] for entry in found["pages"]] == ([title] if title else [])


def test_a_large_source_is_checked_only_as_far_as_needed(bundle, tmp_path, monkeypatch):
    encoded, opened = [], []
    encode_prompt = bundle.codec.encode_prompt

    def count_encoded(document):
        encoded.append(document)
        return encode_prompt(document)

    def count_opened(source):
        opened.append(source)
        return open_image(source)

    monkeypatch.setattr(bundle.codec, "encode_prompt", count_encoded)
    monkeypatch.setattr(prompts_module, "open_image", count_opened)

    def documents() -> Iterator[Document]:
        for i in range(300):
            yield pair(tmp_path, str(i), f"owl {i}")

    found = sample(bundle, tmp_path, documents(), gallery=10)
    assert found["captioned"]["train"] == 300
    assert len(found["gallery"]) == 10
    assert len(encoded) < 20
    assert len(opened) < 20


@pytest.mark.parametrize("gallery", [0, 6])
def test_the_gallery_is_bounded_and_has_every_original(bundle, tmp_path, gallery):
    documents = [pair(tmp_path, str(i)) for i in range(20)]
    found = sample(bundle, tmp_path, documents, gallery=gallery)
    originals = names(found["images"]) | names(found["captions"])
    assert originals <= names(found["gallery"])
    assert len(found["gallery"]) == max(gallery, len(originals))


def test_options_of_the_recipe_reach_generation(bundle, tmp_path, monkeypatch):
    configs_used = []
    real = samples_module.generate_many

    def watch(bundle, prompts, config, **options):
        configs_used.append(config.with_options(options))
        return real(bundle, prompts, config, **options)

    monkeypatch.setattr(samples_module, "generate_many", watch)
    sampling = {
        "text": SamplingConfig(temperature=0.5, top_k=3),
        "image": SamplingConfig(top_p=0.8),
        "guidance": 2.0,
        "seed": 5,
    }
    sample(bundle, tmp_path, [pair(tmp_path, "owl")], caption_tokens=3, **sampling)
    image, caption = configs_used
    expected = {
        "temperature": 0.5, "top_k": 3, "image_temperature": 1.0, "image_top_p": 0.8, "seed": 5,
    }  # fmt: skip
    assert image == GenerationConfig(mode="image", guidance=2.0, **expected)
    assert caption == GenerationConfig(mode="text", max_new_tokens=3, **expected)


@pytest.mark.parametrize(
    ("field", "value", "least"),
    [
        ("images", -1, 0), ("captions", -1, 0), ("pages", -2, 0), ("gallery", -1, 0),
        ("guidance", -0.5, 0), ("guidance", float("nan"), 0), ("batch", 0, 1),
        ("caption_tokens", 0, 1),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_named(field, value, least):
    with pytest.raises(ConfigError) as caught:
        configs.from_dict(SampleConfig, {field: value})
    needed = f"{least} or more" if value == value else "a number"
    assert f"{field} must be {needed}, got {value}." in str(caught.value)
    with pytest.raises(ConfigError, match=f"^{field} must be"):
        SampleConfig(**{field: value})


def test_captions_that_do_not_fit_their_budget_are_marked(bundle, tmp_path):
    documents = [pair(tmp_path, "short", "owl"), pair(tmp_path, "long", LONG)]
    found = sample(bundle, tmp_path, documents, images=0, caption_tokens=9)
    fits = {entry["name"]: entry["expected_fits"] for entry in found["captions"]}
    assert fits == {"short": True, "long": False}
    assert all(isinstance(entry["truncated"], bool) for entry in found["captions"])


def test_a_corpus_of_pages_has_its_images_in_the_gallery(bundle, tmp_path):
    documents = [page(tmp_path, str(i), f"Owl {i}\nAn owl.") for i in range(3)]
    found = sample(bundle, tmp_path, documents, gallery=2)
    assert len(found["gallery"]) == 2
    assert {entry["caption"] for entry in found["gallery"]} < {"Owl 0", "Owl 1", "Owl 2"}
    assert (found["captioned"]["train"], found["n_images"]["train"]) == (0, 3)


def test_an_image_whose_name_is_not_unicode_is_left_out(bundle, tmp_path):
    named = os.fsdecode(b"\xff owl")
    found = sample(bundle, tmp_path, [pair(tmp_path, "owl"), pair(tmp_path, named)])
    assert names(found["images"]) == names(found["gallery"]) == {"owl"}
    assert found["left_out"]["unreadable"] == 1
