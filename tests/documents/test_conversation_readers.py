"""Readers of conversations: what a record means, and what is said of one that means nothing."""

import base64
import json
import os

import pytest
from hostile import ABSURD, places, replaced

from pardalis.documents import READERS, Document, Image, Rejection, Text, to_data_uri
from pardalis.errors import DataError

S, U, A = "system", "user", "assistant"
ASKED = {"role": U, "content": "What is it?"}
ANSWERED = {"role": A, "content": "An owl."}
PAIR = [{"user": "What is it?", "assistant": "An owl."}]
HUMAN = {"from": "human", "value": "What is it?"}
GPT = {"from": "gpt", "value": "An owl."}


def read(reader, path, *records):
    if path.suffix == "":
        path = path / "talk.jsonl"
    path.write_bytes(b"".join(
        (each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in records
    ))  # fmt: skip
    return list(READERS[reader](path))


# ── what a record means ──────────────────────────────────────────────────────────────────────────


def test_messages(tmp_path, red_file, red_png):
    url = to_data_uri(red_png)
    record = {
        "id": 7,
        "images": ["red.png"],
        "score": 0.5,
        "messages": [
            {"role": S, "content": "Be brief."},
            {"role": U, "content": [
                {"type": "image"},
                {"type": "text", "text": "And "},
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "image_url", "image_url": {"url": "red.png"}},
                {"type": "image", "image": "red.png"},
            ]},
            {"role": A, "content": "No.", "weight": 0},
            {"role": U, "content": "Again?"},
            {"role": A, "content": [{"type": "text", "text": "Red."}], "refusal": None},
        ],
    }  # fmt: skip
    segments = (
        Text("Be brief.", S),
        Image(red_file, role=U), Text("And ", U), Image(red_png, role=U),
        Image(red_file, role=U), Image(red_file, role=U),
        Text("No.", A, 0.0), Text("Again?", U), Text("Red.", A),
    )  # fmt: skip
    assert read("chat", tmp_path, record) == [Document(segments, "7")]


def test_places_of_images_in_tables_have_nulls(tmp_path, red_file):
    content = [{"type": "image", "text": None}, {"type": "text", "text": "?", "image": None}]
    record = {"messages": [{"role": U, "content": content}, ANSWERED], "images": ["red.png"]}
    [document] = read("chat", tmp_path, record)
    assert document.segments == (Image(red_file, role=U), Text("?", U), Text("An owl.", A))


def test_llava_and_sharegpt(tmp_path, red_file, red_png):
    content = base64.b64encode(red_png).decode()
    records = [
        {"id": "1", "image": "red.png", "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"}, GPT,
        ]},
        {"system": "Be brief.", "images": ["red.png", {"bytes": content}],
         "conversations": [
            {"from": "human", "value": "Draw <image>again."},
            {"from": "gpt", "value": "Here:\n<image>"},
        ]},
        {"conversations": [{"from": "system", "value": ""}, HUMAN, GPT]},
    ]  # fmt: skip
    assert read("sharegpt", tmp_path, *records) == [
        Document((Image(red_file, role=U), Text("What is it?", U), Text("An owl.", A)), "1"),
        Document(
            (
                Text("Be brief.", S),
                Text("Draw ", U), Image(red_file, role=U), Text("again.", U),
                Text("Here:", A), Image(red_png, role=A),
            ),
            "talk:2",
        ),
        Document((Text("What is it?", U), Text("An owl.", A)), "talk:3"),
    ]  # fmt: skip


def test_the_cauldron(tmp_path, red_file):
    record = {"images": ["red.png", {"path": "red.png"}], "texts": [*PAIR, *PAIR]}
    turns = Text("What is it?", U), Text("An owl.", A)
    images = Image(red_file, role=U), Image(red_file, role=U)
    assert read("cauldron", tmp_path, record) == [Document((*images, *turns, *turns), "talk:1")]


def test_what_public_records_have_besides(tmp_path):
    messages = [{"role": "developer", "content": "Be brief."}, {**ASKED, "name": "Jo"}, ANSWERED]
    [document] = read("chat", tmp_path, chat(*messages, parallel_tool_calls=False))
    assert [segment.role for segment in document.segments] == [S, U, A]
    turns = [{"role": "user", "content": "?"}, {"from": "chatgpt", "value": "An owl."}]
    [document] = read("sharegpt", tmp_path, llava(*turns, model="", image=None))
    assert document.segments == (Text("?", U), Text("An owl.", A))


