"""Conversations about drawings: their answers are right, and training shows no held-out image."""

import re
from pathlib import Path

import pytest
from fake_drawings import pinned_hash, write_fake_packages

from pardalis.corpora import InstructionsConfig, build_instructions, packages
from pardalis.corpora.drawings import instructions
from pardalis.corpora.drawings.instructions import CATEGORIES
from pardalis.corpora.drawings.styles import STYLES
from pardalis.documents import Image, Text, read_jsonl

STYLE_OF = {style.name: style.phrase for style in STYLES}
WEAPONS = instructions._WEAPONS


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The conversations of a corpus, by category and split."""
    folder = tmp_path_factory.mktemp("instructions")
    write_fake_packages(folder / "packages")
    config = InstructionsConfig(packages=folder / "packages", image_side=8, one_cell_in=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "_sha256", pinned_hash)
        counts = build_instructions(config, folder / "corpus")
    found = {
        (category.name, split): list(
            read_jsonl(folder / "corpus" / f"ask.{category.name}.{split}.jsonl")
        )
        for category in CATEGORIES
        for split in ("train", "cells")
    }
    assert all(counts[f"ask.{name}.{split}"] == len(some) for (name, split), some in found.items())
    cells = read_jsonl(folder / "corpus" / "cells.jsonl")
    return found, {document.images[0].source for document in cells}


def turns(document):
    """Return the segments of the request and of the answer."""
    roles = [segment.role for segment in document.segments]
    asked = roles.count("user")
    assert roles == ["user"] * asked + ["assistant"] * (len(roles) - asked)
    return document.segments[:asked], document.segments[asked:]


def named(image: Image) -> tuple[str, str]:
    """Return the name of what an image shows, and the phrase of its style."""
    phrase = STYLE_OF[Path(image.source).stem.split(".")[1]]
    name = re.sub(r"^(a|an|the) ", "", image.alt.removeprefix(f"{phrase} of "))
    return name, phrase


def test_every_category_has_conversations_of_both_splits(corpus):
    assert all(corpus[0].values())


def test_held_out_requests_are_in_other_words(corpus):
    for category in CATEGORIES:
        *known, new = (text.partition("{}")[0] for text in category.requests)
        for split, beginnings in (("train", tuple(known)), ("cells", (new,))):
            for document in corpus[0][category.name, split]:
                [text] = [s.text for s in turns(document)[0] if isinstance(s, Text)]
                assert text.startswith(beginnings)


def test_training_never_shows_a_held_out_cell(corpus):
    found, cells = corpus
    for (name, split), some in found.items():
        if name in ("flag", "refuse"):
            continue
        for document in some:
            shown = cells.intersection(image.source for image in document.images)
            assert bool(shown) == (split == "cells")


@pytest.fixture
def of(corpus):
    """The turns of a category, of both splits."""

    def of(name):
        return map(turns, (*corpus[0][name, "train"], *corpus[0][name, "cells"]))

    return of


def test_requested_images_are_right(of):
    for (text,), (image,) in of("draw"):
        name, style = named(image)
        assert f"{style} of " in text.text
        assert name in text.text
        assert name not in WEAPONS
    for (before, asked), (after,) in of("redraw"):
        assert named(before)[0] == named(after)[0]
        assert named(before)[1] != named(after)[1]
        assert named(after)[1] in asked.text
    for (_,), (first, image, second, other) in of("page"):
        assert named(image)[0] == named(other)[0]
        for text, drawn in ((first, image), (second, other)):
            assert text.text == drawn.alt


def test_names_and_styles_are_right(of):
    for (image, _), (text,) in of("name"):
        assert image.alt == f"{named(image)[1]} of {text.text}"
    for (image, _), (text,) in of("style"):
        assert text.text == named(image)[1]
    for (image, _), (text,) in of("flag"):
        assert named(image)[0] == f"flag of {text.text}"
    for (asked,), (text,) in of("refuse"):
        assert any(weapon in asked.text for weapon in WEAPONS)
        assert text.text == "I do not draw weapons."


def test_choices_are_right_and_no_constant_answer_is(of):
    answers = set()
    for (image, asked), (text,) in of("yes_or_no"):
        is_right = re.search(rf"{named(image)[0]}\b", asked.text) is not None
        assert text.text == ("Yes." if is_right else "No.")
        answers.add(text.text)
    assert answers == {"Yes.", "No."}
    places = set()
    for (*images, _), (text,) in of("odd_one_out"):
        place = ["The first.", "The second.", "The third."].index(text.text)
        odd = images.pop(place)
        assert named(images[0])[0] == named(images[1])[0] != named(odd)[0]
        assert images[0] != images[1]
        places.add(place)
    assert places == {0, 1, 2}
