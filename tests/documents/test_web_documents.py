"""Web documents as public datasets have them: OBELICS and MMC4."""

import gzip
import io
import json
import zipfile

import pyarrow
import pytest
from pyarrow import parquet

from pardalis.documents import READERS, Document, Image, Rejection, Text, reader_of


def read(reader, path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return list(READERS[reader](path))


OBELICS = {
    "images": [None, "red.png", None, "https://example.org/owl.jpg", None],
    "texts": ["An owl sits here.", None, "It is white.", None, "It flies."],
    "metadata": json.dumps([None, {"alt_text": "an owl", "src": "..."}, None, {}, None]),
    "general_metadata": json.dumps({"url": "https://example.org"}),
}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".json", ".jsonl.gz"])
def test_obelics(tmp_path, red_file, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist([OBELICS]), path)
    elif suffix == ".json":
        path.write_text(json.dumps([OBELICS]))
    else:
        content = json.dumps(OBELICS).encode()
        path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    rejection, document = READERS["obelics"](path)
    assert (rejection.kind, rejection.where) == ("remote-image", f"{path}:1")
    assert "images[3] is not on this machine: 'https://example.org/owl.jpg'" in rejection.reason
    assert document.segments == (
        Text("An owl sits here."),
        Image(red_file, "an owl"),
        Text("It is white.\n\nIt flies."),
    )


def test_obelics_with_the_bytes_of_images(tmp_path, red_png):
    image = {"bytes": red_png, "path": None}
    rows = [{"images": [image, None], "texts": [None, "An owl."]}] * 2
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    first, second = READERS["obelics"](tmp_path)
    assert first.segments == second.segments == (Image(red_png), Text("An owl."))
    assert (first.name, second.name) == ("a:1", "a:2")


MMC4 = {
    "url": "https://example.org",
    "text_list": ["An owl sits here.", "It is white.", "It flies."],
    "image_info": [
        {"image_name": "red.png", "raw_url": "https://a.b/c", "matched_text_index": 1},
        {"image_name": "gone.png", "raw_url": "https://a.b/d", "matched_text_index": 0},
        {"image_name": "red.png", "raw_url": "https://a.b/c", "matched_text_index": 1},
    ],
    "similarity_matrix": [[0.1, 0.2, 0.3]],
}


@pytest.mark.parametrize("folder", [".", "images"])
def test_mmc4(tmp_path, red_file, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    image = red_file.rename(tmp_path / folder / "red.png")
    rejection, document = read("mmc4", tmp_path / "a.jsonl", MMC4)
    assert rejection.kind == "remote-image"
    assert "no 'gone.png' beside it ('https://a.b/d')" in rejection.reason
    assert document.segments == (
        Text("An owl sits here."),
        Image(image),
        Image(image),
        Text("It is white. It flies."),
    )


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


MMC4_LINE = json.dumps({"text_list": ["An owl — sits.", "It is red."], "image_info": []}).encode()


def test_shards_of_mmc4_as_they_are_published(tmp_path):
    for number in range(2):
        shard = zipped(**{f"shard_{number}_v2.jsonl": MMC4_LINE + b"\n" + MMC4_LINE + b"\n"})
        (tmp_path / f"shard_{number}_v2.jsonl.zip").write_bytes(shard)
    documents = list(READERS["mmc4"](tmp_path))
    assert [each.text for each in documents] == ["An owl — sits. It is red."] * 4
    assert len({each.name for each in documents}) == 4
    assert reader_of(tmp_path) == "mmc4"


WITH_MAC = zipped(**{"a.jsonl": MMC4_LINE, "__MACOSX__._a.jsonl": b"x"})
DAMAGED = bytearray(zipped(**{"a.jsonl": MMC4_LINE * 99}))
DAMAGED[60] ^= 255


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (zipped(**{"a.jsonl": MMC4_LINE, "b.jsonl": MMC4_LINE}), "holds 2 files"),
        (zipped(), "holds 0 files"),
        (zipped(**{"../../a.jsonl": (b" " * 4095 + b"\n") * 2000}), "more than 200 times its size"),
        (WITH_MAC[:-30], "truncated or damaged"),
        (bytes(DAMAGED), "truncated or damaged"),
        (b"no zip", "truncated or damaged"),
        (WITH_MAC.replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"), "encrypted"),
    ],
)
def test_a_zip_archive_that_cannot_be_read_is_told(tmp_path, monkeypatch, content, reason):
    monkeypatch.setattr("pardalis.documents.readers._packed._MOST_UNPACKED", 1 << 16)
    (tmp_path / "a.jsonl.zip").write_bytes(content)
    (tmp_path / "b.jsonl.zip").write_bytes(WITH_MAC)
    (tmp_path / "c.jsonl.zip").symlink_to("/etc/passwd")
    outside, rejection, document = READERS["mmc4"](tmp_path)
    assert document.text == "An owl — sits. It is red."
    assert rejection.kind == "unreadable-file" and reason in rejection.reason
    assert outside.kind == "outside-link"


@pytest.mark.parametrize("reader", ["obelics", "parquet", "webdataset", "text", "csv", "pdf"])
def test_pointers_of_git_lfs_are_called_so(tmp_path, reader):
    suffix = {"obelics": "jsonl", "webdataset": "tar", "text": "txt"}.get(reader, reader)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / f"a.{suffix}").write_text(pointer)
    [item] = READERS[reader](tmp_path)
    assert item.kind == "pointer"
    assert item.reason == (
        "It is a pointer of Git LFS and not the file itself; get the file with `git lfs pull`."
    )


def test_mmc4_without_its_images_is_text(tmp_path):
    *rejections, document = read("mmc4", tmp_path / "a.jsonl", MMC4)
    assert [each.kind for each in rejections] == ["remote-image"] * 3
    assert document.segments == (Text(" ".join(MMC4["text_list"])),)


# ── the wrong reader ─────────────────────────────────────────────────────────────────────────────

TURNS = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "An owl."}]
MESSAGES = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "An owl."}]
LAYOUTS = {
    "obelics": OBELICS,
    "mmc4": MMC4,
    "sharegpt": {"conversations": TURNS},
    "chat": {"messages": MESSAGES},
    "cauldron": {"images": [], "texts": [{"user": "?", "assistant": "An owl."}]},
    "jsonl": {"segments": [{"text": "An owl."}]},
    "pairs": {"prompt": "?", "chosen": "An owl.", "rejected": "A cat."},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reader", LAYOUTS)
def test_a_record_of_another_layout_is_told_its_reader(tmp_path, layout, reader):
    items = read(reader, tmp_path / "a.jsonl", LAYOUTS[layout])
    if reader == layout:
        assert any(isinstance(item, Document) for item in items)
        return
    assert items and all(isinstance(item, Rejection) for item in items)
    assert "looks like" in items[0].reason
    assert items[0].reason.endswith(f"; reader = {layout!r} reads it.")


@pytest.mark.parametrize("layout", [each for each in LAYOUTS if each not in ("jsonl", "pairs")])
def test_a_parquet_file_of_another_layout_is_told_its_reader(tmp_path, layout):
    parquet.write_table(pyarrow.Table.from_pylist([LAYOUTS[layout]]), tmp_path / "a.parquet")
    [item] = READERS["parquet"](tmp_path)
    assert item.reason.endswith(f"; reader = {layout!r} reads it.")
