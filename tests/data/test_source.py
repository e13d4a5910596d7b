import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import PIL.Image
import pytest

from pardalis.config import from_dict, to_dict
from pardalis.data import PairOrder, SourceConfig, read_source
from pardalis.data.source import size_and_time, survey
from pardalis.documents import READERS, Document, Image, Omission, Text
from pardalis.errors import ConfigError, DataError

SOURCE = SourceConfig(name="notes", reader="jsonl", path=Path("notes.jsonl"))


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(folder: Path, *lines: object) -> None:
    (folder / "notes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def text(name: str, words: str) -> dict[str, object]:
    return {"name": name, "segments": [{"text": words}]}


def test_documents_and_rejections_are_read_in_order(tmp_path: Path):
    write(tmp_path, text("a", "An owl."), {"segments": 3})
    document, rejection = read_source(SOURCE)
    assert document == Document((Text("An owl."),), "a")
    assert not isinstance(rejection, Document)


def test_a_survey_counts_and_notices_changed_content(tmp_path: Path):
    write(tmp_path, text("a", "An owl."), {"segments": 3})
    before = survey(SOURCE)
    assert (before.n_items, before.n_images) == (2, 1)  # what is rejected may be an image
    os.utime(tmp_path / "notes.jsonl", (0, 0))
    assert survey(SOURCE) == before  # the same content, written again
    write(tmp_path, text("a", "A fox."), {"segments": 3})
    assert survey(SOURCE).digest != before.digest


def test_a_survey_notices_changed_image_files(tmp_path: Path):
    (tmp_path / "owl.png").write_bytes(b"first")
    source = SourceConfig(name="owls", reader="folder", path=Path("."))
    before = survey(source)
    (tmp_path / "owl.png").write_bytes(b"other!")
    changed = survey(source)
    assert changed.n_items == changed.n_images == before.n_items == 1
    assert changed.digest != before.digest


def test_a_copy_with_other_times_is_the_same_source(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "owl.png").write_bytes(b"owl")
    source = SourceConfig(name="owls", reader="folder", path=tmp_path / "a")
    before = survey(source)
    os.utime(tmp_path / "a" / "owl.png", (0, 0))
    assert survey(source) == before
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    assert survey(dataclasses.replace(source, path=tmp_path / "b")) == before


def test_a_change_of_the_same_size_and_time_is_noticed(tmp_path: Path):
    (tmp_path / "owl.png").write_bytes(b"first")
    source = SourceConfig(name="owls", reader="folder", path=Path("."))
    before, status = survey(source), (tmp_path / "owl.png").stat()
    (tmp_path / "owl.png").write_bytes(b"other")
    os.utime(tmp_path / "owl.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert survey(source).digest != before.digest
    assert survey(source, size_and_time) == survey(source, size_and_time)


def test_a_survey_notices_every_kind_of_image(monkeypatch, tmp_path: Path):
    def found(*images: object) -> str:
        document = Document(tuple(Image(image) for image in images), "a")
        monkeypatch.setitem(READERS, "jsonl", lambda _: iter([document]))
        return survey(SOURCE).digest

    hashes = {
        found(b"a"),
        found(b"b"),
        found(PIL.Image.new("RGB", (2, 2))),
        found(PIL.Image.new("RGB", (2, 2), "white")),
        found(tmp_path / "missing.png"),
        found(b"a", b"b"),
    }
    assert len(hashes) == 6


def test_a_survey_notices_weights_but_not_those_of_1(monkeypatch):
    def found(weight: float) -> str:
        segments = Text("a", weight=weight), Image(b"a", weight=weight)
        return survey_of(monkeypatch, *segments)

    assert len({found(0.0), found(0.5), found(1.0)}) == 3
    assert found(1.0) == survey_of(monkeypatch, Text("a"), Image(b"a"))


def survey_of(monkeypatch, *segments: Text | Image) -> str:
    document = Document(segments, "a")
    monkeypatch.setitem(READERS, "jsonl", lambda _: iter([document]))
    return survey(SOURCE).digest


def test_pairs_have_no_transforms():
    with pytest.raises(ConfigError, match=r"^transforms must be empty for reader 'pairs', got 1"):
        SourceConfig(name="a", reader="pairs", path=Path("a"), transforms=(PairOrder(),))


def test_an_empty_source_has_no_items(tmp_path: Path):
    write(tmp_path)
    assert survey(SOURCE).n_items == 0


def test_nothing_at_the_path_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"notes.jsonl"):
        survey(SOURCE)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_must_be_positive(weight: float):
    with pytest.raises(ConfigError, match=r"^weight must be above 0, got"):
        SourceConfig(name="a", reader="jsonl", path=Path("a"), weight=weight)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b"])
def test_a_name_must_be_that_of_a_folder(name: str):
    with pytest.raises(ConfigError, match=r"^name must consist of letters, digits"):
        SourceConfig(name=name, reader="jsonl", path=Path("a"))


@pytest.mark.parametrize("name", ["Bücher", "写真", "a-b_c.d", "x" * 200])
def test_a_name_has_letters_of_any_alphabet(name: str):
    assert SourceConfig(name=name, reader="jsonl", path=Path("a")).name == name


def test_a_name_that_is_too_long_for_a_folder_is_refused():
    with pytest.raises(ConfigError, match=r"^name must have at most 200 bytes"):
        SourceConfig(name="写" * 67, reader="jsonl", path=Path("a"))


def pages(folder: Path, **options: object) -> SourceConfig:
    (folder / "page.html").write_text("<nav>menu</nav><main>An owl.</main><p>Imprint</p>")
    return SourceConfig(name="pages", reader="html", path=Path("page.html"), options=options)


def test_a_source_has_the_options_of_its_reader(tmp_path: Path):
    document, *omissions = read_source(pages(tmp_path, content="main"))
    assert isinstance(document, Document) and document.text == "An owl."
    assert [type(each) for each in omissions] == [Omission]


def test_options_decide_only_by_what_they_change(tmp_path: Path):
    before = survey(pages(tmp_path))
    assert survey(pages(tmp_path, min_side=9)) == before
    assert survey(pages(tmp_path, content="main")).digest != before.digest


def test_what_is_left_out_of_a_document_is_no_item(tmp_path: Path):
    found = survey(pages(tmp_path))
    assert (found.n_items, found.n_images, found.n_rejections) == (1, 0, 0)


@pytest.mark.parametrize(
    ("reader", "options", "message"),
    [
        ("html", {"contents": "main"}, "Unknown key 'options.contents'; did you mean 'content'?"),
        ("epub", {"content": 3}, "options.content must be of type str, got 3"),
        ("html", {"repeated": 2.0}, "options.repeated must lie in"),
        ("mhtml", {"content": "p["}, "options.content must be a CSS selector"),
        ("jsonl", {"content": "p"}, "options must be empty for reader 'jsonl'"),
    ],
)
def test_options_that_a_reader_does_not_have(reader, options, message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        SourceConfig(name="a", reader=reader, path=Path("a"), options=options)


def test_options_of_a_recipe_are_checked_with_their_place():
    values = {"name": "a", "reader": "html", "path": "a", "options": {"contents": "main"}}
    with pytest.raises(ConfigError, match=r"options\.contents"):
        from_dict(SourceConfig, values, "sources.0.")
    values["options"] = {"content": "main"}
    assert to_dict(from_dict(SourceConfig, values))["options"] == {"content": "main"}
