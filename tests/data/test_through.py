"""Sources that are read through side by side: the same is found, whatever happens to a process."""

import json
import logging
import multiprocessing
import re
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import mortal_reader
import pytest
from documents_on_disk import WRITERS, write_documents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pardalis.data import (
    Reading,
    SourceConfig,
    Survey,
    Workers,
    allow_classifier,
    read_source,
    read_through,
    survey_parts,
    through,
)
from pardalis.data.ruled import _known
from pardalis.data.rules import Classifier, DuplicateImages, DuplicateTexts, classifier
from pardalis.digests import Digests
from pardalis.documents import READERS
from pardalis.errors import DataError
from pardalis.files import exclusive

PARTS = ((0.0, 0.4), (0.4, 1.0), (0.0, 1.0))
TWO = Workers(jobs=2)


@pytest.fixture(autouse=True)
def forgotten():
    _known.clear()


@pytest.fixture
def at_once(monkeypatch):
    """Workers read from the beginning."""
    monkeypatch.setattr(through, "_ALONE_S", 0.0)
    monkeypatch.setattr(through, "_WAIT_S", 0.01)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[SourceConfig]:
    """Sources of all readers with copies, damaged files and whatever their readers reject."""
    folder = tmp_path_factory.mktemp("sources")
    found = []
    for reader in WRITERS:
        path = write_documents(reader, folder / reader, range(6))
        if path.is_dir():
            (path / "damaged.png").write_bytes(b"no image")
            (path / "gone.txt").symlink_to(folder / "nowhere")
        else:
            with path.open("ab") as file:
                file.write(b"\n{\n" if path.suffix == ".jsonl" else b"")
        has_rules = reader != "pairs"
        rules = (DuplicateTexts(), DuplicateImages()) if has_rules else ()
        found.append(SourceConfig(name=reader, reader=reader, path=path, rules=rules))
    copies = folder / "copies.jsonl"
    lines = [json.dumps({"segments": [{"text": f"the owl is {n % 3}"}]}) for n in range(9)]
    copies.write_text("\n".join([*lines, "{", *lines]))
    rules = (DuplicateTexts(),)
    return [*found, SourceConfig(name="copies", reader="jsonl", path=copies, rules=rules)]


def readings(sources: list[SourceConfig], place: Path | None = None) -> list[Reading]:
    return [
        Reading(number, source, PARTS, place and place / source.name)
        for number, source in enumerate(sources)
    ]


def found_by(some: list[Reading], workers: Workers = TWO, digests: Digests | None = None):
    with closing(read_through(some, digests or Digests(), workers)) as found:
        return {reading.source.name: surveys for reading, surveys in found}


def expected(sources: list[SourceConfig]) -> dict[str, list[Survey]]:
    return {source.name: survey_parts(source, PARTS) for source in sources}


def left_of(sources: list[SourceConfig]) -> list[str]:
    return [repr(item) for source in sources for item in read_source(source)]


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(READERS, "mortal", mortal_reader.read_mortal)


def mortal(folder: Path, name: str, text: str = "an owl\na fox that sleeps\n") -> SourceConfig:
    (folder / f"{name}.txt").write_text(text)
    return SourceConfig(name=name, reader="mortal", path=folder / f"{name}.txt")


# ── the same is found ────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("at_once")
def test_workers_find_what_one_process_finds(sources):
    alone = expected(sources)
    left = left_of(sources)
    assert sum(each[2].n_rejections for each in alone.values()) > len(sources)
    _known.clear()
    assert found_by(readings(sources)) == alone
    assert not multiprocessing.active_children()
    known = dict(_known)
    assert left_of(sources) == left
    assert _known == known  # what rules found was not searched for again
    assert len(known) == len([source for source in sources if source.rules])


def test_short_sources_are_read_here(sources, monkeypatch):
    monkeypatch.setattr(through, "_ALONE_S", 1000.0)
    monkeypatch.setattr(through, "do_all", None)
    assert found_by(readings(sources)) == expected(sources)


def test_one_source_is_read_here_however_long_it_is(sources, at_once, monkeypatch):
    monkeypatch.setattr(through, "do_all", None)
    assert found_by(readings(sources[:1])) == expected(sources[:1])


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_processes_divide_the_sources(sources, at_once, tmp_path_factory, data):
    """Processes that share a folder find the same, in any order, and read each source once."""
    place = tmp_path_factory.mktemp("found")
    read: list[str] = []
    alone = expected(sources[:6])
    with pytest.MonkeyPatch.context() as patch:
        own = through.survey_parts
        patch.setattr(
            through, "survey_parts", lambda source, *a: read.append(source.name) or own(source, *a)
        )
        for _ in range(3):
            chosen = data.draw(st.lists(st.integers(0, 5), unique=True))
            some = readings([sources[each] for each in chosen], place)
            found = found_by(some, Workers(jobs=1))
            assert found == {each.source.name: alone[each.source.name] for each in some}
        assert found_by(readings(sources[:6], place), Workers(jobs=1)) == alone
    assert sorted(read) == sorted(source.name for source in sources[:6])


