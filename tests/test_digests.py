"""Hashes of files: content decides, and the memory spares reading and never decides anything."""

import json
import os
import shutil
from pathlib import Path

import pytest

from pardalis import digests
from pardalis.digests import Digests, file_digest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "owl.png"
    path.write_bytes(b"an owl")
    return path


@pytest.fixture
def reads(monkeypatch) -> list[Path]:
    """The files that are read; those that have just changed count as settled."""
    found: list[Path] = []

    def read(path: Path) -> str:
        found.append(path)
        return file_digest(path)

    monkeypatch.setattr(digests, "file_digest", read)
    monkeypatch.setattr(digests, "_SETTLED_NS", -1)
    return found


def test_content_decides_and_times_do_not(file: Path):
    before = Digests().of(file)
    os.utime(file, (0, 0))
    copy = shutil.copyfile(file, file.with_name("copy.png"))
    assert Digests().of(file) == Digests().of(copy) == before
    file.write_bytes(b"a fox!")  # of the same size
    assert Digests().of(file) != before


def test_an_unchanged_file_is_read_once(file: Path, tmp_path: Path, reads: list[Path]):
    memory = tmp_path / "memory.json"
    first = Digests(memory)
    digest = first.of(file)
    assert first.of(file) == digest
    first.save()
    assert Digests(memory).of(file) == digest
    assert reads == [file]
    os.utime(file, (0, 0))
    assert Digests(memory).of(file) == digest
    assert reads == [file, file]


def test_a_file_whose_times_are_restored_is_read(file: Path, tmp_path: Path, reads: list[Path]):
    memory = tmp_path / "memory.json"
    before, status = Digests(memory), file.stat()
    old = before.of(file)
    before.save()
    file.write_bytes(b"a fox!")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert Digests(memory).of(file) != old


def test_a_file_that_has_just_changed_is_not_remembered(file: Path, tmp_path: Path):
    memory = tmp_path / "memory.json"
    found = Digests(memory)
    found.of(file)
    found.save()
    assert not memory.exists()


def _entry(file: Path) -> list[object]:
    status = file.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


@pytest.mark.parametrize(
    "content",
    ["", "[{", "[]", "3", '{"%s": 3}', '{"%s": [1, 2, 3, 4, 5]}', '{"%s": [1, 2]}', "[" * 100_000],
)
def test_a_damaged_memory_is_no_memory(file: Path, tmp_path: Path, content: str):
    memory = tmp_path / "memory.json"
    memory.write_text(content.replace("%s", str(file)))
    assert Digests(memory).of(file) == file_digest(file)


@pytest.mark.parametrize("digest", ["", "0", "x" * 64, 64 * "0" + "\n", None])
def test_what_is_no_hash_is_not_taken_for_one(file: Path, tmp_path: Path, digest: object):
    memory = tmp_path / "memory.json"
    memory.write_text(json.dumps({str(file): [*_entry(file), digest]}))
    assert Digests(memory).of(file) == file_digest(file)


def test_the_memory_of_another_machine(file: Path, tmp_path: Path):
    """Its paths may be the same; inodes and change times are not."""
    memory = tmp_path / "memory.json"
    inode, *rest = _entry(file)
    memory.write_text(json.dumps({str(file): [inode + 1, *rest, "0" * 64]}))
    assert Digests(memory).of(file) == file_digest(file)


def test_nothing_waits_for_a_pipe(file: Path, tmp_path: Path):
    memory = tmp_path / "memory.json"
    os.mkfifo(memory)
    assert Digests(memory).of(file) == file_digest(file)
    with pytest.raises(OSError, match="is not a regular file"):
        Digests().of(memory)


def test_a_memory_that_cannot_be_written_loses_nothing(
    file: Path, tmp_path: Path, reads: list[Path], caplog
):
    memory = tmp_path / "memory"
    memory.mkdir()
    (memory / "something").touch()
    found = Digests(memory)
    found.of(file)
    found.save()
    assert "is not written" in caplog.text