def test_a_json_list_and_a_folder(tmp_path, red_file):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "blue.png").write_bytes(red_file.read_bytes())
    record = {"image": "blue.png", "conversations": [{**HUMAN, "value": "<image>?"}, GPT]}
    above = {**record, "image": "../red.png"}
    (tmp_path / "b" / "list.json").write_text(json.dumps([record, above, 1]))
    read("sharegpt", tmp_path / "a.jsonl", {"conversations": [HUMAN, GPT]})
    (tmp_path / "notes.txt").write_text("{}")
    first, second, third, bad = READERS["sharegpt"](tmp_path)
    assert [first.name, second.name, third.name] == ["a:1", "b/list:1", "b/list:2"]
    assert second.images[0].source == tmp_path / "b" / "blue.png"
    assert third.images[0].source.read_bytes() == red_file.read_bytes()
    assert (bad.where, bad.kind) == (f"{tmp_path / 'b' / 'list.json'}:3", "bad-record")


# ── what is rejected ─────────────────────────────────────────────────────────────────────────────


def chat(*messages, **more):
    return {"messages": list(messages), **more}


def with_image(name, **more):
    return chat({"role": U, "content": [{"type": "image", "image": name}]}, ANSWERED, **more)


def llava(*turns, **more):
    return {"conversations": list(turns), **more}


GOOD = {"chat": chat(ASKED, ANSWERED), "sharegpt": llava(HUMAN, GPT), "cauldron": {"texts": PAIR}}


