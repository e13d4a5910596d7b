"""Items from files, templates, and few-shot examples."""

import base64
import io
import json
import sys
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pardalis.documents import Document, Image, Text
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate.tasks import (
    ConversationsConfig,
    DocumentsConfig,
    Item,
    RecordsConfig,
    Template,
    load_items,
    task_of,
)
from pardalis.evaluate.tasks.items import require_images
from pardalis.evaluate.tasks.task import Trial, trials


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def fields_of(folder: Path, content: str, name: str, **options) -> list[dict]:
    (folder / name).write_text(content)
    return [dict(i.fields) for i in load_items(RecordsConfig(path=Path(name), **options), folder)]


def test_each_format_gives_the_same_items(tmp_path):
    expected = [{"q": "Who, me?", "a": "naïve"}, {"q": 'Say "x"\nnow', "a": "b"}]
    lines = "".join(json.dumps(each) + "\n\n" for each in expected)
    assert fields_of(tmp_path, lines, "a.jsonl") == expected
    assert fields_of(tmp_path, json.dumps(expected), "a.json") == expected
    nested = json.dumps({"data": {"rows": expected}})
    assert fields_of(tmp_path, nested, "b.json", at="data.rows") == expected
    table = 'q,a\n"Who, me?",naïve\n"Say ""x""\nnow",b\n'
    assert fields_of(tmp_path, "\ufeff" + table, "a.csv") == expected
    tabs = 'q\ta\nWho, me?\tnaïve\n"Say ""x""\nnow"\tb\n'
    assert fields_of(tmp_path, tabs, "a.tsv") == expected


def test_parquet_of_the_hub(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [{"q": "?", "image": {"bytes": png("red"), "path": None}, "c": {"text": ["a", "b"]}}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    [item] = load_items(RecordsConfig(path=Path("a.parquet"), images=("image",)), tmp_path)
    assert item.fields["image"] == Image(png("red"))
    assert item.fields["c"] == {"text": ["a", "b"]}


def test_parquet_without_its_package(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"Reading Parquet needs .*pardalis\[parquet\]"):
        load_items(RecordsConfig(path=Path("a.parquet")), tmp_path)


def test_images_in_each_form(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png("red"))
    uri = "data:image/png;base64," + base64.b64encode(png("blue")).decode()
    rows = [
        {"x": "a.png"},
        {"x": uri},
        {"x": {"path": "a.png"}},
        {"x": ["a.png", uri]},
        {"x": None},
    ]
    options = {"images": ["x"], "image_folder": "images"}
    config = task_of(
        {"kind": "perplexity", "name": "t", "document": "{x}", "data": {"path": "a.json"} | options}
    ).data
    (tmp_path / "a.json").write_text(json.dumps(rows))
    items = load_items(config, tmp_path)
    file, blue = Image(tmp_path / "images" / "a.png"), Image(png("blue"))
    assert [item.fields["x"] for item in items[:4]] == [file, blue, file, [file, blue]]
    assert Template("{x}").segments(items[4].fields) == []  # an item without an image
    require_images(items)
    assert items[0].digest() == items[2].digest() != items[1].digest()
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(DataError, match=r"a.png of the item '0' is missing, and so are 2 more"):
        require_images(items)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        (
            "a.json",
            "{}",
            {},
            "holds a dict; a list of records was expected, whose place `at` gives",
        ),
        ("a.json", '{"data": []}', {"at": "rows"}, "has no 'rows' on the way to its records"),
        ("a.json", "[1]", {}, "cannot be read: it is a JSON int; an object was expected"),
        ("a.json", "[", {}, "a.json is not JSON"),
        ("a.csv", "a,b\n1\n", {}, "a.csv:2 has not the 2 columns of the first line"),
        ("a.csv", "a,b\n1,2,3\n", {}, "a.csv:2 has not the 2 columns of the first line"),
        ("a.csv", 'a\n"x\n', {}, "is no line of a table: unexpected end of data"),
        ("a.csv", "", {}, "a.csv has no items; is it the right file?"),
        (
            "a.jsonl",
            '{"x": 3}',
            {"images": ("x",)},
            "record 1, has int '3' as an image; it must be",
        ),
        (
            "a.jsonl",
            '{"y": 3}',
            {"images": ("x",)},
            "has no 'x', which is a field of images; it has",
        ),
        ("a.jsonl", '{"x": "\\ud800"}', {}, "broken Unicode: half of a surr"),
    ],
)
def test_files_that_hold_no_items(tmp_path, name, content, options, message):
    with pytest.raises(DataError) as caught:
        fields_of(tmp_path, content, name, **options)
    assert message in str(caught.value)


def test_documents(tmp_path):
    (tmp_path / "red.png").write_bytes(png("red"))
    lines = [{"name": "a", "segments": [{"text": "An owl"}, {"image": "red.png"}]}]
    (tmp_path / "a.jsonl").write_text(json.dumps(lines[0]) + "\n")
    [item] = load_items(DocumentsConfig(path=Path("a.jsonl")), tmp_path)
    assert item.fields["document"].segments == (Text("An owl"), Image(tmp_path / "red.png"))
    (tmp_path / "a.jsonl").write_text('{"segments": [{"image": "none.png"}]}\n')
    with pytest.raises(DataError, match=r"a.jsonl:1: .*none.png"):
        load_items(DocumentsConfig(path=Path("a.jsonl")), tmp_path)


