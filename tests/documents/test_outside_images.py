"""Documents that somebody else made must not bring files from outside their folder."""

import json
import os

import PIL.Image
import pytest

from pardalis.documents import READERS, Document, Rejection


@pytest.fixture
def places(tmp_path):
    """A folder of documents, and an image beside that folder which is nobody's business."""
    (tmp_path / "theirs" / "pages").mkdir(parents=True)
    PIL.Image.new("RGB", (64, 64)).save(tmp_path / "private.png")
    PIL.Image.new("RGB", (64, 64)).save(tmp_path / "theirs" / "owl.png")
    return tmp_path, tmp_path / "theirs"


def write(reader: str, folder, image: str):
    """Write a document that names an image; return the path of its source."""
    if reader == "html":
        page = f'<p>An owl</p><img src="{image}">'
        (folder / "pages" / "page.html").write_text(page)
        return folder
    if reader == "folder":
        record = {"file_name": image, "text": "An owl"}
        (folder / "pages" / "captions.jsonl").write_text(json.dumps(record))
        return folder
    raise AssertionError(reader)


@pytest.mark.parametrize("reader", ["html", "folder"])
def test_an_image_outside_is_not_read(reader, places):
    root, theirs = places
    up = "../../private.png"
    names = [up, f"./{up}", f"../pages/{up}"]
    if reader != "html":  # in which a leading slash means the folder of the source
        names.append(str(root / "private.png"))
    for name in names:
        items = list(READERS[reader](write(reader, theirs, name)))
        kinds = [item.kind for item in items if isinstance(item, Rejection)]
        assert kinds in (["outside-image"], ["missing-image"]), name
        images = [image for item in items if isinstance(item, Document) for image in item.images]
        assert all(image.source == theirs / "owl.png" for image in images)
    assert "outside" in next(item.reason for item in items if isinstance(item, Rejection))


@pytest.mark.parametrize("reader", ["html", "folder"])
def test_an_image_above_the_page_is_read_and_so_is_a_link_to_it(reader, places):
    _, theirs = places
    os.symlink("owl.png", theirs / "linked.png")
    for name in ("../owl.png", "../linked.png", "../pages/../owl.png"):
        items = list(READERS[reader](write(reader, theirs, name)))
        assert any(item.images for item in items if isinstance(item, Document)), name


@pytest.mark.parametrize("reader", ["html", "folder"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_a_link_out_of_the_source_is_not_followed(reader, is_folder, places):
    """Archives and repositories of others bring links."""
    root, theirs = places
    os.symlink(root if is_folder else root / "private.png", theirs / "pages" / "linked")
    name = "linked/private.png" if is_folder else "linked"
    items = list(READERS[reader](write(reader, theirs, name)))
    assert "outside-image" in [item.kind for item in items if isinstance(item, Rejection)]
    images = [image for item in items if isinstance(item, Document) for image in item.images]
    assert all(image.source == theirs / "owl.png" for image in images)


def test_the_links_of_a_cache_of_hugging_face_are_read(tmp_path):
    """A snapshot is a folder of links to the blobs beside all snapshots."""
    snapshot, blobs = tmp_path / "snapshots" / "abc" / "data", tmp_path / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    PIL.Image.new("RGB", (64, 64)).save(blobs / "1234", "PNG")
    os.symlink("../../../blobs/1234", snapshot / "owl.png")
    [document] = READERS["folder"](tmp_path / "snapshots" / "abc")
    assert document.name == "data/owl.png"
