"""Tables: CSV and TSV, Parquet as Hugging Face's datasets have it, and folders of datasets."""

import base64
import gzip
import json
import os
import struct
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from pardalis.data.source import SourceConfig, read_source
from pardalis.documents import READERS, Document, Image, Rejection, Text, to_data_uri
from pardalis.errors import ConfigError, DataError


def read(reader, path, **options):
    source = SourceConfig(name="a", reader=reader, path=path, options=options)
    return list(read_source(source))


def texts(items):
    return [item.text if isinstance(item, Document) else item.kind for item in items]


# ── CSV ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "gb18030"])
def test_rows_of_any_editor(tmp_path, red_file, delimiter, encoding):
    caption = "一只猫头鹰站在树枝上" if encoding == "gb18030" else "Une chouette à l'aube, dorée"
    rows = [["Caption", "Image"], [f'"{caption}\n"', "red.png"], ['"a ""b"""', ""]]
    text = "".join(delimiter.join(row) + "\r\n" for row in rows)
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    first, second = read("csv", tmp_path / "a.csv")
    assert first == Document((Text(caption), Image(red_file, caption)), "a:3")
    assert second == Document((Text('a "b"'),), "a:4")


def test_named_columns(tmp_path, red_file):
    head = "id,title,about,photo,text\n"
    (tmp_path / "a.csv").write_text(head + "x1,Owl,It is white.,red.png,no\n")
    [document] = read("csv", tmp_path, text=["title", "about"], image=["photo"])
    words = "Owl\nIt is white."
    assert document == Document((Text(words), Image(red_file, words)), "x1")
    [wrong] = read("csv", tmp_path, text=["nothing"])
    assert wrong.kind == "no-column" and "no column 'nothing' among id, title" in wrong.reason


def test_options_are_checked_with_the_recipe():
    with pytest.raises(ConfigError, match=r"Unknown key 'options.txet'; did you mean 'text'\?"):
        SourceConfig(name="a", reader="csv", path=Path("a"), options={"txet": ["a"]})
    with pytest.raises(ConfigError, match=r"options.text must be a list"):
        SourceConfig(name="a", reader="csv", path=Path("a"), options={"text": "a"})
    with pytest.raises(ConfigError, match="options must be empty for reader 'folder'"):
        SourceConfig(name="a", reader="folder", path=Path("a"), options={"text": ["a"]})