@pytest.mark.parametrize(
    ("reader", "record", "kind", "reason"),
    [
        ("chat", b"{", "bad-json", "The line is not JSON"),
        ("chat", {}, "bad-record", 'a list of messages under "messages"'),
        ("chat", {"messages": 1}, "bad-record", '"messages" of the record is of type int; it must'),
        ("chat", chat(1), "bad-record", 'messages[0] must be an object with "role"'),
        ("chat", chat({"role": [1]}), "bad-record", 'messages[0] must be an object with "role"'),
        (
            "chat",
            chat({"role": "tool", "content": "a"}),
            "unknown-role",
            "the role 'tool'; it must",
        ),
        ("chat", chat(ASKED), "no-answer", "no turn of the assistant"),
        ("chat", chat(ANSWERED, ASKED), "role-order", "Turn 0 is the assistant's where the user's"),
        (
            "chat",
            chat(ASKED, ASKED, ANSWERED),
            "role-order",
            "Turn 1 is the user's where the assis",
        ),
        ("chat", chat({"role": S, "content": "a"}, ANSWERED), "role-order", "Turn 1 is the assist"),
        (
            "chat",
            chat(ASKED, ANSWERED, {"role": S, "content": "a"}),
            "role-order",
            "Turn 2 is the s",
        ),
        (
            "chat",
            chat(ASKED, {"role": A, "content": " \n"}),
            "empty-answer",
            "Turn 1, the assistant's",
        ),
        ("chat", chat(ASKED, {"role": A, "content": None}), "empty-answer", "neither text nor"),
        ("chat", chat(ASKED, {"role": A, "content": []}), "empty-answer", "neither text nor"),
        ("chat", chat(ASKED, {"role": A}), "empty-answer", "neither text nor"),
        ("chat", chat({"role": U, "content": ""}, ANSWERED), "empty-turn", "Turn 0, the user's"),
        ("chat", chat(ASKED, ANSWERED, tools=[1]), "unknown-key", '"tools", whose calls are not'),
        (
            "chat",
            chat(ASKED, {**ANSWERED, "tool_calls": [1]}),
            "bad-record",
            "messages[1] has tool_c",
        ),
        (
            "chat",
            chat(ASKED, {**ANSWERED, "weight": -1}),
            "bad-weight",
            "messages[1] has the weight",
        ),
        (
            "chat",
            chat(ASKED, {"role": A, "content": 3}),
            "bad-record",
            'messages[1] needs "content"',
        ),
        (
            "chat",
            chat(ASKED, {"role": A, "content": [3]}),
            "bad-record",
            "messages[1].content[0] must",
        ),
        ("chat", chat(ASKED, {"role": A, "content": "\ud800"}), "bad-record", "broken Unicode"),
        ("chat", with_image("no.png"), "missing-image", "'no.png', which is not a file in"),
        ("chat", with_image("a\0"), "missing-image", "which is not a file in"),
        ("chat", with_image("a" * 5000), "missing-image", "which is not a file in"),
        ("chat", with_image(""), "bad-record", "messages[0], part 0 must be the path or the data:"),
        ("chat", with_image(3), "bad-record", "must be the path or the data:"),
        ("chat", with_image("https://a.org/b.png"), "remote-image", "is not on this machine"),
        (
            "chat",
            with_image("data:image/png;base64,@"),
            "bad-base64",
            "messages[0], part 0: The im",
        ),
        ("chat", with_image("red.png", images=["red.png"]), "image-count", "has 0 parts"),
        (
            "chat",
            chat({"role": U, "content": [{"type": "image"}]}, ANSWERED),
            "image-count",
            "1 parts",
        ),
        ("sharegpt", {}, "bad-record", 'a list of turns under "conversations"'),
        ("sharegpt", llava(1), "bad-record", 'conversations[0] must be an object with "from"'),
        (
            "sharegpt",
            llava({"from": "human", "value": 1}),
            "bad-record",
            "value is of type int; it must",
        ),
        (
            "sharegpt",
            llava(HUMAN, {"from": "bing", "value": "a"}),
            "unknown-role",
            "is from 'bing'",
        ),
        ("sharegpt", llava(HUMAN), "no-answer", "no turn of the assistant"),
        ("sharegpt", llava(GPT, HUMAN), "role-order", "Turn 0 is the assistant's"),
        ("sharegpt", llava(HUMAN, {**GPT, "value": ""}), "empty-answer", "Turn 1, the assistant's"),
        (
            "sharegpt",
            llava(HUMAN, GPT, image="red.png"),
            "image-count",
            "0 places <image> and 1 im",
        ),
        (
            "sharegpt",
            llava({**HUMAN, "value": "<image><image>"}, GPT, image="red.png"),
            "image-count",
            "2 places <image> and 1 images",
        ),
        (
            "sharegpt",
            llava({**HUMAN, "value": "<image>"}, GPT, image="no.png"),
            "missing-image",
            "no",
        ),
        ("sharegpt", llava(HUMAN, GPT, system=3), "bad-record", "system is of type int"),
        ("cauldron", {}, "no-answer", 'no turns under "texts"'),
        ("cauldron", {"texts": [1]}, "bad-record", "texts[0] must be an object"),
        (
            "cauldron",
            {"texts": [{"user": "a"}]},
            "bad-record",
            "texts[0].assistant is of type NoneType",
        ),
        ("cauldron", {"texts": [{"user": "a", "assistant": ""}]}, "empty-answer", "Turn 1"),
        ("cauldron", {"texts": [{"user": "", "assistant": "a"}]}, "empty-turn", "Turn 0"),
        ("cauldron", {"texts": PAIR, "images": [None]}, "bad-record", "image 0 must be the path"),
        (
            "cauldron",
            {"texts": PAIR, "images": "a"},
            "bad-record",
            '"images" of the record is of type str',
        ),
    ],
)
def test_a_bad_record_is_rejected_and_the_next_is_read(
    tmp_path, red_file, reader, record, kind, reason
):
    good = {
        "chat": chat(ASKED, ANSWERED),
        "sharegpt": llava(HUMAN, GPT),
        "cauldron": {"texts": PAIR},
    }
    rejection, document = read(reader, tmp_path, record, good[reader])
    assert isinstance(rejection, Rejection) and isinstance(document, Document)
    assert (rejection.kind, rejection.where) == (kind, f"{tmp_path / 'talk.jsonl'}:1")
    assert reason in rejection.reason and rejection.reason.endswith(".")
    assert len(rejection.reason) < 500


def test_images_stay_inside_the_folder_of_the_source(tmp_path, red_png):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir(), outside.mkdir()
    (outside / "red.png").write_bytes(red_png)
    (inside / "a.png").write_bytes(red_png)
    os.symlink(outside / "red.png", inside / "out.png")
    os.symlink(outside, inside / "linked")
    os.symlink("a.png", inside / "link.png")
    os.symlink("loop.png", inside / "loop.png")
    os.mkfifo(inside / "pipe.png")
    names = ["../out/red.png", str(outside / "red.png"), "out.png", "linked/red.png"]
    found = read("chat", inside, *map(with_image, names))
    assert [each.kind for each in found] == ["outside-image"] * 4
    assert f"lies outside {inside}; copy it there, or name its folder" in found[0].reason
    [linked] = read("chat", inside, with_image("link.png"))
    assert len(linked.images) == 1
    found = read("chat", inside, *map(with_image, ["loop.png", "pipe.png", "file:///etc/hosts"]))
    assert [each.kind for each in found] == ["missing-image"] * 2 + ["outside-image"]
    (reached := tmp_path / "reached").symlink_to(inside)  # a link to the source itself is good
    (inside / "red.png").write_bytes(red_png)
    assert isinstance(read("chat", reached, with_image("red.png"))[0], Document)


