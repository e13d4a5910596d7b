"""Whatever goes wrong while writing, what stood there before is whole."""

import errno
import os
import socket
from pathlib import Path

import pytest

from pardalis import files
from pardalis.documents import READERS
from pardalis.documents.writers import write_records
from pardalis.errors import BusyError, ConfigError, DataError


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "deep" / "a.json"
    files.write_json(path, {"a": 1})
    files.write_json(path, {"a": "é"})
    assert path.read_text() == '{\n  "a": "é"\n}\n'
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "plant", [lambda at, other: at.symlink_to(other), lambda at, _: os.mkfifo(at)]
)
def test_a_link_or_pipe_in_the_place_of_the_working_file_is_not_followed(tmp_path, plant):
    other = tmp_path / "other.txt"
    other.write_text("of somebody else")
    path = tmp_path / "run" / "report.html"
    path.parent.mkdir()
    plant(files.working_name(path, "partial"), other)
    files.write_text(path, "new")
    assert other.read_text() == "of somebody else"
    assert path.read_text() == "new"
    assert not path.is_symlink()
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_whole(tmp_path):
    target = tmp_path / "runs" / "bundle"
    with files.atomic_folder(target) as partial:
        (partial / "a").write_text("1")
        assert not target.exists()
    assert [p.name for p in target.iterdir()] == ["a"]
    assert [p.name for p in target.parent.iterdir()] == ["bundle"]


