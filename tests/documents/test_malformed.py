# ruff: noqa: E501 - a case is a line
"""Malformed sources of every format: each is counted with a true sentence, and reading goes on.

Every case is a source in which one item is malformed and one is good. Nothing outside the source is
read, and time and memory are bounded.
"""

import gzip
import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import hostile
import PIL.Image
import pyarrow
import pytest
from pdf_files import pdf_file, written
from pyarrow import parquet

from pardalis import files
from pardalis.documents import READERS, Document, Rejection

SECRET = "the secret of somebody else"


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (16, 12), colour).save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()
IMAGE = {"bytes": PNG, "path": None}


@pytest.fixture(autouse=True)
def bounded():
    with hostile.limits(seconds=20):
        yield


@pytest.fixture
def source(tmp_path: Path, monkeypatch) -> Path:
    """A source's folder with an image, and a private one beside it."""
    monkeypatch.setattr("pardalis.documents.readers._tables._LONGEST_FIELD", 1 << 16)
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "owl.png").write_bytes(PNG)
    (tmp_path / "private.png").write_bytes(png("blue"))
    (tmp_path / "private.txt").write_text(SECRET)
    return folder


def check(reader: str, path: Path, kinds: set[str], reason: str, n_good: int = 1) -> None:
    """Read a source; what is malformed is of one of these kinds, and the rest is read."""
    items = list(READERS[reader](path))
    good = [item for item in items if isinstance(item, Document)]
    bad = [item for item in items if isinstance(item, Rejection)]
    assert len(good) == n_good, items
    assert bad and {each.kind for each in bad} <= kinds, bad
    assert any(reason in each.reason for each in bad), bad
    for each in bad:
        assert (
            each.reason.rstrip(".") != each.reason
            and "\n" not in each.reason
            and len(each.reason) < 700
        )
        assert each.where.startswith(str(path.parent))
    private = png("blue")
    for document in good:
        assert SECRET not in document.text
        for image in document.images:
            content = image.source
            read = content.read_bytes() if isinstance(content, Path) else content
            assert read != private


# ── records in JSONL ─────────────────────────────────────────────────────────────────────────────

GOOD = {
    "obelics": {"images": [None, "owl.png"], "texts": ["An owl.", None]},
    "mmc4": {
        "text_list": ["An owl."],
        "image_info": [{"image_name": "owl.png", "matched_text_index": 0}],
    },
    "cauldron": {"images": ["owl.png"], "texts": [{"user": "?", "assistant": "An owl."}]},
    "chat": {
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "An owl."}]
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "An owl."}]
    },
    "jsonl": {"segments": [{"text": "An owl."}, {"image": "owl.png"}]},
}
LINES: dict[str, tuple[bytes, str, str]] = {
    "half": (b'{"images": [null', "bad-json", "not JSON"),
    "deep": (b"[" * 100_000, "bad-json", "nested more than 100 deep"),
    "a number": (b"17", "bad-record", "holds a JSON int"),
    "a list": (b"[1]", "bad-record", "holds a JSON list"),
    "nothing": (b"{}", "bad-record no-answer", "needs"),
    "other keys": (b'{"x": 1}', "bad-record unknown-key no-answer", ""),
    "binary": (bytes(range(256)).replace(b"\n", b""), "bad-json", "no"),
    "a long number": (b'{"images": ' + b"9" * 5000 + b"}", "bad-json", "not JSON"),
}


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("reader", GOOD)
def test_lines(source, reader, line):
    content, kinds, reason = LINES[line]
    if line == "nothing" and reader == "cauldron":
        reason = "no turns"
    path = source / "a.jsonl"
    path.write_bytes(content + b"\n" + json.dumps(GOOD[reader]).encode() + b"\n")
    check(reader, path, set(kinds.split()), reason)


def obelics(images: object, texts: object) -> dict[str, object]:
    return {"images": images, "texts": texts}


def mmc4(**info: object) -> dict[str, object]:
    return {"text_list": ["An owl."], "image_info": [{"matched_text_index": 0, **info}]}


