"""Folders of images with captions beside them or in a list."""

import json

import pytest

from pardalis.documents import Document, Image, Rejection, Text, read_folder
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


def test_bad_captions_are_rejected(tmp_path):
    put(
        tmp_path,
        {
            "a.png": b"x",
            "a.txt": "  \n",
            "b.png": b"x",
            "b.txt": b"\xff\xfe\xff",
            "c.txt": "no image",
            "d.png": b"x",
        },
    )
    *rejections, document, orphan = read_folder(tmp_path)
    assert [(r.where, r.kind) for r in (*rejections, orphan)] == [
        (str(tmp_path / "a.txt"), "bad-caption"),
        (str(tmp_path / "b.txt"), "bad-caption"),
        (str(tmp_path / "c.txt"), "missing-image"),
    ]
    assert "is empty" in rejections[0].reason
    assert "it is not UTF-8: invalid start byte at byte 0; save it" in rejections[1].reason
    assert document.name == "d.png"


@pytest.mark.parametrize("list_name", ["captions.jsonl", "metadata.jsonl"])
def test_a_list_describes_its_folder_wholly(tmp_path, list_name):
    lines = [
        json.dumps({"file_name": "in/owl.png", "text": " an owl ", "width": 64}),
        "",
        "{",
        json.dumps({"file_name": "in/owl.png"}),
        json.dumps({"file_name": "in/owl.png", "text": "\ud800"}),
        json.dumps({"file_name": "no.png", "text": "nothing"}),
    ]
    put(
        tmp_path,
        {f"set/{list_name}": "\n".join(lines), "set/in/owl.png": b"x", "set/unlisted.png": b"x"},
    )
    document, *rejections = read_folder(tmp_path)
    image = Image(tmp_path / "set/in/owl.png", "an owl")
    assert document == Document((Text("an owl"), image), "set/in/owl.png")
    where = tmp_path / "set" / list_name
    assert all(isinstance(rejection, Rejection) for rejection in rejections)
    assert [(r.where, r.kind) for r in rejections] == [
        (f"{where}:3", "bad-json"),
        (f"{where}:4", "bad-record"),
        (f"{where}:5", "bad-record"),
        (f"{where}:6", "missing-image"),
    ]


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