def test_a_table_without_known_columns_says_what_to_do(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    [rejection] = read("csv", tmp_path / "a.csv")
    assert rejection.kind == "no-column"
    assert "has the columns a, b, and none of a name that is known" in rejection.reason
    assert 'options = {text = ["..."], image = ["..."]}' in rejection.reason


# ── Parquet ──────────────────────────────────────────────────────────────────────────────────────


def write(path, rows, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **how)


def test_the_image_struct_of_hugging_face(tmp_path, red_file, red_png):
    rows = [
        {"image": {"bytes": red_png, "path": "somewhere.png"}, "text": "bytes", "label": 1},
        {"image": {"bytes": None, "path": "red.png"}, "text": "a path", "label": 2},
        {"image": None, "text": "none", "label": 3},
        {"image": {"bytes": None, "path": "/home/author/red.png"}, "text": "theirs", "label": 4},
    ]
    write(tmp_path / "a.parquet", rows)
    first, second, third, fourth = read("parquet", tmp_path / "a.parquet")
    assert first == Document((Text("bytes"), Image(red_png, "bytes")), "a:1")
    assert second == Document((Text("a path"), Image(red_file, "a path")), "a:2")
    assert third == Document((Text("none"),), "a:3")
    assert fourth.kind == "outside-image"


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.large_binary(), pyarrow.string()])
def test_columns_of_lists_and_of_bytes(tmp_path, red_png, kind):
    value = to_data_uri(red_png) if kind == pyarrow.string() else red_png
    table = pyarrow.table(
        {"images": pyarrow.array([[value, value]], pyarrow.list_(kind)), "captions": [["a", "b"]]}
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    [document] = read("parquet", tmp_path)
    assert document.text == "a\nb" and [image.source for image in document.images] == [red_png] * 2


def test_a_folder_as_on_the_hub_and_one_split_of_it(tmp_path):
    for split, number, n_files in (("train", 0, 2), ("train", 1, 2), ("test", 0, 1)):
        name = f"data/{split}-{number:05d}-of-{n_files:05d}.parquet"
        write(tmp_path / name, [{"text": f"{split} {number}"}])
    write(tmp_path / "validation" / "0000.parquet", [{"text": "valid"}])
    (tmp_path / "README.md").write_text("# Owls")
    assert texts(read("parquet", tmp_path)) == ["test 0", "train 0", "train 1", "valid"]
    assert texts(read("parquet", tmp_path, split="train")) == ["train 0", "train 1"]
    assert texts(read("parquet", tmp_path, split="validation")) == ["valid"]


def save_to_disk(folder, rows, *, split="", n_files=2):
    """Write what Dataset.save_to_disk of Hugging Face's library does."""
    folder = folder / split
    folder.mkdir(parents=True)
    names = [f"data-{n:05d}-of-{n_files:05d}.arrow" for n in range(n_files)]
    for name, part in zip(names, (rows[::2], rows[1::2]), strict=True):
        table = pyarrow.Table.from_pylist(part)
        with pyarrow.ipc.new_stream(str(folder / name), table.schema) as writer:
            writer.write_table(table)
    state = {"_data_files": [{"filename": name} for name in names], "_split": split or None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def test_a_dataset_that_was_saved_to_disk(tmp_path, red_png):
    rows = [{"text": f"{n}", "image": {"bytes": red_png, "path": None}} for n in range(4)]
    for split in ("train", "test"):
        save_to_disk(tmp_path, rows, split=split)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (tmp_path / "train" / "cache-1234.arrow").write_bytes(b"left by map")
    (tmp_path / "train" / "data-00007-of-00009.arrow").write_bytes(b"of an earlier version")
    items = read("parquet", tmp_path, split="train")
    assert texts(items) == ["0", "2", "1", "3"]
    assert items[0].name == "train/data-00000-of-00002:1" and items[0].images[0].source == red_png
    assert len(read("parquet", tmp_path)) == 8


def test_files_that_a_dataset_lacks_are_told(tmp_path):
    for number in (0, 3):
        write(tmp_path / f"train-{number:05d}-of-00005.parquet", [{"text": f"{number}"}])
    save_to_disk(tmp_path, [{"text": "a"}, {"text": "b"}], split="saved")
    (tmp_path / "saved" / "data-00001-of-00002.arrow").unlink()
    zero, three, missing, one, parts = read("parquet", tmp_path)
    assert texts([zero, three, one]) == ["0", "3", "a"]
    assert missing.kind == "missing-file" and parts.kind == "missing-part"
    assert "2 of the 5 files" in parts.reason and parts.count == 3


def test_a_cell_without_a_value_loses_no_row(tmp_path):
    bad = pyarrow.Array.from_buffers(
        pyarrow.string(),
        2,
        [None, pyarrow.py_buffer(struct.pack("<3i", 0, 3, 5)), pyarrow.py_buffer(b"a\xffbok")],
    )
    columns = {
        "text": bad,
        "dur": pyarrow.array([1, 2], pyarrow.duration("ns")),
        "when": pyarrow.array([2**62, 0], pyarrow.timestamp("us")),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert texts(read("parquet", tmp_path)) == ["a\ufffdb", "ok"]


@pytest.mark.parametrize("reader", ["csv", "parquet"])
def test_texts_in_columns_of_other_names_are_told(tmp_path, red_file, reader):
    row = {"image": "red.png", "question": "What?", "answer": "Red.", "id": "7"}
    if reader == "csv":
        lines = (",".join(row), ",".join(row.values()), ",".join(row.values()))
        (tmp_path / "a.csv").write_text("\n".join(lines))
    else:
        write(tmp_path / "a.parquet", [row, row])
    one, omission, two = read(reader, tmp_path)
    assert one.name == two.name == "7" and len(one.images) == 1
    assert omission.kind == "unread-column" and omission.count == 2
    assert "The columns question, answer are not read" in omission.reason


def test_an_encrypted_table_is_called_so(tmp_path):
    write(tmp_path / "a.parquet", [{"text": "a"}])
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[:-4] + b"PARE")
    [rejection] = read("parquet", tmp_path)
    assert rejection.reason.startswith("The file is encrypted")


TABLES = {
    "a line of Excel": "sep=;\r\ntext;image\r\nAn owl;red.png\r\n",
    "blank lines first": "\n \n\ntext,image\nAn owl,red.png\n\n",
    "old Macs": "text,image\rAn owl,red.png\r",
    "spaces": 'text , image\n "An owl", red.png \n',
    "a long name": '"text","ima\nge",image\nAn owl,,red.png\n',
    "equal names": "text,image,text\nAn owl,red.png,another\n",
    "in base64": "text\timage\nAn owl\t{base64}\n",
    "a file's URI": "text,image\nAn owl,file://{folder}/red.png\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_as_programs_write_them(tmp_path, red_file, red_png, name):
    encoded = base64.b64encode(red_png).decode()
    table = TABLES[name].format(base64=encoded, folder=tmp_path)
    (tmp_path / "a.csv").write_bytes(table.encode())
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(table.encode()))
    for document in read("csv", tmp_path):
        assert document.text == "An owl" and len(document.images) == 1
    assert len(read("csv", tmp_path)) == 2


def test_a_quote_that_is_not_closed_is_asked_about(tmp_path):
    (tmp_path / "a.csv").write_text('text,image\n"an owl,a.png\na cat,b.png\n')
    [rejection] = read("csv", tmp_path)
    assert rejection.reason.endswith("It goes from line 2 to 3; is a quote not closed?")


def test_an_arrow_file_with_a_footer(tmp_path):
    table = pyarrow.table({"text": ["a", "b"]})
    with pyarrow.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert texts(read("parquet", tmp_path / "a.arrow")) == ["a", "b"]


def test_rows_are_those_of_the_library_of_hugging_face(tmp_path, red_png):
    datasets = pytest.importorskip("datasets", reason="compares with Hugging Face's datasets")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = [{"image": {"bytes": red_png, "path": None}, "text": f"{n}"} for n in range(5)]
    made = datasets.Dataset.from_list(rows, features=features)
    made.save_to_disk(tmp_path / "saved", num_shards=2)
    made.to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "dict")
    for path, options in (("saved", {}), ("hub", {}), ("dict", {"split": "test"})):
        found = read("parquet", tmp_path / path, **options)
        assert [(item.text, item.images[0].source) for item in found] == [
            (row["text"], row["image"]["bytes"])
            for row in made.cast_column("image", datasets.Image(decode=False))
        ]


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    write(tmp_path / "a.parquet", [{"text": "a"}])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"needs the package 'pyarrow'.*'pardalis\[parquet\]'"):
        read("parquet", tmp_path / "a.parquet")


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Row groups and rows come one after the other."""
    noise = os.urandom(200_000)
    row = {"image": {"bytes": noise, "path": None}, "text": "noise"}
    write(tmp_path / "a.parquet", [row] * 200, row_group_size=20, compression="none")
    table = pyarrow.total_allocated_bytes()
    most = 0
    for _ in READERS["parquet"](tmp_path / "a.parquet"):
        most = max(most, pyarrow.total_allocated_bytes() - table)
    assert most < 100 * len(noise)  # of 200


# ── conversations in Parquet ─────────────────────────────────────────────────────────────────────


def test_conversations_in_parquet(tmp_path, red_png):
    image = {"bytes": red_png, "path": None}
    turns = [{"user": "What?", "assistant": "An owl.", "source": "owls"}]
    write(tmp_path / "cauldron" / "a.parquet", [{"images": [image], "texts": turns}])
    [document] = read("cauldron", tmp_path / "cauldron")
    assert document.images[0].source == red_png and document.text == "What?An owl."
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "An owl."}]
    write(tmp_path / "llava" / "a.parquet", [{"id": "1", "image": image, "conversations": talk}])
    [document] = read("sharegpt", tmp_path / "llava")
    assert document.images[0].source == red_png
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "text": None}, {"type": "text", "text": "?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "An owl."}]},
    ]
    write(tmp_path / "chat" / "a.parquet", [{"images": [image], "messages": messages}])
    [document] = read("chat", tmp_path / "chat")
    assert document.images[0].source == red_png and document.text == "?An owl."


@pytest.mark.parametrize("name", ["none", "pipe"])
@pytest.mark.parametrize("reader", ["csv", "parquet", "webdataset", "text", "markdown", "pdf"])
def test_a_path_without_anything_is_refused(tmp_path, reader, name):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=rf"{name} .*; .* expected there\."):
        READERS[reader](tmp_path / name)


def test_rejections_are_rejections(tmp_path):
    (tmp_path / "a.csv").write_text("")
    [item] = read("csv", tmp_path / "a.csv")
    assert isinstance(item, Rejection) and item.kind == "bad-table"
