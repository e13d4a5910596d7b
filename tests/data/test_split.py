"""A document is on one side for ever, and what is held out is on the other side of everything."""

import dataclasses
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from documents_on_disk import WRITERS, write_documents

from pardalis.data import SourceConfig, place_of, placed, read_source, survey, survey_parts
from pardalis.data.source import empty_part, read_part
from pardalis.documents import READERS, Document, Image, Rejection, Text
from pardalis.errors import ConfigError

N = 60
Keys = set[str]


def text(words: str, name: str = "") -> Document:
    return Document((Text(words),), name)


@pytest.fixture(params=sorted(WRITERS))
def source(request, tmp_path: Path) -> SourceConfig:
    """A source of one of the readers, with the words of 60 documents."""
    path = write_documents(request.param, tmp_path / "data", range(N))
    return SourceConfig(name="a", reader=request.param, path=path)


def keys_of(source: SourceConfig) -> Keys:
    """What identifies the documents of a source, wherever they stand."""
    documents = [item for item in read_source(source) if isinstance(item, Document)]
    return {document.text + document.name.partition("#")[2] for document in documents}


def sides(source: SourceConfig, fraction: float = 0.3) -> tuple[Keys, Keys]:
    training, heldout = ((fraction, 1.0), (0.0, fraction))
    return (
        keys_of(dataclasses.replace(source, part=training)),
        keys_of(dataclasses.replace(source, part=heldout)),
    )


def test_every_reader_is_known_here():
    assert set(WRITERS) == set(READERS)


def test_the_sides_have_all_documents_and_none_in_common(source):
    training, heldout = sides(source)
    assert training and heldout
    assert not training & heldout
    assert training | heldout == keys_of(source)


def test_a_larger_fraction_keeps_what_was_held_out(source):
    assert sides(source, 0.1)[1] < sides(source, 0.3)[1] < sides(source, 0.8)[1]


def test_additions_and_another_order_move_nothing(source, tmp_path):
    before = sides(source)
    numbers = [*range(2 * N)]
    random.Random(0).shuffle(numbers)
    path = write_documents(source.reader, tmp_path / "other", numbers)
    training, heldout = sides(dataclasses.replace(source, path=path))
    assert before[0] < training
    assert before[1] < heldout


def test_another_folder_moves_nothing(source, tmp_path):
    before = sides(source)
    shutil.move(tmp_path / "data", tmp_path / "moved")
    moved = tmp_path / "moved" / source.path.relative_to(tmp_path / "data")
    assert sides(dataclasses.replace(source, path=moved)) == before


def test_parts_are_surveyed_as_each_alone_in_one_reading(source, monkeypatch):
    whole, *parts = (0.0, 1.0), (0.3, 1.0), (0.0, 0.3)
    alone = [survey(dataclasses.replace(source, part=part)) for part in (whole, *parts)]
    readings = 0
    read = READERS[source.reader]

    def counted(path: Path) -> object:
        nonlocal readings
        readings += 1
        return read(path)

    monkeypatch.setitem(READERS, source.reader, counted)
    assert survey_parts(source, [whole, *parts]) == alone
    assert readings == 1
    assert alone[1].n_items + alone[2].n_items == alone[0].n_items
    assert len({each.digest for each in alone}) == 3


def test_places_are_those_of_every_machine():
    """Written down, since another hash would move documents that a model was trained on."""
    assert place_of(text("An owl.")) == PLACES["text"]
    assert place_of(Document((Image(b"owl"),))) == PLACES["bytes"]
    assert place_of(Document((Image(Path("a.png")),), "a.png")) == PLACES["name"]


PLACES = {
    "text": 0.8903694746877322,
    "bytes": 0.6193634283660979,
    "name": 0.6790955837862156,
}


def test_places_are_spread_evenly():
    places = sorted(place_of(text(f"document {i}")) for i in range(2000))
    assert max(abs(place - i / 2000) for i, place in enumerate(places)) < 0.04
    assert all(0 <= place < 1 for place in places)


def test_copies_and_equal_captions_have_one_place():
    caption = place_of(Document((Text("an owl"), Image(Path("a.png"))), "a.png"))
    assert place_of(Document((Image(Path("b.png")), Text("an  owl\n")), "b.png")) == caption
    assert place_of(text("an owl", "note")) == caption
    assert place_of(text("an owl!")) != caption


def test_without_text_the_stored_images_decide_and_else_the_name():
    stored = place_of(Document((Image(b"owl"),), "file:3"))
    assert place_of(Document((Image(b"owl"), Text(" ")), "file:4")) == stored
    assert place_of(Document((Image(b"fox"),), "file:3")) != stored
    named = place_of(Document((Image(Path("x/a.png")),), "a.png"))
    assert place_of(Document((Image(Path("y/a.png")),), "a.png")) == named
    assert place_of(Document((Image(Path("x/a.png")),), "b.png")) != named


