"""Folders of images with captions beside them or in a list."""

import codecs
import csv
import importlib.util
import io
import json
import os
import unicodedata
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from pardalis.documents import Document, Image, Omission, Rejection, Text, open_image, read_folder
from pardalis.documents.images import can_read_heic
from pardalis.errors import DataError


def put(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_captions_beside_images_in_sorted_order(tmp_path):
    put(
        tmp_path,
        {
            "b/cat.PNG": b"x",
            "b/cat.txt": " a cat\n",
            "owl.jpg": b"x",
            "owl.txt": "an owl",
            "alone.webp": b"x",
            "notes.pdf": b"x",
        },
    )
    assert list(read_folder(tmp_path)) == [
        Document((Image(tmp_path / "alone.webp"),), "alone.webp"),
        Document((Text("an owl"), Image(tmp_path / "owl.jpg", "an owl")), "owl.jpg"),
        Document((Text("a cat"), Image(tmp_path / "b/cat.PNG", "a cat")), "b/cat.PNG"),
    ]


def test_an_image_is_kept_without_a_caption_that_is_bad(tmp_path):
    files = {"a.png": b"x", "a.txt": "  \n", "b.png": b"x", "b.txt": b"\0\xff\0\1", "c.txt": "no"}
    put(tmp_path, files)
    items = list(read_folder(tmp_path))
    assert [item.name for item in items if isinstance(item, Document)] == ["a.png", "b.png"]
    rejections = [item for item in items if isinstance(item, Rejection)]
    assert [(r.where, r.kind) for r in rejections] == [
        (str(tmp_path / "a.txt"), "bad-caption"),
        (str(tmp_path / "b.txt"), "bad-caption"),
        (str(tmp_path / "c.txt"), "missing-image"),
    ]
    assert "is empty" in rejections[0].reason and "it is no text" in rejections[1].reason


LINES = [
    {"file_name": "in/owl.png", "text": " an owl ", "width": 64, "license": "CC0"},
    "",
    "{",
    {"file_name": "in/owl.png"},
    {"file_name": "in/owl.png", "text": "\ud800"},
    {"file_name": "no.png", "text": "nothing"},
]


def jsonl(*records) -> str:
    return "\n".join(each if isinstance(each, str) else json.dumps(each) for each in records)


def test_all_captions_of_a_list_are_read(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    (tmp_path / "a.json").write_text('{"captions": ["one", "two", "one"]}')
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png", "text": ["three", "four"]}')
    rows = pyarrow.table({"file_name": ["c.png"], "text": ["five"]})
    parquet.write_table(rows, tmp_path / "metadata.parquet")
    found = {item.name: item.text for item in read_folder(tmp_path)}
    assert found == {
        "a.png": "one", "a.png#2": "two", "b.png": "three", "b.png#2": "four", "c.png": "five"
    }  # fmt: skip


def test_lists_of_other_names_are_told(tmp_path):
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "a.txt").write_text("one")
    for name in ("a.json", "coco.json", "rows.csv", "more.jsonl", "x.parquet"):
        (tmp_path / name).write_text("{}")
    omissions = [item for item in read_folder(tmp_path) if isinstance(item, Omission)]
    names = {Path(item.where).name for item in omissions}
    assert {item.kind for item in omissions} == {"unread-list"}
    assert names == {"coco.json", "rows.csv", "more.jsonl", "x.parquet"}


def coco(annotations_first=False):
    images = [{"id": 7, "file_name": "000007.jpg", "license": 3}, {"id": 9, "file_name": "9.jpg"}]
    annotations = [
        {"image_id": 7, "id": 1, "caption": "an owl\n"},
        {"image_id": 7, "id": 2, "caption": "a white bird"},
        {"image_id": 7, "id": 3, "caption": "an owl"},
        {"image_id": 9, "id": 4, "caption": "a lost one"},
        {"image_id": 8, "id": 5, "caption": "of no image"},
        "nonsense",
    ]
    lists = [("images", images), ("licenses", [{"id": 3}]), ("annotations", annotations)]
    return json.dumps({"info": {"year": 2017}, **dict(lists[::-1] if annotations_first else lists)})


@pytest.mark.parametrize("folder", ["annotations", "train2017", "."])
@pytest.mark.parametrize("annotations_first", [False, True])
def test_captions_of_coco(tmp_path, folder, annotations_first):
    """Its list lies beside the folder of the images, or among them."""
    path = tmp_path / folder / "captions_train2017.json"
    put(tmp_path, {
        "train2017/000007.jpg": b"7", "train2017/bare.jpg": b"b", "val2017/000007.jpg": b"v",
        f"{folder}/captions_train2017.json": coco(annotations_first),
    })  # fmt: skip
    items = list(read_folder(tmp_path))
    texts = {item.name: item.text for item in items if isinstance(item, Document)}
    assert texts == {
        "train2017/000007.jpg": "an owl", "train2017/000007.jpg#2": "a white bird",
        "train2017/bare.jpg": "", "val2017/000007.jpg": "",
    }  # fmt: skip
    assert [(r.where, r.kind) for r in items if isinstance(r, Rejection)] == [
        (f"{path}:4", "missing-image"), (f"{path}:5", "bad-record"), (f"{path}:6", "bad-record"),
    ]  # fmt: skip


@pytest.mark.parametrize("text", [
    '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "capt',
    '{"images": [], "annotations": 3}', '{"images": [' + "[" * 5000 + "]" * 5000 + "]}",
    '{"info": {}} x', '{"images" []}',
])  # fmt: skip
def test_a_damaged_list_of_coco_is_rejected(tmp_path, text):
    put(tmp_path, {"a.png": b"a", "captions_val.json": text})
    items = list(read_folder(tmp_path))
    assert [item.name for item in items if isinstance(item, Document)] == ["a.png"]
    (other,) = (item for item in items if not isinstance(item, Document))
    assert other.kind in ("bad-json", "unread-list") and "captions_val.json" in other.where


def test_a_caption_of_a_name_like_cocos_is_that_of_its_image(tmp_path):
    put(tmp_path, {"captions_1.png": b"a", "captions_1.json": '{"caption": "one"}'})
    assert [(item.name, item.text) for item in read_folder(tmp_path)] == [("captions_1.png", "one")]


@pytest.mark.parametrize(("name", "text"), [
    ("captions.txt", 'image,caption\nowl.jpg,"An owl, white"\nowl.jpg,a bird\n,\nno.jpg,none\n'),
    ("text/Flickr8k.token.txt",
     "owl.jpg#0\tAn owl, white\nowl.jpg#1\ta bird\nno tab\nno.jpg#0\tnone\n"),
    ("results_20130124.token",
     "owl.jpg#0\tAn owl, white\r\nowl.jpg#1\ta bird\r\n?\r\nno.jpg#0\tnone"),
])  # fmt: skip
@pytest.mark.parametrize("folder", ["Images", "."])
def test_captions_of_flickr(tmp_path, name, text, folder):
    put(tmp_path, {f"{folder}/owl.jpg": b"x", f"{folder}/bare.jpg": b"y", name: text})
    items = list(read_folder(tmp_path))
    start = "" if folder == "." else f"{folder}/"
    texts = {os.path.normpath(d.name): d.text for d in items if isinstance(d, Document)}
    assert texts == {
        f"{start}owl.jpg": "An owl, white", f"{start}owl.jpg#2": "a bird", f"{start}bare.jpg": "",
    }  # fmt: skip
    kinds = [r.kind for r in items if isinstance(r, Rejection)]
    assert kinds == ["bad-record", "missing-image"]


def test_a_text_of_a_lists_name_is_a_list_by_its_first_line(tmp_path):
    put(tmp_path, {"captions.png": b"a", "captions.txt": "An owl, white\nas snow"})
    assert [item.text for item in read_folder(tmp_path)] == ["An owl, white\nas snow"]


def test_a_list_names_no_image_outside(tmp_path):
    put(
        tmp_path,
        {
            "in/a.png": b"a",
            "secret.png": b"s",
            "in/captions.txt": "image,caption\n../secret.png,x\n",
        },
    )
    items = list(read_folder(tmp_path / "in"))
    assert [item.kind for item in items if isinstance(item, Rejection)] == ["outside-image"]
    assert [item.name for item in items if isinstance(item, Document)] == ["a.png"]


@pytest.mark.parametrize("list_name", ["captions.jsonl", "metadata.jsonl"])
def test_a_list_adds_to_what_stands_beside_the_images(tmp_path, list_name):
    files = {
        f"set/{list_name}": jsonl(*LINES), "set/in/owl.png": b"x", "set/unlisted.png": b"y",
        "set/in/cat.png": b"z", "set/in/cat.txt": "a cat", "set/in/owl.txt": "a white owl",
    }  # fmt: skip
    put(tmp_path, files)
    items = list(read_folder(tmp_path))
    image = Image(tmp_path / "set/in/owl.png", "an owl")
    assert items[0] == Document((Text("an owl"), image), "set/in/owl.png", "CC0")
    texts = {item.name: item.text for item in items if isinstance(item, Document)}
    assert texts == {
        "set/in/owl.png": "an owl", "set/in/owl.png#2": "a white owl", "set/in/cat.png": "a cat",
        "set/unlisted.png": "",
    }  # fmt: skip
    where = tmp_path / "set" / list_name
    assert [(r.where, r.kind) for r in items if isinstance(r, Rejection)] == [
        (f"{where}:3", "bad-json"),
        (f"{where}:4", "bad-record"),
        (f"{where}:5", "bad-record"),
        (f"{where}:6", "missing-image"),
    ]


def test_nothing_is_read_twice(tmp_path):
    """Two lists, a file beside the image, and links say the same."""
    put(tmp_path, {
        "owl.png": b"x", "owl.txt": "an owl", "sub/cat.png": b"y",
        "captions.jsonl": jsonl({"file_name": "./owl.png", "text": " an owl "}),
        "metadata.csv": "file_name,caption\nowl.png,an owl\nsub/cat.png,a cat\nsub/cat.png,a cat\n",
        "sub/metadata.jsonl": jsonl({"file_name": "cat.png", "text": "a cat"}),
    })  # fmt: skip
    os.symlink("owl.png", tmp_path / "same.png")
    os.symlink("sub", tmp_path / "again")
    found = [(item.name, item.text) for item in read_folder(tmp_path)]
    assert sorted(found) == [("owl.png", "an owl"), ("sub/cat.png", "a cat")] or sorted(found) == [
        ("again/cat.png", "a cat"), ("owl.png", "an owl"),
    ]  # fmt: skip


def test_several_captions_of_an_image_are_documents(tmp_path):
    lines = [{"file_name": "owl.png", "text": each} for each in ("an owl", "a bird", "an owl")]
    put(tmp_path, {"owl.png": b"x", "captions.jsonl": jsonl(*lines)})
    found = [(item.name, item.text) for item in read_folder(tmp_path)]
    assert found == [("owl.png", "an owl"), ("owl.png#2", "a bird")]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.tsv"])
def test_a_table_of_captions(tmp_path, name):
    rows = [
        ("file_name", "label", "text"),
        ("a.png", "1", 'an "owl",\nwhite'),
        ("b\\c.png", "2", "a cat"),
    ]
    file = io.StringIO()
    csv.writer(file, delimiter="\t" if name.endswith("tsv") else ",").writerows(rows)
    put(
        tmp_path, {name: codecs.BOM_UTF8 + file.getvalue().encode(), "a.png": b"x", "b/c.png": b"y"}
    )
    found = [(item.name, item.text) for item in read_folder(tmp_path)]
    assert found == [("a.png", 'an "owl",\nwhite'), ("b\\c.png", "a cat")]


def test_several_images_of_a_line(tmp_path):
    put(tmp_path, {
        "metadata.jsonl": jsonl({"file_names": ["a.png", "b.png"], "text": "two owls"}),
        "a.png": b"x", "b.png": b"y",
    })  # fmt: skip
    [document] = read_folder(tmp_path)
    assert [image.source.name for image in document.images] == ["a.png", "b.png"]


@pytest.mark.parametrize("beside", ["é.txt", "é.caption", "é.PNG.txt", "É.TXT", "é.json"])
@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC")])
def test_names_match_as_they_look(tmp_path, beside, forms):
    caption = '{"caption": "an owl"}' if beside.endswith("json") else "an owl"
    image, text = unicodedata.normalize(forms[0], "é.PNG"), unicodedata.normalize(forms[1], beside)
    put(tmp_path, {image: b"x", text: caption})
    [document] = read_folder(tmp_path)
    assert (document.name, document.text) == (image, "an owl")


def test_a_composed_list_names_decomposed_files(tmp_path):
    name = "Bücher/Ä é.png"
    put(tmp_path, {
        unicodedata.normalize("NFD", name): b"x",
        "captions.jsonl": jsonl({"file_name": unicodedata.normalize("NFC", name), "text": "Uhu"}),
    })  # fmt: skip
    [document] = read_folder(tmp_path)
    assert document.text == "Uhu" and document.images[0].source.is_file()


def test_what_tools_leave_behind_is_no_content(tmp_path):
    clutter = (
        ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/._owl.png", "._owl.png", "._owl.txt",
        ".ipynb_checkpoints/owl-checkpoint.txt", "owl.txt~", "owl.png~", ".owl.txt.swp",
        "@eaDir/owl.png/SYNOPHOTO_THUMB_M.jpg", ".thumbnails/owl.png", ".git/objects/a.png",
        "$RECYCLE.BIN/a.png", "~$owl.txt", "owl.jpg.part", ".cache/b.png", "#owl.txt#",
    )  # fmt: skip
    put(tmp_path, {"owl.png": b"x", "owl.txt": "an owl", **dict.fromkeys(clutter, b"x")})
    assert [item.name for item in read_folder(tmp_path)] == ["owl.png"]


def test_thumbnails_of_images_are_counted(tmp_path):
    put(tmp_path, {"owl.png": b"x", "thumbs/owl.jpg": b"x", "thumbs/other.jpg": b"x"})
    owl, other, thumbnail = read_folder(tmp_path)
    assert (owl.name, other.name) == ("owl.png", "thumbs/other.jpg")
    assert (thumbnail.kind, Path(thumbnail.where).name) == ("thumbnail", "owl.jpg")
    assert isinstance(thumbnail, Omission)  # the image itself is read


@pytest.mark.parametrize(
    ("name", "called"),
    [("a.CR2", "a raw photograph"), ("a.psd", "a Photoshop document"), ("a.heic", "an HEIC image"),
     ("a.svg", "an SVG drawing"), ("a.mp4", "a film")],
)  # fmt: skip
def test_formats_that_are_not_read_are_named_with_their_captions(
    tmp_path, monkeypatch, name, called
):
    monkeypatch.setattr("pardalis.documents.readers.folder.can_read_heic", lambda: False)
    put(tmp_path, {name: b"x", "a.txt": "an owl"})
    [item] = read_folder(tmp_path)
    assert item.kind == "unread-format" and called in item.reason
    assert item.reason.endswith("Its caption a.txt is left out with it.")


def test_what_is_installed_is_looked_for_once(tmp_path, monkeypatch):
    looked: list[str] = []
    monkeypatch.setattr(importlib.util, "find_spec", looked.append)
    can_read_heic.cache_clear()
    put(tmp_path, {f"{number}.png": b"x" for number in range(9)})
    assert len(list(read_folder(tmp_path))) == 9
    can_read_heic.cache_clear()
    assert looked == ["pi_heif"]


def test_heic_is_read_with_its_extra(tmp_path, monkeypatch):
    put(tmp_path, {"a.HEIC": b"x", "a.txt": "an owl"})
    monkeypatch.setattr("pardalis.documents.readers.folder.can_read_heic", lambda: True)
    [document] = read_folder(tmp_path)
    assert (document.name, document.text) == ("a.HEIC", "an owl")
    monkeypatch.setattr("pardalis.documents.readers.folder.can_read_heic", lambda: False)
    [item] = read_folder(tmp_path)
    assert "is read with the extra heic (pip install pardalis[heic])" in item.reason


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def test_pointers_of_git_lfs_are_called_so(tmp_path):
    put(tmp_path, {"owl.png": POINTER, "owl.txt": "an owl", "fox.png": b"x", "fox.txt": POINTER})
    put(tmp_path, {"captions.jsonl": POINTER})
    of_list, of_caption, fox, owl = read_folder(tmp_path)
    assert (fox.text, owl.text) == ("", "an owl")
    assert (of_list.kind, of_caption.kind) == ("pointer", "bad-caption")
    for each in (of_list, of_caption):
        assert "a pointer of Git LFS and not the file itself" in each.reason
    with pytest.raises(DataError, match="a pointer of Git LFS and not the image itself"):
        open_image(owl.images[0].source)


CAPTIONS = {
    "utf-8-sig": "Ein schöner Uhu", "utf-16": "Ein schöner Uhu — bei Nacht", "utf-32": "猫",
    "utf-16-le": "An owl on a branch", "cp1252": "Une chouette perchée sur un chêne, à l’aube",
    "gb18030": "一只猫头鹰站在树枝上", "shift_jis": "夜の森にいるフクロウの写真です。",
    "euc_kr": "나뭇가지에 앉은 올빼미", "big5": "一隻貓頭鷹站在樹枝上",
    "cp1251": "Сова сидит на ветке",
    "cp1250": "Příliš žluťoučký kůň úpěl ďábelské ódy; čtyři černé sovy spí",
    "iso2022_jp": "夜の森にいるフクロウ",
}  # fmt: skip


@pytest.mark.parametrize("encoding", CAPTIONS)
@pytest.mark.parametrize("where", ["beside", "jsonl", "csv", "json"])
def test_captions_decode_as_their_authors_saw_them(tmp_path, encoding, where):
    caption = CAPTIONS[encoding]
    name, text = {
        "beside": ("owl.txt", f"{caption}\r\n"),
        "jsonl": ("captions.jsonl", f'{{"file_name": "owl.png", "text": "{caption}"}}\r\n'),
        "csv": ("metadata.csv", f'file_name,text\r\nowl.png,"{caption}"\r\n'),
        "json": ("owl.json", f'{{"caption": "{caption}"}}'),
    }[where]
    put(tmp_path, {"owl.png": b"x", name: text.encode(encoding)})
    [document] = read_folder(tmp_path)
    assert document.text == caption


def test_short_captions_of_a_folder_are_understood_together(tmp_path):
    words = ("红", "一只猫头鹰站在树枝上", "红色的圆形", "夜晚的森林里有一只猫头鹰")
    for number, word in enumerate(words):
        put(tmp_path, {f"{number}.png": b"x", f"{number}.txt": word.encode("gb18030")})
    assert [item.text for item in read_folder(tmp_path)] == list(words)


def test_a_damaged_byte_is_counted_and_the_caption_kept(tmp_path):
    put(tmp_path, {"a.png": b"x", "a.txt": "Ünïcödé — ein Uhu".encode() + b" \xff!"})
    damaged, document = read_folder(tmp_path)
    assert isinstance(damaged, Omission) and damaged.count == 1
    assert damaged.kind == "damaged-text" and damaged.reason.startswith("1 bytes of the text")
    assert document.text == "Ünïcödé — ein Uhu \ufffd!"


def test_a_list_in_several_encodings_loses_no_line(tmp_path):
    lines = [
        f'{{"file_name": "{n}.png", "text": "{t}"}}\n'
        for n, t in ((1, "Ein Uhu — schön"), (2, "größer"))
    ]
    content = lines[0].encode() + lines[1].encode("cp1252")
    put(tmp_path, {"captions.jsonl": content, "1.png": b"x", "2.png": b"y"})
    assert [item.text for item in read_folder(tmp_path)] == ["Ein Uhu — schön", "größer"]


def test_images_are_not_decoded_while_reading(tmp_path):
    put(tmp_path, {"broken.png": b"no image at all"})
    (document,) = read_folder(tmp_path)
    assert document.images[0].source == tmp_path / "broken.png"


def test_a_root_that_is_no_folder(tmp_path):
    with pytest.raises(DataError, match="no does not exist; a folder of images was expected"):
        read_folder(tmp_path / "no")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file is a file; a folder of images"):
        read_folder(tmp_path / "file")
