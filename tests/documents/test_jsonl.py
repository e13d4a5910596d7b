"""JSONL: what a line means, and what is said of a line that means nothing."""

import base64
import bz2
import gzip
import json
import lzma
import os
import tracemalloc
from pathlib import Path

import pyarrow
import pytest

from pardalis.documents import Document, Image, Region, Rejection, Text, read_jsonl, read_pairs
from pardalis.errors import DataError


def read(tmp_path, *lines):
    path = tmp_path / "docs.jsonl"
    content = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(content) + b"\n")
    return list(read_jsonl(path))


A, B = ({"segments": [{"text": each}]} for each in "ab")
LAYOUTS = {
    "one list": json.dumps([A, B]),
    "one list in lines": f"[{json.dumps(A)},\n{json.dumps(B)}\n]",
    "a list, an object a line": f"[\n{json.dumps(A)},\n{json.dumps(B)}\n]\n",
    "objects in several lines": json.dumps(A, indent=1) + "\n" + json.dumps(B, indent=1),
    "commas": f"{json.dumps(A)},\n\n{json.dumps(B)},\n",
    "joined files with marks": f"\ufeff{json.dumps(A)}\n\ufeff{json.dumps(B)}\n",
    "old Macs": f"{json.dumps(A)}\r{json.dumps(B)}\r",
    "rows": '{"text": "a", "meta": {"x": 1}}\n{"caption": "b"}',
}


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_other_programs(tmp_path, layout, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_text(LAYOUTS[layout], newline="")
    assert [item.text for item in read_jsonl(path)] == ["a", "b"]


PACKERS = {
    "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress,
    "zst": lambda content: bytes(pyarrow.compress(content, "zstd")),
}  # fmt: skip


@pytest.mark.parametrize("name", ["a.jsonl.{}", "a.jsonl"])
@pytest.mark.parametrize("kind", PACKERS)
def test_compressed_lines_whatever_the_name(tmp_path, kind, name):
    path = tmp_path / name.format(kind)
    content = PACKERS[kind]("".join(f"{json.dumps(each)}\n" for each in (A, B)).encode())
    path.write_bytes(content)
    assert [item.text for item in read_jsonl(path)] == ["a", "b"]
    path.write_bytes(content[: len(content) // 2])
    assert [item.kind for item in read_jsonl(path)] == ["unreadable-file"]


@pytest.mark.parametrize("block", [b"\n", b" ", b"{}\n", b"[" * 99 + b"\n"])
def test_what_unpacks_to_far_more_is_told_soon(tmp_path, block, monkeypatch):
    monkeypatch.setattr("pardalis.documents.readers._packed._MOST_UNPACKED", 1 << 16)
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        for _ in range(100):
            file.write(block * ((1 << 20) // len(block)))
    *others, last = read_jsonl(tmp_path / "a.jsonl.gz")
    assert last.kind == "unreadable-file" and "it unpacks to more than" in last.reason
    assert len(others) < 10_000_000 // len(block)


def test_a_full_line(tmp_path, red_file, red_png):
    line = {
        "name": "owl",
        "licence": "CC0",
        "segments": [
            {"text": "An owl", "role": "user"},
            {"image": "red.png", "alt": "red", "role": "assistant"},
            {"image_base64": base64.b64encode(red_png).decode()},
        ],
    }
    segments = (
        Text("An owl", "user"),
        Image(red_file, "red", "assistant"),
        Image(red_png),
    )
    assert read(tmp_path, line) == [Document(segments, "owl", "CC0")]


def test_the_keys_of_earlier_versions_are_read(tmp_path, red_file, red_png):
    old = b"""{"name": "owl", "segments": [
        {"picture": "red.png", "alt": "red", "role": "user",
         "regions": [{"box": [0, 0, 1, 1], "kind": "face"}]},
        {"picture_base64": "%s"}]}""".replace(b"\n", b"")
    regions = (Region((0.0, 0.0, 1.0, 1.0), "face"),)
    assert read(tmp_path, old % base64.b64encode(red_png)) == [
        Document((Image(red_file, "red", "user", regions), Image(red_png)), "owl")
    ]
    (rejection,) = read(tmp_path, {"segments": [{"image": "red.png", "picture": "red.png"}]})
    assert rejection.kind == "bad-record"


def test_a_document_without_a_name_is_named_by_its_line(tmp_path):
    (document,) = read(tmp_path, b"", {"segments": [{"text": "a"}]})
    assert document.name == "docs:2"


@pytest.mark.parametrize(
    ("line", "kind", "reason"),
    [
        (b"{", "bad-json", "The line is not JSON"),
        (b"\xff{}", "bad-json", "The line is not JSON"),
        (b"[" * 100_000, "bad-json", "The line is not JSON"),
        ([1], "bad-record", "The line holds a JSON list; an object was expected."),
        ({}, "bad-record", 'needs a list under "segments"'),
        ({"segments": "a"}, "bad-record", 'needs a list under "segments"'),
        ({"segments": [], "colour": 1}, "unknown-key", "unknown keys colour; known are licence"),
        ({"segments": []}, "empty-document", "neither text nor images"),
        ({"segments": [{"text": "  "}]}, "empty-document", "neither text nor images"),
        ({"segments": [1]}, "bad-record", "segment 0 must be an object with one of"),
        ({"segments": [{}]}, "bad-record", "segment 0 must be an object with one of"),
        (
            {"segments": [{"text": "a", "image": "b"}]},
            "bad-record",
            "segment 0 must be an object",
        ),
        ({"segments": [{"text": 1}]}, "bad-record", 'segment 0 has a int under "text"'),
        ({"segments": [{"text": "\ud800"}]}, "bad-record", 'broken Unicode under "text"'),
        ({"segments": [{"text": "a"}], "name": 3}, "bad-record", 'document has a int under "name"'),
        (
            {"segments": [{"text": "a", "alt": "b"}]},
            "unknown-key",
            "segment 0 has unknown keys alt",
        ),
        (
            {"segments": [{"text": "a", "role": "owl"}]},
            "bad-record",
            "the role 'owl'; it must be one of system, user, assistant",
        ),
        ({"segments": [{"text": "a", "role": []}]}, "bad-record", "the role []"),
        ({"segments": [{"image": "no.png"}]}, "missing-image", "names the image 'no.png'"),
        ({"segments": [{"image": ""}]}, "missing-image", "names the image ''"),
        ({"segments": [{"image": "a\0"}]}, "missing-image", "which is not a file in"),
        ({"segments": [{"image": "a" * 5000}]}, "missing-image", "which is not a file in"),
        (
            {"segments": [{"image_base64": "b3d"}]},
            "bad-base64",
            "segment 0: The image's base64",
        ),
    ],
)
def test_a_bad_line_is_rejected_and_the_next_one_read(tmp_path, line, kind, reason):
    good = {"name": "good", "segments": [{"text": "a"}]}
    rejection, document = read(tmp_path, line, good)
    assert isinstance(rejection, Rejection)
    assert rejection.where == f"{tmp_path / 'docs.jsonl'}:1"
    assert rejection.kind == kind
    assert reason in rejection.reason
    assert document == Document((Text("a"),), "good")


def image_with(regions):
    return {"segments": [{"image": "red.png", "regions": regions}]}


def test_regions_of_an_image(tmp_path, red_file):
    regions = [
        {"box": [1, 0.5, 3, 2], "kind": "face", "weight": 2},
        {"box": [-1, 0, 4, 3]},
    ]
    (document,) = read(tmp_path, image_with(regions))
    assert document.images[0].regions == (
        Region((1.0, 0.5, 3.0, 2.0), "face", 2.0),
        Region((-1.0, 0.0, 4.0, 3.0), "", 1.0),
    )


@pytest.mark.parametrize(
    ("regions", "kind", "reason"),
    [
        ({}, "bad-region", 'segment 0 needs a list under "regions".'),
        ([3], "bad-region", 'segment 0, region 0 must be an object with a "box".'),
        ([{}], "bad-region", "region 0 has the box None; it must be a list of four numbers"),
        ([{"box": [1, 2, 3]}], "bad-region", "the box [1, 2, 3]; it must be a list of four"),
        ([{"box": [0, 0, 1, "2"]}], "bad-region", "it must be a list of four numbers"),
        ([{"box": [0, 0, 1, True]}], "bad-region", "it must be a list of four numbers"),
        ([{"box": [0, 0, 1, 10**400]}], "bad-region", "it must be a list of four numbers"),
        ([{"box": [0, 0, 1, float("inf")]}], "bad-region", "it must be a list of four numbers"),
        ([{"box": [2, 0, 2, 3]}], "bad-region", "is empty; right must exceed left, and bottom"),
        ([{"box": [0, 3, 2, 1]}], "bad-region", "is empty; right must exceed left, and bottom"),
        ([{"box": [0, 0, 1, 1], "weight": 0}], "bad-region", "the weight 0; it must exceed 0."),
        ([{"box": [0, 0, 1, 1], "weight": "a"}], "bad-region", "the weight 'a'; it must exceed"),
        ([{"box": [0, 0, 1, 1], "weight": float("nan")}], "bad-region", "the weight nan"),
        ([{"box": [0, 0, 1, 1], "kind": 1}], "bad-record", 'has a int under "kind"'),
        ([{"box": [0, 0, 1, 1], "colour": 1}], "unknown-key", "region 0 has unknown keys colour"),
    ],
)
def test_what_is_no_region(tmp_path, red_file, regions, kind, reason):
    (rejection,) = read(tmp_path, image_with(regions))
    assert isinstance(rejection, Rejection)
    assert rejection.kind == kind
    assert reason in rejection.reason


def test_text_has_no_regions(tmp_path):
    (rejection,) = read(tmp_path, {"segments": [{"text": "a", "regions": []}]})
    assert "segment 0 has unknown keys regions" in rejection.reason


def test_weights(tmp_path, red_file):
    segments = [{"text": "q", "weight": 0}, {"image": "red.png", "weight": 0.5}, {"text": "a"}]
    (document,) = read(tmp_path, {"segments": segments})
    assert document.segments == (
        Text("q", weight=0.0),
        Image(red_file, weight=0.5),
        Text("a", weight=1.0),
    )


@pytest.mark.parametrize("weight", [-1, "a", None, True, float("nan"), float("inf"), 70_000])
def test_what_is_no_weight(tmp_path, weight):
    (rejection,) = read(tmp_path, {"segments": [{"text": "a", "weight": weight}]})
    assert rejection.kind == "bad-weight"
    assert "it must be a number from 0 to 65504" in rejection.reason


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────


def pairs(tmp_path, *lines):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return list(read_pairs(path))


def test_a_line_becomes_two_documents_with_one_prompt(tmp_path, red_file):
    prompt = [{"image": "red.png", "role": "user"}, {"text": "What?", "role": "user", "weight": 3}]
    chosen, rejected = ([{"text": text, "role": "assistant"}] for text in ("Red.", "Blue."))
    line = {"name": "a", "licence": "CC0", "prompt": prompt, "chosen": chosen, "rejected": rejected}
    asked = (Image(red_file, role="user", weight=0.0), Text("What?", "user", 0.0))
    assert pairs(tmp_path, line) == [
        Document((*asked, Text("Red.", "assistant")), "a#chosen", "CC0"),
        Document((*asked, Text("Blue.", "assistant")), "a#rejected", "CC0"),
    ]


def test_a_text_stands_for_a_segment_without_a_role(tmp_path):
    assert pairs(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b"}) == [
        Document((Text("q", weight=0.0), Text("a")), "pairs:1#chosen"),
        Document((Text("q", weight=0.0), Text("b")), "pairs:1#rejected"),
    ]


@pytest.mark.parametrize(
    ("line", "kind", "reason"),
    [
        ({"chosen": "a", "rejected": "b"}, "bad-record", 'a list of segments under "prompt"'),
        ({"prompt": "q", "chosen": 3, "rejected": "b"}, "bad-record", 'segments under "chosen"'),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "equal-pair", "they must differ"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "empty-document", 'under "rejected"'),
        ({"prompt": "q", "chosen": [{}], "rejected": "b"}, "bad-record", "chosen, segment 0 must"),
        (
            {"prompt": "q", "good": "a", "rejected": "b"},
            "unknown-key",
            "pair has unknown keys good",
        ),
    ],
)
def test_a_bad_pair_is_one_rejection(tmp_path, line, kind, reason):
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    rejection, *others = pairs(tmp_path, line, good)
    assert (rejection.kind, len(others)) == (kind, 2)
    assert reason in rejection.reason


def test_a_root_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match=r"pipe\.jsonl is a named pipe; a JSONL file of documents"):
        read_jsonl(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match=r"/dev/null is a device; a JSONL file of pairs"):
        read_pairs(Path("/dev/null"))
    with pytest.raises(DataError, match=r"no\.jsonl does not exist; a JSONL file of documents was"):
        read_jsonl(tmp_path / "no.jsonl")
    with pytest.raises(DataError, match="is a folder; a JSONL file"):
        read_jsonl(tmp_path)
    with pytest.raises(DataError, match="a JSONL file of pairs was expected"):
        read_pairs(tmp_path)


def test_a_file_larger_than_memory_streams_through(tmp_path):
    path = tmp_path / "large.jsonl"
    line = json.dumps({"segments": [{"text": "a" * 10_000}]}) + "\n"
    path.write_text(line * 1_000)
    tracemalloc.start()
    try:
        assert sum(len(document.text) for document in read_jsonl(path)) == 10_000_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_empty_objects_are_told_one_by_one(tmp_path):
    (tmp_path / "a.jsonl").write_text('{}\n{"text": "An owl."}\n{}\n')
    first, document, last = read_jsonl(tmp_path / "a.jsonl")
    assert document.text == "An owl."
    assert [Path(each.where).name for each in (first, last)] == ["a.jsonl:1", "a.jsonl:3"]
    assert first.kind == last.kind == "bad-record"
    assert first.reason == last.reason == 'The document needs a list under "segments".'