def pair(prompt: list[Text | Image], chosen: str, rejected: str) -> float:
    start = tuple(dataclasses.replace(segment, weight=0.0) for segment in prompt)
    return place_of(*(Document((*start, Text(end)), "p") for end in (chosen, rejected)))


def test_pairs_of_one_question_have_one_place():
    asked = [Text("What is red?")]
    assert pair(asked, "A rose.", "A tree.") == pair(asked, "Blood.", "Snow.")
    assert pair(asked, "A rose.", "A tree.") != pair([Text("What is blue?")], "A rose.", "A tree.")
    # The question may be the same for all images.
    seen = [Image(Path("a.png")), Text("What is it?")]
    assert pair(seen, "An owl.", "A cat.") != pair(seen, "A fox.", "A cat.")
    assert pair([], "An owl.", "A cat.") != pair([], "A fox.", "A cat.")


def talk(*turns, system: str = ""):
    """A conversation that begins with the user."""
    roles = ("user", "assistant") * len(turns)
    segments = [replace(turn, role=role) for turn, role in zip(turns, roles, strict=False)]
    return Document((*([Text(system, "system")] if system else []), *segments), "a")


def test_a_conversation_lies_where_its_first_question_does():
    """Else the answer to a held-out question is learnt from another sample of it."""
    asked = Text("Who lives  in the tower?\n")
    one = talk(asked, Text("An owl."))
    for other in (
        talk(Text("Who lives in the tower?"), Text("A cat.")),
        talk(asked, Text("A cat."), Text("Why?"), Text("It does.")),
        talk(asked, Text("An owl."), system="Be brief."),
        talk(asked, Image(Path("owl.png"))),
    ):
        assert place_of(one) == place_of(other)
    assert place_of(one) != place_of(talk(Text("Who lives in the well?"), Text("An owl.")))


def test_the_same_question_about_images_is_placed_by_the_answer():
    def about(answer, source):
        seen, asked = Image(source, role="user"), Text("What is it?", "user")
        return place_of(Document((seen, asked, Text(answer, "assistant")), "a"))

    assert about("An owl.", Path("a.png")) != about("A cat.", Path("b.png"))
    assert about("An owl.", Path("a.png")) == about("An owl.", Path("b.png"))


def test_the_two_of_a_pair_are_never_parted(tmp_path):
    path = write_documents("pairs", tmp_path / "data", range(N))
    names = [item.name for item in read_part(path, "pairs", (0.0, 0.5))]
    assert len(names) > 10
    assert [name.partition("#")[2] for name in names] == ["chosen", "rejected"] * (len(names) // 2)


def test_rejections_are_reported_by_the_last_part_alone():
    rejection = Rejection("a", "bad-record", "It is bad.")
    [(place, item)] = placed([rejection])
    assert item is rejection
    assert 0.999 < place < 1


@pytest.mark.parametrize(
    "part", [(0.5, 0.5), (0.7, 0.3), (-0.1, 1.0), (0.0, 1.1), (0.0, float("nan"))]
)
def test_a_part_that_is_no_range_is_refused(part):
    with pytest.raises(ConfigError, match=r"^part must be two numbers in \[0, 1\], the smaller"):
        SourceConfig(name="a", reader="jsonl", path=Path("a"), part=part)


def test_an_empty_part_is_told_with_what_would_fill_it(tmp_path):
    path = write_documents("jsonl", tmp_path / "data", [1])
    source = SourceConfig(name="a.heldout", reader="jsonl", path=path, part=(0.0, 1e-9))
    [document] = read_part(path, "jsonl")
    assert str(empty_part(source)).startswith(
        f"The one document at {path} lies at {place_of(document):.4f}, outside the part from 0 to "
        "1e-09 that source 'a.heldout' takes, so no heldout_fraction divides this source; "
    )
    line = path.read_text()
    path.write_text(line + line)
    assert f"All 2 documents at {path} lie at {place_of(document):.4f}, since" in str(
        empty_part(source)
    )
    path.write_text(line + line.replace("animal", "plant"))
    places = sorted(map(place_of, read_part(path, "jsonl")))
    found = str(empty_part(source))
    assert f"None of the 2 documents at {path} lies in the part from 0 to 1e-09" in found
    assert f"from {places[0]:.4f} to {places[1]:.4f}" in found
    path.write_text("no JSON\n")
    assert str(empty_part(source)).startswith(
        f"Source 'a.heldout' at {path} has no usable document, 1 rejected by its reader 'jsonl'; "
        f"the first, {path}:1: The line is not JSON"
    )
    path.write_text("")
    assert "is empty: its reader 'jsonl' found no document." in str(empty_part(source))
