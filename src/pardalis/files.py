"""Atomic writes: a file or folder appears whole, or not at all. And reading what others wrote.

The readers of this module take bounded time and memory for any file: they refuse what is no regular
file (a pipe, a device), what is larger than a description can be, and values that are nested more
deeply than any of ours.
"""

import codecs
import errno
import fcntl
import json
import logging
import os
import re
import shutil
import stat
import tomllib
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from pardalis.errors import BusyError, ConfigError

logger = logging.getLogger(__name__)

LOCK = ".lock"  # the file whose lock a process holds while it works in a folder
MOST_BYTES = 1 << 28  # of a description or a line; the largest tokenizers have some 40 MB
_MOST_LEVELS = 100  # of nested values
_ATTEMPTS = 100  # to make a working folder that other processes make and delete, too
_MOST_TOML = 1 << 20  # characters; those of our recipes have 10,000 at most
_PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+"""  # of a dotted key
_LONG_KEY = re.compile(rf"""(?<![\w"'-])(?:{_PART}){{{_MOST_LEVELS}}}""")


def working_name(path: Path, state: str) -> Path:
    """Return a hidden temporary name for a file or folder, which no user would choose.

    Files of this name may be deleted; a user's ``bundle.previous`` may not.
    """
    if path.name in ("", ".."):  # such as "."
        path = path.resolve()
    return path.with_name(f".{path.name}.pardalis-{state}")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: readers see either the old or the new content."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; on an error (a full disk, say) the previous file is unchanged."""
    with atomic_file(path) as file:
        file.write(content)


def write_once(path: Path, text: str) -> bool:
    """Write a text file unless there is one, whichever of several processes comes first.

    Returns:
        False: there is one, or something else of that name.
    """
    partial = working_name(path, f"{os.uname().nodename}-{os.getpid()}")
    partial.unlink(missing_ok=True)
    try:
        with partial.open("x") as file:
            file.write(text)
        _claim(partial, path)
    except FileExistsError:
        return False
    finally:
        partial.unlink(missing_ok=True)
    return True


def _claim(partial: Path, path: Path) -> None:
    """Give a file its name; raises FileExistsError if there is one, unlike os.replace."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with open(path, "xb"):
            pass
        os.replace(partial, path)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file to write, which gets its name only if no error was raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = working_name(path, "partial")
    remove(partial)  # in a folder from elsewhere it may be a link or a pipe
    try:
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        _name_place(error, path)
        raise


def why_unwritten(error: BaseException) -> str | None:
    """Return why something could not be written, and what to do; None if it is another error.

    Libraries raise errors of their own while they handle that of the system, or with its text.
    """
    seen: BaseException | None = error
    while seen is not None:
        found = seen.errno if isinstance(seen, OSError) else None
        for number, reason in _REASONS.items():
            if number == found or f"os error {number})" in str(seen):
                return reason
        seen = seen.__cause__ or seen.__context__
    if "PytorchStreamWriter" in str(error) or "inline_container" in str(error):
        return _REASONS[errno.ENOSPC]  # from another rank, without the error of the system
    return None


_REASONS = {
    errno.ENOSPC: "the disk is full; free space on it",
    errno.EDQUOT: "the quota of the disk is used up; free space",
    errno.EFBIG: "the file is larger than the system allows; raise that limit (ulimit -f)",
    errno.EROFS: "the file system is read-only; write to another place",
}


def _name_place(error: BaseException, path: Path) -> None:
    """Let an error of writing name the place, which that of a full disk does not."""
    if isinstance(error, OSError) and error.filename is None and error.errno is not None:
        error.filename = str(path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a file.

    Args:
        most: bytes that it may have.

    Raises:
        OSError: there is no such file, it is not a regular file, or it is larger.
    """
    # Without O_NONBLOCK opening a named pipe waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"it has {status.st_size} bytes, too many", str(path))
        return file.read()  # given a size, it would take as much memory at once


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 file, or of one whose byte order mark names another encoding.

    Editors write that mark, which is no character of the text.

    Raises:
        ValueError: it is another encoding; OSError: as :func:`read_bytes`.
    """
    content = read_bytes(path)
    encoding, mark = byte_order_mark(content) or ("utf-8", b"")
    try:
        return content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:  # which holds the whole content
        name = encoding.upper()
        raise ValueError(f"it is not {name}: {error.reason} at byte {error.start}") from None


def byte_order_mark(content: bytes) -> tuple[str, bytes] | None:
    """Return the encoding that the first bytes of a text name, and these bytes, if they do."""
    return next(((name, mark) for mark, name in _MARKS.items() if content.startswith(mark)), None)


_MARKS = {  # those of UTF-32 begin as those of UTF-16 do
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
    b"\x84\x31\x95\x33": "gb18030",
}


# How files begin that stand in place of others, in lower case; whose they are, and what to do.
_POINTERS = {
    b"version https://git-lfs.github.com": ("Git LFS", "git lfs pull"),
    b"git/annex": ("git-annex", "git annex get"),
    b"annex/objects": ("git-annex", "git annex get"),
}
_LONGEST_POINTER = 1024  # bytes


def pointer_of(beginning: bytes, what: str) -> str:
    """Return what a file is that stands in place of a large one, and what to do; "" if it is not.

    Args:
        beginning: of the file, in lower case.
        what: the large one is called.
    """
    for start, (owner, command) in _POINTERS.items():
        if beginning.startswith(start):
            return f"a pointer of {owner} and not the {what} itself; get the file with `{command}`"
    return ""


def pointer_in(path: Path) -> str:
    """Return the same of what is at a path, whatever it is."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LONGEST_POINTER:
            return ""
        beginning = read_bytes(path, _LONGEST_POINTER).lstrip(b"/.\n").lower()
    except OSError:
        return ""
    return pointer_of(beginning, "file")


# How files of other kinds begin that are taken for text, or for images, by their names.
_KINDS = {
    b"\x89PNG": "a PNG image", b"\xff\xd8\xff": "a JPEG image", b"GIF8": "a GIF image",
    b"%PDF": "a PDF document", b"PK\3\4": "a zip archive, as office documents are",
    b"\xd0\xcf\x11\xe0": "an office document of the old kind", b"8BPS": "a Photoshop document",
    b"\xff\x0a": "a JPEG XL image", b"\0\0\0\x0cJXL ": "a JPEG XL image",
    b"\x1f\x8b": "a gzip file", b"BZh": "a bzip2 file", b"\xfd7zXZ\0": "an xz file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file", b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive", b"PAR1": "a Parquet file", b"SQLite format 3": "a database",
    b"\x1a\x45\xdf\xa3": "a film", b"ID3": "sound", b"OggS": "sound or a film",
}  # fmt: skip


def kind_of(beginning: bytes) -> str:
    """Return what a file is by its first bytes, if it is none of the texts and images that we read.

    It is "" for what is not known. An image that is read as such has a name here, too.
    """
    if beginning[4:8] == b"ftyp":
        return "a film, or an image of the same container"
    return next((what for start, what in _KINDS.items() if beginning.startswith(start)), "")


def with_line_feeds(text: str) -> str:
    """Return a text with line feeds for all ends of lines, as Python reads files in text mode."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, with their ends, one at a time.

    Raises:
        OSError: there is no such file, or it is not a regular file.
        ValueError: a line is longer than 256 MiB; a file of holes has such a line.
    """
    require_file(path)
    with open(path, "rb") as file:
        while line := file.readline(MOST_BYTES + 1):
            if len(line) > MOST_BYTES:
                raise ValueError(f"it has a line of more than {MOST_BYTES >> 20} MiB")
            yield line


def read_json(path: Path) -> Any:
    """Return the value in a JSON file; raises as :func:`read_text` and :func:`parse_json`."""
    return parse_json(read_text(path))


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; raises ValueError if it is none, or nested too deeply."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    check_depth(value)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """Return the values of a TOML text; raises ValueError if it is none, or takes long to read."""
    if len(text) > _MOST_TOML:
        raise ValueError(f"it has more than {_MOST_TOML:,} characters")
    if _LONG_KEY.search(text):  # the time and memory for a key grow with the square of its parts
        raise ValueError(_TOO_DEEP)
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    check_depth(values)
    return values


def plain(value: Any) -> Any:
    """Return a copy of a value as it would be read from a JSON file."""
    return json.loads(json.dumps(value))


def check_depth(value: Any) -> None:
    """Raise ValueError if tables and lists are nested more than 100 deep."""
    level = [value]
    for _ in range(_MOST_LEVELS):
        containers = [each for each in level if isinstance(each, dict | list)]
        if not containers:
            return
        level = [
            item
            for each in containers
            for item in (each.values() if isinstance(each, dict) else each)
        ]
    raise ValueError(_TOO_DEEP)


_TOO_DEEP = f"its values are nested more than {_MOST_LEVELS} deep"


def require_file(path: Path) -> None:
    """Raise OSError if there is something at a path that is not a regular file.

    Reading a pipe or a device may wait or go on without end.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def found_at(path: Path) -> str:
    """Return what is at a path, as the rest of a sentence: "is a folder", "does not exist"."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return "is a link to what does not exist" if os.path.islink(path) else "does not exist"
    except OSError as error:
        return f"cannot be reached ({error.strerror})"
    kinds = {
        stat.S_IFREG: "is a file",
        stat.S_IFDIR: "is a folder",
        stat.S_IFIFO: "is a named pipe",
        stat.S_IFSOCK: "is a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "is a device")


def is_own_file(path: Path) -> bool:
    """Return whether a path is a regular file, and no link to one elsewhere."""
    return path.is_file() and not path.is_symlink()


def is_bare_name(name: object) -> bool:
    """Return whether a value from a file names a file of the same folder, and no other place."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def require_folder(path: Path) -> None:
    """Raise ConfigError if a file has the name of the folder or of one of its parents."""
    for place in (path, *path.parents):
        if os.path.lexists(place) and not place.is_dir():
            raise ConfigError(
                f"{place} {found_at(place)}, but a folder is to be written; choose another name."
            )


def require_replaceable(path: Path, main: str, others: Collection[str] = ()) -> None:
    """Check that a folder may be replaced whole: it is new, empty, or has what we wrote alone.

    Args:
        main: name of the file that tells what the folder holds.
        others: names of all else that is written beside it.

    Raises:
        ConfigError: the folder holds something else, which would be lost; or as
            :func:`require_folder`.
    """
    require_folder(path)
    found = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if not found:
        return
    if not (path / main).is_file():
        raise ConfigError(
            f"{path} exists and holds no {main}, so it is not replaced; name another folder."
        )
    if strange := sorted(found - {main, *others}):
        raise ConfigError(
            f"{path} also holds {strange[0]!r}, so it is not replaced; name another folder, or "
            "move that away."
        )


def output_folder(path: Path) -> Path:
    """Create an output folder if needed and return it; raises as :func:`require_folder`."""
    require_folder(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, which is renamed to ``path`` when the block succeeds.

    An existing folder of that name is replaced, and so is a link: nothing is written or deleted in
    the folder that it leads to. If the block raises or the process is killed, the
    previous folder is untouched. Between the two renames of a replacement the previous folder has a
    working name; :func:`recover_folder` restores it after a crash at that moment.

    Raises:
        BusyError: another process fills a folder of this name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = working_name(path, "partial")
    previous = working_name(path, "previous")
    with _working_folder(partial, path):
        recover_folder(path)
        try:
            yield partial
            _sync_tree(partial)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            _name_place(error, path)
            raise
        if os.path.lexists(path):
            os.rename(path, previous)
        os.rename(partial, path)
        _sync_folder(path.parent)
        with suppress(OSError):  # the next replacement says so, before it begins
            remove(previous)


@contextmanager
def _working_folder(partial: Path, path: Path) -> Iterator[None]:
    """Make an empty folder, and hold its lock, which follows it when it is renamed.

    Raises:
        BusyError: another process holds it; what one that was killed has left is deleted.
    """
    descriptor: int | None = None
    for _ in range(_ATTEMPTS):
        with suppress(FileExistsError):
            partial.mkdir()
            if (descriptor := _locked_folder(partial, path)) is not None:
                break
            continue  # another process took it for a leftover
        if (leftover := _locked_folder(partial, path)) is not None:
            try:
                remove(partial)
            finally:
                os.close(leftover)
    if descriptor is None:
        raise _is_written(path)
    try:
        yield
    finally:
        os.close(descriptor)


def _locked_folder(partial: Path, path: Path) -> int | None:
    """Open and lock a folder; return its descriptor, or None if it is another or gone by then."""
    try:
        descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError:  # a link, a file or a pipe from elsewhere, or a folder that may not be read
        remove(partial)
        return None
    try:
        lock(descriptor)
        if os.path.samestat(os.fstat(descriptor), os.lstat(partial)):
            return descriptor
    except BlockingIOError:
        os.close(descriptor)
        raise _is_written(path) from None
    except FileNotFoundError:
        pass
    os.close(descriptor)
    return None


def _is_written(path: Path) -> BusyError:
    return BusyError(f"Another process is writing {path}; wait for it, or choose another name.")


def lock(descriptor: int, shared: bool = False) -> bool:
    """Take the lock of an open file or folder, which ends when it is closed, or the process ends.

    Args:
        shared: others may hold it too, if they share it.

    Returns:
        False: its file system has no locks.

    Raises:
        BlockingIOError: another process, or another descriptor, has it.
    """
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno == errno.EACCES:  # how some network file systems say it
            raise BlockingIOError(error.errno, error.strerror) from error
        return False
    return True


def remove(path: Path) -> None:
    """Delete a folder, also one that was made read-only; of a link only the link.

    Raises:
        OSError: something in it may not be deleted.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        try:
            shutil.rmtree(path)
        except PermissionError:
            path.chmod(0o700)
            for parent, names, _ in os.walk(path):
                for name in names:
                    if not os.path.islink(folder := os.path.join(parent, name)):
                        os.chmod(folder, 0o700)
            shutil.rmtree(path)


def existing_folder(path: Path) -> Path:
    """Return the folder of a name, or its working copy while it is being replaced.

    For readers, which must not rename anything that a writer may be renaming.
    """
    if os.path.exists(path):  # unlike Path.exists, it takes a name of any length
        return path
    previous = working_name(path, "previous")
    return previous if os.path.exists(previous) else path


def recover_folder(path: Path) -> None:
    """Finish or undo a replacement that was interrupted between its two renames; for writers."""
    previous = working_name(path, "previous")
    if not os.path.lexists(previous):
        return
    if os.path.lexists(path):
        remove(previous)
    else:
        os.rename(previous, path)


def _sync_tree(folder: Path) -> None:
    """Write a folder through to the disk, and let its files have the permissions of the umask.

    Libraries that write to a temporary file first leave it readable by its owner alone.
    """
    permissions = folder.stat().st_mode & 0o666  # of a folder made a moment ago
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fchmod(file.fileno(), permissions)
                os.fsync(file.fileno())
        _sync_folder(Path(parent))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(folder: Path, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a folder, such as a run; it is released when its process ends.

    Args:
        shared: as of :func:`lock`.

    Raises:
        BusyError: another process holds it.
        ConfigError: ``.lock`` is no file: a link would lead to another file, and opening a pipe may
            wait without end.
    """
    path = folder / LOCK
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ConfigError(f"{path} is not a regular file; delete it, and run the command again.")
    with open(path, "a+") as file:  # network file systems lock what is open for reading and writing
        try:
            has_lock = lock(file.fileno(), shared)
        except BlockingIOError:
            raise BusyError(
                f"Another process is running in {folder}; wait for it, or choose another folder."
            ) from None
        if not has_lock:
            logger.warning(
                "The file system of %s has no locks; let no other process run in it.", folder
            )
        yield


def reserve(descriptor: int, n_bytes: int) -> None:
    """Reserve the space of a file that will be written, where the system can.

    What is written then takes two thirds of the time (ext4), and a full disk is told at once.

    Raises:
        OSError: there is not so much space.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, n_bytes)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENODEV):
                raise
