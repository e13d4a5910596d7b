"""WebDataset archives: what their members mean, and the same from the library webdataset."""

import io
import json
import tarfile

import pytest

from pardalis.documents import READERS, Document, Image, Rejection, Text


def archive(path, members, mode="w"):
    with tarfile.open(path, mode) as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def read(path):
    return list(READERS["webdataset"](path))


def members(red_png):
    about = json.dumps({"caption": "from json", "license": "CC0"}).encode()
    return [
        ("owls/001.jpg", red_png), ("owls/001.txt", " an owl\r\n".encode("utf-16")),
        ("owls/001.json", about), ("owls/001.cls", b"7"),
        ("owls/v1.2.left.png", red_png), ("owls/v1.2.right.png", red_png),
        ("owls/003.JPG", red_png), ("owls/003.json", about),
        ("__key__/meta.json", b"{}"), ("__MACOSX/x/004.png", red_png),
        ("./004.txt", b"text alone"), ("._004.txt", b"\0\1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.tar", "w"),
        ("a.tar.gz", "w:gz"),
        ("a.tgz", "w:gz"),
        ("a.tar.xz", "w:xz"),
        ("a.tar.bz2", "w:bz2"),
        ("a.TAR", "w"),
    ],
)
def test_members_of_a_key_are_a_document(tmp_path, red_png, name, mode):
    archive(tmp_path / name, members(red_png), mode)
    assert read(tmp_path) == [
        Document((Text("an owl"), Image(red_png, "an owl")), "a/owls/001", "CC0"),
        Document((Image(red_png), Image(red_png)), "a/owls/v1"),
        Document((Text("from json"), Image(red_png, "from json")), "a/owls/003", "CC0"),
        Document((Text("text alone"),), "a/004"),
    ]


def test_what_is_not_read_is_called_by_its_name(tmp_path):
    archive(tmp_path / "a.tar", [("a.mp4", b"x"), ("a.psd", b"x")])
    (tmp_path / "b.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    film, drawing, packed = read(tmp_path)
    assert "It is a film" in film.reason and "a Photoshop document" in drawing.reason
    assert packed.kind == "unread-format" and "compressed as .zst" in packed.reason


def test_hostile_members_are_counted_and_the_others_read(tmp_path, red_png):
    path = archive(tmp_path / "a.tar", [("a.png", red_png)])
    with tarfile.open(path, "a") as file:
        for name, kind, target in (
            ("b.png", tarfile.SYMTYPE, "/etc/passwd"), ("c.png", tarfile.LNKTYPE, "a.png"),
            ("d.png", tarfile.FIFOTYPE, ""), ("e.png", tarfile.CHRTYPE, ""),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            file.addfile(info)
        for name in ("../f.png", "/etc/g.png", "h/../../i.png"):
            info = tarfile.TarInfo(name)
            info.size = 1
            file.addfile(info, io.BytesIO(b"x"))
    items = read(path)
    assert [each.name for each in items if isinstance(each, Document)] == ["a/a"]
    kinds = [each.kind for each in items if isinstance(each, Rejection)]
    assert kinds == ["outside-link"] * 2 + ["no-file"] * 2 + ["outside-path"] * 3


def test_what_is_cut_off_is_told_and_what_came_before_is_read(tmp_path, red_png):
    path = archive(tmp_path / "a.tar", [(f"{n}.png", red_png) for n in range(3)])
    content = path.read_bytes()
    for size in range(512, 6 * 512 + 1, 256):
        path.write_bytes(content[:size])
        items = read(path)
        names = [each.name for each in items if isinstance(each, Document)]
        assert names == [f"a/{n}" for n in range(len(names))]
        assert [each.kind for each in items if isinstance(each, Rejection)] == ["damaged-archive"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_library_webdataset_reads_the_same(tmp_path, red_png):
    webdataset = pytest.importorskip("webdataset", reason="compares with the library webdataset")
    path = archive(tmp_path / "a.tar", members(red_png)[:8])
    theirs = {
        sample["__key__"]: {key: value for key, value in sample.items() if key[0] != "_"}
        for sample in webdataset.WebDataset(str(path), shardshuffle=False)
    }
    for document in read(path):
        sample = theirs[document.name.removeprefix("a/")]
        images = [v for key, v in sample.items() if key.split(".")[-1] in ("jpg", "png")]
        assert [image.source for image in document.images] == images