PARTS = [
    # An image that cannot be used leaves the document without it, so there are two.
    ("obelics", obelics([None, "../private.png"], ["a", None]), "outside-image", "lies outside", 2),
    ("obelics", obelics([None, "/etc/passwd"], ["a", None]), "outside-image", "lies outside", 2),
    ("obelics", obelics([None, "linked.png"], ["a", None]), "outside-image", "lies outside", 2),
    ("obelics", obelics([None, "linked/private.png"], ["a", None]), "outside-image", "outside", 2),
    ("obelics", obelics([None, "no.png"], ["a", None]), "missing-image", "is not a file in", 2),
    ("obelics", obelics([None, "a\0b.png"], ["a", None]), "missing-image", "is not a file in", 2),
    ("obelics", obelics([None, "x" * 5000], ["a", None]), "missing-image", "is not a file in", 2),
    ("obelics", obelics([None, "data:image/png;base64,!!"], ["a", None]), "bad-base64", "broken", 2),
    ("obelics", obelics([None, {"bytes": 3}], ["a", None]), "bad-record", "must be the path", 2),
    ("obelics", obelics([None, {}], ["a", None]), "bad-record", "must be the path", 2),
    ("obelics", obelics([None, 7], ["a", None]), "bad-record", "must be the path", 2),
    ("obelics", obelics([None, "\ud800"], ["a", None]), "bad-record", "must be the path", 2),
    ("obelics", obelics([None, "http://a.b/c.png"], ["a", None]), "remote-image", "not on this", 2),
    ("obelics", obelics([None], [7]), "bad-record", "texts[0] is of type int", 1),
    ("obelics", obelics([None], ["\ud800"]), "bad-record", "broken Unicode", 1),
    ("obelics", obelics([None], ["a", "b"]), "bad-record", 'has 1 "images" and 2 "texts"', 1),
    ("obelics", obelics({}, []), "bad-record", "must be a list", 1),
    ("obelics", obelics([None, None], [None, " "]), "empty-document", "neither text", 1),
    ("mmc4", mmc4(image_name="../private.png"), "missing-image outside-image", "private.png", 2),
    ("mmc4", mmc4(image_name="linked.png"), "outside-image", "lies outside", 2),
    ("mmc4", mmc4(image_name="no.png"), "missing-image", "is not a file in", 2),
    ("mmc4", mmc4(image_name=7), "bad-record", "must be the path", 2),
    ("mmc4", mmc4(image_name="a\0.png"), "missing-image", "is not a file in", 2),
    ("mmc4", mmc4(matched_text_index=9), "bad-record", "from 0 to 0", 1),
    ("mmc4", mmc4(matched_text_index=-1), "bad-record", "from 0 to 0", 1),
    ("mmc4", mmc4(matched_text_index=None), "bad-record", "from 0 to 0", 1),
    ("mmc4", mmc4(matched_text_index=10**400), "bad-record bad-json", "", 1),
    ("mmc4", {"text_list": ["a"], "image_info": [3]}, "bad-record", "must be an object", 1),
    ("mmc4", {"text_list": [None], "image_info": []}, "bad-record", "must be text", 1),
    ("mmc4", {"text_list": "a", "image_info": []}, "bad-record", "must be a list", 1),
    ("cauldron", {"images": ["../private.png"], "texts": [{"user": "?", "assistant": "a"}]},
     "outside-image", "lies outside", 1),
    ("cauldron", {"images": ["linked.png"], "texts": [{"user": "?", "assistant": "a"}]},
     "outside-image", "lies outside", 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reader", "record", "kinds", "reason", "n_good"),
    PARTS,
    ids=[f"{each[0]}-{number}" for number, each in enumerate(PARTS)],
)
def test_records(source, reader, record, kinds, reason, n_good):
    os.symlink("../private.png", source / "linked.png")
    os.symlink("..", source / "linked")
    path = source / "a.jsonl"
    path.write_text("".join(f"{json.dumps(each)}\n" for each in (record, GOOD[reader])))
    check(reader, path, set(kinds.split()), reason, n_good)


# ── files ────────────────────────────────────────────────────────────────────────────────────────

Write = Callable[[Path], object]


def table(rows: list[dict[str, object]], **how: object) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, **how)
    return buffer.getvalue()