def test_places_of_images_in_texts(tmp_path, red_file):
    messages = [
        {"role": "user", "content": "<image>What is it?\n<image>"},
        {"role": "assistant", "content": "No <tag>."},
    ]
    record = {"messages": messages, "images": ["red.png", f"file://{tmp_path}/red.png"]}
    [document] = read("chat", tmp_path, record)
    image, text, other, answer = document.segments
    assert text.text == "What is it?" and answer.text == "No <tag>."
    assert image.source == other.source and image.role == "user"
    [document] = read("chat", tmp_path, {"messages": messages})
    assert document.segments[0].text == "<image>What is it?\n<image>"


@pytest.mark.parametrize("reader", ["chat", "sharegpt"])
def test_films_and_sound_are_not_lost_in_silence(tmp_path, reader):
    turns = {
        "chat": {
            "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a"}]
        },
        "sharegpt": {
            "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a"}]
        },
    }[reader]
    document, rejection = read(reader, tmp_path, turns, {**turns, "videos": ["a.mp4"]})
    assert isinstance(document, Document) and rejection.kind == "unread-format"
    [document] = read(reader, tmp_path, {**turns, "image" if reader == "sharegpt" else "x": ""})
    assert isinstance(document, Document)


@pytest.mark.parametrize("reader", ["chat", "sharegpt", "cauldron"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [("{", "bad-json"), ("3", "bad-record"), ("[" * 10_000, "bad-json"), ("[[], 1]", "bad-record")],
)
def test_json_that_is_no_list_of_records_is_rejected(tmp_path, reader, content, kind):
    (tmp_path / "talk.json").write_text(content)
    found = list(READERS[reader](tmp_path / "talk.json"))
    assert found and {each.kind for each in found} == {kind}


@pytest.mark.parametrize("reader", ["chat", "sharegpt", "cauldron"])
def test_a_path_without_anything_is_refused(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("none.jsonl", "pipe.jsonl"):
        with pytest.raises(DataError, match="a file of conversations, or a folder of such files"):
            READERS[reader](tmp_path / name)
    [found] = READERS[reader](tmp_path)
    assert found.kind == "unreadable-file" and "not a regular file" in found.reason


RECORDS = {
    "chat": {
        "id": "a", "images": ["red.png"], "messages": [
            {"role": S, "content": "Be brief.", "weight": 1},
            {"role": U, "content": [
                {"type": "image"}, {"type": "image_url", "image_url": {"url": "red.png"}},
                {"type": "text", "text": "?"},
            ]},
            ANSWERED,
        ],
    },
    "sharegpt": {
        "id": "a", "system": "Be brief.", "image": ["red.png"], "images": [{"path": "red.png"}],
        "conversations": [{"from": "human", "value": "<image>?<image>"}, GPT],
    },
    "cauldron": {"images": ["red.png", {"bytes": "AA=="}], "texts": PAIR},
}  # fmt: skip


@pytest.mark.parametrize("reader", RECORDS)
def test_any_value_in_any_place_is_read_or_rejected(tmp_path, red_file, reader):
    """Nothing but a document or a rejection comes of a record, and every record counts."""
    good = RECORDS[reader]
    values = [*ABSURD, [[]], [{}], {"": 0}, "\ud800", "../red.png", "data:,", float("nan"), 10**400]
    changed = [replaced(good, place, new) for place in places(good) for new in values]
    found = read(reader, tmp_path, good, *changed)
    assert isinstance(found[0], Document) and len(found) == 1 + len(changed)
    for item in found:
        assert isinstance(item, Document | Rejection)
        if isinstance(item, Document):
            assert all(each.role in (S, U, A) and each.weight >= 0 for each in item.segments)
            assert A in {each.role for each in item.segments}