@pytest.mark.usefixtures("at_once")
def test_what_another_process_reads_is_awaited_and_what_it_leaves_is_read(
    sources, tmp_path, caplog
):
    some = readings(sources[:4], tmp_path)
    alone = expected(sources[:4])
    held, other = some[0], some[2]
    for each in (held, other):
        each.place.mkdir()
    begun, ended = threading.Event(), threading.Event()

    def another_process() -> None:
        with exclusive(held.place):
            with exclusive(other.place):
                begun.set()
                while not any("Waiting" in message for message in caplog.messages):
                    time.sleep(0.01)
            held.keep(alone[held.source.name])  # the other one it leaves
        ended.set()

    thread = threading.Thread(target=another_process)
    thread.start()
    begun.wait()
    with caplog.at_level(logging.INFO):
        found = found_by(some)
    thread.join()
    assert found == alone
    assert set(list(found)[:2]) == {some[1].source.name, some[3].source.name}
    assert "Waiting for other processes to read through 2 sources." in caplog.messages


@pytest.mark.parametrize("wrong", [b"", b"{", b"[]", b'{"read": 1, "found": [3]}'])
def test_what_is_damaged_or_of_another_recipe_is_read_anew(sources, tmp_path, wrong: bytes):
    [reading] = readings(sources[:1], tmp_path)
    (tmp_path / reading.source.name).mkdir()
    path = tmp_path / reading.source.name / "found.json"
    path.write_bytes(wrong)
    assert found_by([reading]) == expected(sources[:1])
    assert reading.found() == expected(sources[:1])[reading.source.name]
    half = replace(reading, parts=PARTS[:1])
    assert half.found() is None
    assert found_by([half])[reading.source.name] == expected(sources[:1])[reading.source.name][:1]


@pytest.mark.usefixtures("at_once")
def test_workers_know_readers_classifiers_and_the_folder(tmp_path, monkeypatch):
    rule = Classifier(function="mortal_reader:short_only")
    monkeypatch.setattr(classifier, "_allowed", set())
    allow_classifier(rule.function)
    monkeypatch.chdir(tmp_path)
    some = [
        replace(mortal(tmp_path, name), rules=(rule,), path=Path(f"{name}.txt")) for name in "abc"
    ]
    assert READERS["mortal"] is mortal_reader.read_mortal
    found = found_by(readings(some))
    assert found == expected(some)
    assert {(each[2].n_items, each[2].n_rejections) for each in found.values()} == {(2, 1)}


@pytest.mark.usefixtures("at_once")
def test_image_files_that_workers_read_are_remembered(tmp_path, monkeypatch):
    some = []
    for name in "abc":
        path = write_documents("folder", tmp_path / name, range(3))
        some.append(SourceConfig(name=name, reader="folder", path=path))
    time.sleep(2.1)  # until the files do not count as changing any more
    digests = Digests(tmp_path / "digests.json")
    found = found_by(readings(some), TWO, digests)
    digests.save()
    assert len(json.loads((tmp_path / "digests.json").read_text())) == 9
    monkeypatch.setattr("pardalis.digests.file_digest", None)
    assert found_by(readings(some), Workers(jobs=1), Digests(tmp_path / "digests.json")) == found


# ── what ends ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("at_once")
def test_a_worker_that_dies_costs_its_reading_only(tmp_path, caplog):
    some = [mortal(tmp_path, name) for name in "abc"]
    alone = expected(some)
    (tmp_path / "b.left").write_text("1")
    assert found_by(readings(some, tmp_path / "found")) == alone
    [death] = [message for message in caplog.messages if "SIGKILL" in message]
    assert re.fullmatch(
        r"Worker [12] \(process \d+\) was killed by SIGKILL while it read through source 'b'; "
        r"another does that again\.", death
    )  # fmt: skip


@pytest.mark.usefixtures("at_once")
def test_a_source_that_kills_every_worker_ends_all_and_loses_nothing_else(tmp_path):
    some = [mortal(tmp_path, name) for name in "abc"]
    alone = expected(some)
    (tmp_path / "c.left").write_text("2")
    with pytest.raises(DataError, match=r"killed by SIGKILL while it read through source 'c', as"):
        found_by(readings(some, tmp_path / "found"))
    assert not multiprocessing.active_children()
    kept = {each.source.name: each.found() for each in readings(some, tmp_path / "found")}
    found = {name: surveys for name, surveys in kept.items() if surveys is not None}
    assert found  # of one of the others at least; the other one was being read
    assert found.items() <= alone.items()
    assert found_by(readings(some, tmp_path / "found")) == alone


@pytest.mark.usefixtures("at_once")
def test_errors_are_those_of_one_process(tmp_path):
    some = [mortal(tmp_path, "a"), mortal(tmp_path, "b")]
    gone = SourceConfig(name="gone", reader="jsonl", path=tmp_path / "gone.jsonl")
    with pytest.raises(DataError) as alone:
        found_by(readings([*some, gone]), Workers(jobs=1))
    with pytest.raises(DataError) as caught:
        found_by(readings([*some, gone]))
    assert str(caught.value) == str(alone.value)
    assert "gone.jsonl" in str(caught.value)
    bad = mortal(tmp_path, "bad", "an owl\nfail\n")
    with pytest.raises(RuntimeError, match=r"(?s)Worker .* failed:.*the reader fails"):
        found_by(readings([*some, bad]))
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("at_once")
def test_an_interruption_ends_the_workers_and_keeps_what_is_found(tmp_path):
    some = [mortal(tmp_path, name) for name in "abcd"]
    found = read_through(readings(some, tmp_path / "found"), Digests(), TWO)
    with pytest.raises(KeyboardInterrupt), closing(found):
        next(found)
        raise KeyboardInterrupt
    assert not multiprocessing.active_children()
    assert any(each.found() for each in readings(some, tmp_path / "found"))
    assert found_by(readings(some, tmp_path / "found")) == expected(some)