def arrow(rows: list[dict[str, object]]) -> bytes:
    buffer, rows_ = io.BytesIO(), pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(buffer, rows_.schema) as writer:
        writer.write_table(rows_)
    return buffer.getvalue()


def tar(*members: tuple[str, bytes] | tarfile.TarInfo, **how: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **how) as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            file.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def claiming(size: int, kind: bytes = tarfile.REGTYPE, name: str = "a.png") -> bytes:
    """Return the header of a member that claims to be larger than what follows."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT) + b"x" * 1024


def holes(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)


def bomb() -> bytes:
    """Return 30 MB of zeros as a page of a PDF."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(30)) + packer.flush()
    head = b"<< /Length %d /Filter /FlateDecode >>\nstream\n" % len(packed)
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R >>"
    pages = b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>"
    root = b"<< /Type /Catalog /Pages 2 0 R >>"
    return written([root, pages, page, head + packed + b"\nendstream"])


def page(box: bytes, contents: bytes = b"") -> bytes:
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [%b] %b >>" % (box, contents),
    ]
    return written(objects)


ROW = [{"text": "An owl.", "image": IMAGE}]
PARQUET = table(ROW * 3)
ARROW = arrow(ROW * 3)
TAR = tar(("a.png", PNG), ("a.txt", b"An owl."))
PDF = pdf_file([["An owl."]])
DAMAGED, UNREADABLE = {"damaged-archive"}, {"unreadable-file"}