def test_a_folder_is_replaced_only_at_the_end(tmp_path):
    target = tmp_path / "bundle"
    for content in ("old", "new"):
        with files.atomic_folder(target) as partial:
            (partial / content).touch()
            if content == "new":
                assert (target / "old").exists()
    assert [p.name for p in target.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_an_error_leaves_the_old_folder(tmp_path):
    target = tmp_path / "bundle"
    with files.atomic_folder(target) as partial:
        (partial / "old").touch()
    with pytest.raises(RuntimeError), files.atomic_folder(target) as partial:
        (partial / "new").touch()
        raise RuntimeError
    assert [p.name for p in target.iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_crash_at_any_instant_leaves_one_whole_folder(tmp_path, monkeypatch):
    """Die before each rename in turn: after recovery the folder is the old one or the new one."""

    class Killed(BaseException):
        pass

    for instant in (0, 1):
        target = tmp_path / str(instant) / "bundle"
        with files.atomic_folder(target) as partial:
            (partial / "old").touch()
        renames, real = [], os.rename

        def rename(source, destination, renames=renames, real=real, instant=instant):
            if len(renames) == instant:
                raise Killed
            renames.append(source)
            real(source, destination)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", rename)
            with pytest.raises(Killed), files.atomic_folder(target) as partial:
                (partial / "new").touch()
        assert [p.name for p in files.existing_folder(target).iterdir()] == ["old"]
        files.recover_folder(target)
        assert [p.name for p in target.iterdir()] == ["old"]
        assert files.existing_folder(target) == target
        with files.atomic_folder(target) as partial:  # leftovers do not disturb the next attempt
            (partial / "newest").touch()
        assert [p.name for p in target.iterdir()] == ["newest"]
        assert [p.name for p in target.parent.iterdir()] == ["bundle"]


def test_recovery_after_the_last_rename_keeps_the_new_folder(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / ".bundle.pardalis-previous").mkdir()
    files.recover_folder(tmp_path / "bundle")
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_what_a_person_put_beside_it_stays(tmp_path):
    for name in ("bundle", "bundle.partial", "bundle.previous"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").touch()
    with files.atomic_folder(tmp_path / "bundle") as partial:
        (partial / "new").touch()
    assert (tmp_path / "bundle.partial" / "thesis.tex").is_file()
    assert (tmp_path / "bundle.previous" / "thesis.tex").is_file()
    assert [p.name for p in (tmp_path / "bundle").iterdir()] == ["new"]


def test_a_folder_for_output_is_made_or_kept_and_never_a_file(tmp_path):
    folder = files.output_folder(tmp_path / "a" / "b")
    (folder / "kept").touch()
    assert files.output_folder(folder) == folder
    assert (folder / "kept").exists()
    with pytest.raises(ConfigError, match="kept is a file, but a folder is to be written"):
        files.output_folder(folder / "kept")
    with pytest.raises(ConfigError, match="kept is a file, but a folder is to be written"):
        files.output_folder(folder / "kept" / "below")


def test_what_is_found_at_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")  # a long path is refused
        found = {name: files.found_at(tmp_path / name) for name in ("file", "pipe", "socket", "no")}
    assert found == {
        "file": "is a file", "pipe": "is a named pipe", "socket": "is a socket",
        "no": "does not exist",
    }  # fmt: skip
    assert files.found_at(tmp_path) == "is a folder"
    assert files.found_at(tmp_path / "link") == "is a link to what does not exist"
    assert files.found_at(tmp_path / "file" / "inner") == "does not exist"
    assert files.found_at(Path("/dev/null")) == "is a device"
    assert files.found_at(tmp_path / ("x" * 300)) == "cannot be reached (File name too long)"


@pytest.mark.parametrize("reader", ["folder", "html", "jsonl", "pairs", "chat", "sharegpt"])
def test_a_pipe_in_the_place_of_a_source_is_called_so(tmp_path, reader):
    os.mkfifo(tmp_path / "source")
    with pytest.raises(DataError, match=r"source is a named pipe; .* expected there\.$"):
        READERS[reader](tmp_path / "source")


def test_a_link_to_nothing_is_no_folder_for_output(tmp_path):
    (tmp_path / "run").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="run is a link to what does not exist"):
        files.output_folder(tmp_path / "run" / "inner")


def test_the_working_folder_has_a_name(tmp_path, monkeypatch):
    folder = tmp_path / "bundle"
    (folder / "deep").mkdir(parents=True)
    monkeypatch.chdir(folder / "deep")
    assert files.existing_folder(Path()) == Path()
    assert files.existing_folder(Path("/")) == Path("/")
    assert files.working_name(Path(".."), "previous") == tmp_path / ".bundle.pardalis-previous"
    assert files.working_name(Path(), "previous") == folder / ".deep.pardalis-previous"


def test_records_are_not_written_through_a_link_in_the_place_of_the_working_file(tmp_path):
    other, path = tmp_path / "other.txt", tmp_path / "out" / "completions.jsonl"
    other.write_text("of somebody else")
    path.parent.mkdir()
    files.working_name(path, "partial").symlink_to(other)
    assert write_records([{"a": 1}], path) == 1
    assert (other.read_text(), path.read_text()) == ("of somebody else", '{"a": 1}\n')
    files.working_name(path, "partial").mkdir()
    write_records([{"a": 2}], path)
    assert [*path.parent.iterdir()] == [path]


def test_a_link_in_the_place_of_a_working_folder_is_not_followed(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").touch()
    files.working_name(tmp_path / "bundle", "partial").symlink_to(other)
    with files.atomic_folder(tmp_path / "bundle") as folder:
        (folder / "new.txt").touch()
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["new.txt"]
    assert [path.name for path in other.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("state", ["", "previous", "partial"])
def test_a_link_in_the_place_of_a_folder_is_replaced_and_not_followed(tmp_path, state):
    other = tmp_path / "other"
    other.mkdir()
    (other / "a").write_text("of somebody else")
    path = tmp_path / "run" / "samples"
    path.parent.mkdir()
    (files.working_name(path, state) if state else path).symlink_to(other)
    for content in ("first", "second"):  # the link may not be in the way of the next one either
        with files.atomic_folder(path) as folder:
            (folder / "a").write_text(content)
        assert (path / "a").read_text() == content
        assert list(path.parent.iterdir()) == [path]
        assert not path.is_symlink()
    assert (other / "a").read_text() == "of somebody else"


def test_a_folder_that_was_made_read_only_is_replaced(tmp_path, monkeypatch):
    path = tmp_path / "samples"
    refused = []

    def unlink(name, *arguments, dir_fd=None):
        folder = os.stat(".", dir_fd=dir_fd) if dir_fd is None else os.stat(dir_fd)
        if not folder.st_mode & 0o200:  # root, who may run the tests, is not asked
            refused.append(name)
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return whole(name, *arguments, dir_fd=dir_fd)

    whole = os.unlink
    for content in ("first", "second", "third"):
        with files.atomic_folder(path) as folder:
            (folder / "inner").mkdir()
            (folder / "inner" / "a").write_text(content)
        monkeypatch.setattr(os, "unlink", unlink)
        for each in (path / "inner", path):
            each.chmod(0o555)
    assert refused
    assert (path / "inner" / "a").read_text() == "third"
    assert list(tmp_path.iterdir()) == [path]


def test_the_place_and_the_reason_are_named(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"a\.txt") as caught:
        files.write_text(tmp_path / "a.txt", "a")
    assert files.why_unwritten(caught.value) == "the disk is full; free space on it"
    with pytest.raises(OSError, match="samples"), files.atomic_folder(tmp_path / "samples"):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError("Error while serializing: I/O error: full (os error 28)"),
            "the disk is full",
        ),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"), "is full"),
        (OSError(errno.EFBIG, "File too large"), "ulimit"),
        (OSError(errno.EROFS, "Read-only file system"), "read-only"),
    ],
)
def test_why_something_was_not_written(error, reason):
    assert reason in files.why_unwritten(error)


def test_other_errors_are_not_of_writing():
    assert files.why_unwritten(OSError(errno.EACCES, "Permission denied")) is None
    assert files.why_unwritten(ValueError("shapes")) is None


def test_only_a_folder_of_what_we_wrote_alone_may_be_replaced(tmp_path):
    folder = tmp_path / "index"
    files.require_replaceable(folder, "index.json", ["shards"])
    (folder / "shards").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"index exists and holds no index\.json"):
        files.require_replaceable(folder, "index.json", ["shards"])
    (folder / "index.json").touch()
    files.require_replaceable(folder, "index.json", ["shards"])
    (folder / "thesis.txt").touch()
    with pytest.raises(ConfigError, match=r"index also holds 'thesis\.txt', so it is not replaced"):
        files.require_replaceable(folder, "index.json", ["shards"])
    with pytest.raises(ConfigError, match="but a folder is to be written"):
        files.require_replaceable(folder / "thesis.txt", "index.json")


def test_two_processes_do_not_fill_one_folder(tmp_path):
    target = tmp_path / "bundle"
    with files.atomic_folder(target) as partial:
        (partial / "a").write_text("whole")
        # A lock is of a descriptor, so this is as another process.
        with (
            pytest.raises(BusyError, match="Another process is writing"),
            files.atomic_folder(target),
        ):
            pass
        (partial / "b").write_text("whole")
    assert sorted(path.name for path in target.iterdir()) == ["a", "b"]
    assert list(tmp_path.iterdir()) == [target]
    with files.atomic_folder(target):
        pass
    assert not any(target.iterdir())


def test_a_folder_is_filled_where_there_are_no_locks(tmp_path, monkeypatch):
    def unsupported(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    (tmp_path / ".bundle.pardalis-partial").mkdir()
    with files.atomic_folder(tmp_path / "bundle") as partial:
        (partial / "a").write_text("whole")
    assert (tmp_path / "bundle" / "a").read_text() == "whole"