def conversation(*turns: tuple[str, dict]) -> str:
    segments = [{"role": role, **segment} for role, segment in turns]
    return json.dumps({"name": "a", "segments": segments}) + "\n"


def test_conversations_are_a_request_and_its_answer(tmp_path):
    shown, asked = ("user", {"image": "a.png"}), ("user", {"text": "What is this?"})
    answer = ("assistant", {"text": "An owl."})
    path = tmp_path / "a.jsonl"
    (tmp_path / "a.png").write_bytes(png("red"))
    path.write_text(conversation(shown, asked, answer))
    layout = ConversationsConfig(path=Path("a.jsonl"))
    [item] = load_items(layout, tmp_path)
    assert item.id == item.fields["name"] == "a"
    assert item.fields["request"].segments == (Image(tmp_path / "a.png"), Text("What is this?"))
    assert item.fields["answer"].segments == (Text("An owl."),)
    task = task_of(
        {"kind": "generate", "name": "t", "prompt": "{request}", "answers": ["{answer}"],
         "chat": True, "data": {"kind": "conversations", "path": "a.jsonl"}}
    )  # fmt: skip
    assert task.accepted(item) == ["An owl."]
    assert [each.role for each in task.prompt_of(Trial(item)).segments] == ["user", "user"]
    path.write_text(conversation(asked, answer, asked, answer))
    with pytest.raises(DataError) as caught:
        load_items(layout, tmp_path)
    assert str(caught.value) == (
        f"{path}: the conversation 'a' has the turns user, assistant, user, assistant; one of the "
        "user and one of the assistant are expected."
    )
    path.write_text(conversation(asked))
    with pytest.raises(DataError, match="has the turns user; one of"):
        load_items(layout, tmp_path)


IMAGE = Image(b"x")
FIELDS = {
    "text": "a{b}", "number": 3, "half": 0.5, "flag": True, "none": None, "list": ["x", "y"],
    "table": {"text": ["p", "q"]}, "dotted.name": "d", "with space": "s", "image": IMAGE,
    "images": [IMAGE, IMAGE], "document": Document((Text("see "), IMAGE, Text("!"))),
}  # fmt: skip


@pytest.mark.parametrize(
    ("source", "segments"),
    [
        ("{text}, {number} {half} {flag}", [Text("a{b}, 3 0.5 True")]),
        ("{table.text.1}{list.0}{dotted.name}{with space}", [Text("qxds")]),
        ("{{{number}}}", [Text("{3}")]),
        ("{image}What?{images}", [IMAGE, Text("What?"), IMAGE, IMAGE]),
        ("Now {document}", [Text("Now see "), IMAGE, Text("!")]),
        ("{list|lettered}", [Text("A. x\nB. y")]),
        ("{text|capitalized|lower}", [Text("a{b}")]),
        ("", []),
    ],
)
def test_templates(source, segments):
    assert Template(source).segments(FIELDS) == segments


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{txt}", "the field {txt}, which the item does not have; did you mean {text}? its fields"),
        ("{list.7}", "the field {list.7}, which the item does not have"),
        ("{text.x}", "the field {text.x}, which the item does not have"),
        ("{list}", "the field {list}: it is a list, where a text, a number or an image can stand"),
        ("{none}", "the field {none}: the item has no value there"),
        (
            "{text|lettered}",
            "the filter 'lettered' to {text}: a list of at most 26 texts is needed",
        ),
    ],
)
def test_templates_that_do_not_fit_an_item(source, message):
    with pytest.raises(DataError) as caught:
        Template(source).segments(FIELDS)
    assert message in str(caught.value)


@given(st.text("ab{}|. "))
def test_any_text_is_a_template_or_refused(source):
    try:
        template = Template(source)
    except ConfigError:
        assert "{" in source or "}" in source
    else:
        if "{" not in source.replace("{{", ""):
            assert template.text({}) == source.replace("{{", "{").replace("}}", "}")


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 4), st.integers(0, 9))
def test_examples_are_never_the_item(values, shots, seed):
    """Items may be equal: those are not examples of each other."""
    items = [Item(str(n), {"q": f"{value}", "c": ["a"], "a": 0}) for n, value in enumerate(values)]
    task = task_of(
        {"kind": "choice", "name": "t", "prompt": "{q}", "choices": ["{c}"], "answer": "{a}",
         "data": {"path": "x.jsonl"}, "shots": shots}
    )  # fmt: skip
    n_others = min(sum(other != value for other in values) for value in values)
    try:
        found = trials(task, items, items, seed)
    except ConfigError:
        assert n_others < shots
    else:
        for trial in found:
            assert len({id(shot) for shot in trial.shots}) == shots
            assert all(shot.fields != trial.item.fields for shot in trial.shots)
        alone = trials(task, items[:1], items, seed)
        assert alone[0] == found[0]