# The reader, the name of the malformed file, its content, the kinds, a part of the sentence.
FILES: list[tuple[str, str, bytes | Write, set[str], str]] = [
    # plain text, Markdown and tables
    ("text", "a.txt", b"", {"empty-document"}, "no text"),
    ("text", "a.txt", b"\x00\x01\x02\x03" * 99, UNREADABLE, "no text"),
    ("text", "a.txt", "Ünïcödé — text ".encode() + b"\xff", {"damaged-text"}, "1 bytes"),
    ("text", "a.txt", holes, UNREADABLE, "too many"),
    ("text", "a.txt", os.mkfifo, UNREADABLE, "not a regular file"),
    ("text", "a.txt", lambda p: p.symlink_to("../private.txt"), {"outside-link"}, "lies outside"),
    ("text", "a.txt", lambda p: p.symlink_to("/dev/zero"), {"outside-link"}, "lies outside"),
    ("text", "a.txt", lambda p: p.symlink_to("gone.txt"), {"missing-file"}, "does not exist"),
    ("text", "a.txt", lambda p: p.symlink_to("a.txt"), {"missing-file"}, "does not exist"),
    ("text", "below", lambda p: p.symlink_to(".."), {"outside-link"}, "lies outside"),
    ("markdown", "a.md", b"\x00\x01\x02", {"unreadable-page"}, "no text"),
    ("markdown", "a.md", b"![x](../private.png)\n", {"outside-image", "empty-document"}, "outside"),
    ("markdown", "a.md", b"![x](no.png)\n", {"missing-image", "empty-document"}, "no such image"),
    ("markdown", "a.md", b"![x](file:///etc/passwd)", {"missing-image", "empty-document"}, ""),
    ("markdown", "a.md", b"<!-- only a comment -->", {"empty-document"}, "neither text"),
    ("markdown", "a.md", b"---\ntitle: !!python/object/apply:os.getcwd []\n---\n",
     {"empty-document"}, "neither text"),
    ("csv", "a.csv", b"", {"bad-table"}, "no first line"),
    ("csv", "a.csv", b"\n\n", {"bad-table"}, "no first line"),
    ("csv", "a.csv", b"x,y\n1,2\n", {"no-column"}, "has the columns x, y"),
    ("csv", "a.csv", b"text,image\na\n", {"bad-row"}, "has 1 fields, and the first line names 2"),
    ("csv", "a.csv", b"text,image\na,b,c\n", {"bad-row"}, "has 3 fields"),
    ("csv", "a.csv", b"text,image\na,../private.png\n", {"outside-image"}, "lies outside"),
    ("csv", "a.csv", b"text,image\na,linked.png\n", {"outside-image"}, "lies outside"),
    ("csv", "a.csv", b"text,image\na,no.png\n", {"missing-image"}, "is not a file in"),
    ("csv", "a.csv", b"text,image\na,https://a.b/c.png\n", {"remote-image"}, "not on this machine"),
    ("csv", "a.csv", b"text,image\na,data:image/png;base64;x\n", {"bad-base64"}, "data URI"),
    ("csv", "a.csv", b'text,image\n"' + b"x" * (1 << 18), {"bad-row"}, "no row of a table"),
    ("csv", "a.csv", b"text,image\n ,\n", {"empty-document"}, "neither text nor images"),
    ("csv", "a.csv", os.mkfifo, UNREADABLE, "not a regular file"),
    # Parquet and Arrow
    ("parquet", "a.parquet", b"", UNREADABLE, "truncated or damaged"),
    ("parquet", "a.parquet", b"PAR1", UNREADABLE, "truncated or damaged"),
    ("parquet", "a.parquet", PARQUET[:-9], UNREADABLE, "truncated or damaged"),
    ("parquet", "a.parquet", PARQUET[: len(PARQUET) // 2], UNREADABLE, "truncated or damaged"),
    ("parquet", "a.parquet", b"PAR1" + b"\xff" * 64 + b"\xff\xff\xff\x7fPAR1", UNREADABLE, ""),
    ("parquet", "a.parquet", json.dumps(ROW[0]["text"]).encode(), UNREADABLE, "damaged"),
    ("parquet", "a.parquet", table([{"x": 1}]), {"no-column"}, "has the columns x"),
    ("parquet", "a.parquet", table([{"text": 3}]), {"bad-record"}, "is of type int"),
    ("parquet", "a.parquet", table([{"text": None, "image": None}]), {"empty-document"}, "neither"),
    ("parquet", "a.parquet", table([{"text": "a", "image": {"bytes": None, "path": "../private.png"}}]),
     {"outside-image"}, "lies outside"),
    ("parquet", "a.parquet", table([{"text": "a", "image": {"bytes": b"", "path": ""}}]),
     {"bad-record"}, "must be the path"),
    ("parquet", "a.parquet", table([{"text": "a", "image": 7.5}]), {"bad-record"}, "must be the path"),
    ("parquet", "a.parquet", os.mkfifo, UNREADABLE, "not a regular file"),
    ("parquet", "a.parquet", lambda p: p.symlink_to("/dev/zero"), {"outside-link"}, "outside"),
    ("parquet", "a.arrow", b"", UNREADABLE, "truncated or damaged"),
    ("parquet", "a.arrow", b"ARROW1", UNREADABLE, "truncated or damaged"),
    ("parquet", "a.arrow", ARROW[: len(ARROW) // 2], UNREADABLE, "truncated or damaged"),
    ("parquet", "a.arrow", b"\xff\xff\xff\xff\xff\xff\xff\x7f" + ARROW[8:], UNREADABLE, ""),
    ("parquet", "a.arrow", os.mkfifo, UNREADABLE, "not a regular file"),
    ("obelics", "a.json", b"[", {"bad-json"}, "not JSON"),
    ("obelics", "a.json", b"{}", {"bad-record"}, "a list was expected"),
    ("obelics", "a.json", b"[[], 1]", {"bad-record"}, "an object was expected"),
    ("obelics", "a.jsonl.gz", gzip.compress(b"{}\n" * 99)[:-20], {"unreadable-file", "bad-record"}, "truncated"),
    ("obelics", "a.jsonl.gz", b"no gzip", UNREADABLE, "cannot be read"),
    # WebDataset
    ("webdataset", "a.tar", b"", DAMAGED, "truncated or damaged"),
    ("webdataset", "a.tar", b"no archive" * 99, DAMAGED, "truncated or damaged"),
    ("webdataset", "a.tar", TAR[:300], DAMAGED, "truncated or damaged"),
    ("webdataset", "a.tar", TAR[:600], DAMAGED, "truncated or damaged"),
    ("webdataset", "a.tar", claiming(1 << 40), {"damaged-archive", "large-member"}, ""),
    ("webdataset", "a.tar", claiming(1 << 62), {"damaged-archive", "large-member"}, ""),
    ("webdataset", "a.tar", claiming(1 << 40, tarfile.GNUTYPE_LONGNAME), DAMAGED, "a header states"),
    ("webdataset", "a.tar", claiming(1 << 40, tarfile.XHDTYPE), DAMAGED, "a header states"),
    ("webdataset", "a.tar", claiming(-512), DAMAGED, ""),
    ("webdataset", "a.tar", tar(special("a.png", tarfile.SYMTYPE, "../private.png")),
     {"outside-link"}, "links are not followed"),
    ("webdataset", "a.tar", tar(special("a.png", tarfile.LNKTYPE, "/etc/passwd")),
     {"outside-link"}, "links are not followed"),
    ("webdataset", "a.tar", tar(special("a.png", tarfile.FIFOTYPE)), {"no-file"}, "no plain file"),
    ("webdataset", "a.tar", tar(special("a.png", tarfile.BLKTYPE)), {"no-file"}, "no plain file"),
    ("webdataset", "a.tar", tar(("../private.png", PNG)), {"outside-path"}, "leads out"),
    ("webdataset", "a.tar", tar(("/private.png", PNG)), {"outside-path"}, "leads out"),
    ("webdataset", "a.tar", tar(("x/../../y.png", PNG)), {"outside-path"}, "leads out"),
    ("webdataset", "a.tar", tar(("a.png", b"")), {"unreadable-image"}, "zero bytes"),
    ("webdataset", "a.tar", tar(("a.txt", b"\0\1\2")), {"bad-caption"}, "no text"),
    ("webdataset", "a.tar", tar(("a.json", b"{")), {"bad-caption"}, "cannot be read"),
    ("webdataset", "a.tar", tar(("a.json", b"[" * 9999)), {"bad-caption"}, "nested"),
    ("webdataset", "a.tar", tar(("a.json", b"{}")), {"empty-document"}, "neither text nor images"),
    ("webdataset", "a.tar", tar(("a.psd", b"x")), {"unread-format"}, "not read"),
    ("webdataset", "a.tar.gz", gzip.compress(TAR)[:-30], DAMAGED, "truncated or damaged"),
    ("webdataset", "a.tar", os.mkfifo, DAMAGED, "not a regular file"),
    # PDF
    ("pdf", "a.pdf", b"", UNREADABLE, "no PDF"),
    ("pdf", "a.pdf", b"%PDF-1.7\n%%EOF", UNREADABLE, "no PDF"),
    ("pdf", "a.pdf", b"\0" * 9999, UNREADABLE, "no PDF"),
    ("pdf", "a.pdf", page(b"0 0 9 9"), {"empty-document"}, "neither text nor images"),
    ("pdf", "a.pdf", page(b"0 0 1e30 1e30"), {"empty-document", "unreadable-page"}, ""),
    ("pdf", "a.pdf", page(b"0 0 9 9", b"/Contents 3 0 R"), {"empty-document"}, ""),
    ("pdf", "a.pdf", bomb(), {"empty-document", "unreadable-page"}, ""),
    ("pdf", "a.pdf", os.mkfifo, UNREADABLE, "not a regular file"),
    ("pdf", "a.pdf", holes, UNREADABLE, "too many"),
    # folders of images
    ("folder", "a.txt", b"no image beside it", {"missing-image"}, "no image beside it"),
    ("folder", "owl.txt", b"\0\1\2", {"bad-caption"}, "no text"),
    ("folder", "owl.txt", b"", {"bad-caption"}, "is empty"),
    ("folder", "owl.json", b"{", {"bad-caption"}, "cannot be read"),
    ("folder", "owl.json", b"[[[[", {"bad-caption"}, "cannot be read"),
    ("folder", "owl.json", b'{"width": 3}', {"bad-caption"}, "no text under"),
    ("folder", "owl.caption", holes, {"bad-caption"}, "too many"),
    ("folder", "owl.txt", os.mkfifo, {"bad-caption"}, "not a regular file"),
    ("folder", "a.png", lambda p: p.symlink_to("gone.png"), {"missing-file"}, "does not exist"),
    ("folder", "a.png", lambda p: p.symlink_to("../private.png"), {"outside-link"}, "outside"),
    ("folder", "owl.txt", lambda p: p.symlink_to("../private.txt"), {"outside-link"}, "outside"),
    ("folder", "a.png", os.mkfifo, {"missing-image"}, "is a named pipe"),
    ("folder", "a.psd", b"8BPS", {"unread-format"}, "Photoshop"),
    ("folder", "captions.jsonl", b'{"file_name": "../private.png", "text": "x"}', {"outside-image"}, "outside"),
    ("folder", "captions.jsonl", b'{"file_name": "linked.png", "text": "x"}', {"outside-image", "outside-link"}, "outside"),
    ("folder", "metadata.csv", b"file_name,text\nno.png,x\n", {"missing-image"}, "is not a file in"),
    ("folder", "metadata.csv", b"file_name,text\nowl.png\n", {"bad-row"}, "has 1 fields"),
    ("folder", "metadata.csv", b"\0" * 99, {"bad-table"}, "no first line"),
    ("folder", "metadata.jsonl", os.mkfifo, UNREADABLE, "not a regular file"),
    ("folder", "metadata.jsonl", b'{"file_name": ["owl.png", 3], "text": "x"}', {"bad-record"}, "needs text"),
]  # fmt: skip

GOOD_FILES: dict[str, tuple[str, bytes]] = {
    "text": ("z.txt", b"An owl."),
    "markdown": ("z.md", b"An owl.\n\n![](owl.png)"),
    "csv": ("z.csv", b"text,image\nAn owl.,owl.png\n"),
    "parquet": ("z.parquet", table(ROW)),
    "obelics": ("z.jsonl", json.dumps(GOOD["obelics"]).encode()),
    "webdataset": ("z.tar", TAR),
    "pdf": ("z.pdf", PDF),
    "folder": ("z.png", PNG),
}


@pytest.mark.parametrize(
    ("reader", "name", "content", "kinds", "reason"),
    FILES,
    ids=[f"{each[0]}-{each[1]}-{number}" for number, each in enumerate(FILES)],
)
def test_files(source, reader, name, content, kinds, reason):
    good, good_content = GOOD_FILES[reader]
    (source / good).write_bytes(good_content)
    if reader in ("csv", "folder") and (
        reader == "csv" or b"linked" in (content if isinstance(content, bytes) else b"")
    ):
        os.symlink("../private.png", source / "linked.png")
    if isinstance(content, bytes):
        (source / name).write_bytes(content)
    else:
        content(source / name)
    n_good = 1 + (reader == "folder")
    n_good += reader == "text" and "damaged-text" in kinds and len(kinds) == 1
    check(reader, source, kinds, reason, n_good)


def test_there_are_enough():
    assert len(LINES) * len(GOOD) + len(PARTS) + len(FILES) >= 150


@pytest.mark.parametrize("reader", ["obelics", "csv", "parquet", "webdataset"])
def test_a_cut_at_any_place_is_an_item_or_told(source, reader):
    """What stands before the cut is read, and what is lost is told."""
    name, content = GOOD_FILES[reader]
    (source / "owl.png").write_bytes(PNG)
    for size in range(0, len(content) - 1, max(1, len(content) // 25)):
        (source / name).write_bytes(content[:size])
        items = list(READERS[reader](source / name))
        assert size == 0 or items or reader == "csv"
        assert all(isinstance(item, Document | Rejection) for item in items)


def test_a_line_without_end_is_told(source, monkeypatch):
    monkeypatch.setattr("pardalis.documents.readers._text.MOST_BYTES", 1 << 16)
    for reader, name in (("obelics", "a.jsonl"), ("csv", "a.csv")):
        holes(source / name)
        items = list(READERS[reader](source / name))
        assert {item.kind for item in items if isinstance(item, Rejection)} & {
            "long-line",
            "bad-table",
        }
    assert files.MOST_BYTES == 1 << 28
