"""The library of step.cpp: found or compiled once, and loaded.

It has no dependency but the C++ standard library, so one call of a compiler takes a few seconds. A
library that a package brings, ``step-<processor>.so`` beside this file, is used as it is. Else the
folder ``pardalis/native`` in the user's cache keeps what was compiled, by the source and the
command. Nothing is compiled at import.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from pardalis.files import read_bytes
from pardalis.inference.native.structs import Batch, Matrix, Model

_logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("step.cpp")
TIME_LIMIT_S = 120.0  # of the compiler; it takes about 4 seconds
_SHOWN = 400  # characters of what a compiler says
_OPTIONS = ["-std=c++17", "-O3", "-shared", "-fPIC", "-pthread"]
_PROCESSORS = {  # by machine and by torch's name of what the processor can do
    ("x86_64", "AVX512"): ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
    ("x86_64", "AVX2"): ["-mavx2", "-mfma"],
    ("aarch64", "DEFAULT"): [],
    ("arm64", "DEFAULT"): [],
}
# Operations of a product from which a second thread is worth its start.
_OPERATIONS_A_THREAD = 8_000_000


class NoLibrary(Exception):
    """Why there is no library, in one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class Library:
    """The functions of step.cpp."""

    path: Path
    handle: ctypes.CDLL

    def decode(self, model: Model, batch: Batch, threads: int) -> bool:
        """Run the steps of a batch; False: there was no memory, and nothing has changed."""
        done: int = self.handle.pardalis_decode(
            ctypes.byref(model), ctypes.byref(batch), ctypes.c_int64(threads)
        )
        return done == 0

    def product(self, matrix: Matrix, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Multiply vectors by a matrix."""
        x = x.contiguous()
        output = x.new_empty(*x.shape[:-1], matrix.rows)
        n = x.numel() // matrix.width
        worth = 2 * n * matrix.rows * matrix.width // _OPERATIONS_A_THREAD
        threads = max(1, min(torch.get_num_threads(), worth))
        failed = self.handle.pardalis_product(
            ctypes.byref(matrix),
            ctypes.c_void_p(x.data_ptr()),
            ctypes.c_int64(n),
            ctypes.c_void_p(output.data_ptr()),
            ctypes.c_int64(threads),
        )
        if failed:
            raise MemoryError("a thread could not be started")
        return output

    def is_finite(self, matrix: Matrix) -> bool:
        """Return whether no number of a matrix of floats is infinite or NaN."""
        found: int = self.handle.pardalis_finite(ctypes.byref(matrix))
        return found == 1


_lock = threading.Lock()
_found: dict[tuple[str, ...], Library | NoLibrary] = {}


def library() -> Library:
    """Return the library for this processor; compile it the first time.

    Raises:
        NoLibrary: there is none, and none can be compiled; the same for as long as the process
            lives and its compiler and cache stay.
    """
    command, folder = _command(), cache_folder()
    key = (*command, str(folder))
    with _lock:
        if key not in _found:
            try:
                _found[key] = _loaded(command, folder)
            except NoLibrary as error:
                _found[key] = error
        found = _found[key]
    if isinstance(found, NoLibrary):
        raise found
    return found


def outlook() -> str:
    """Return how engines decode on this machine's CPU, without compiling anything."""
    try:
        _command()
    except NoLibrary as error:
        return f"decodes in torch; several times as fast in C++, but {error}"
    return "decodes in C++, which is compiled when it is first needed"


def processor() -> str:
    """Return torch's name of what this processor can do."""
    return torch.backends.cpu.get_cpu_capability()


def cache_folder() -> Path:
    """Return the folder that keeps compiled libraries."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pardalis" / "native"


def _command() -> list[str]:
    """Return the command of the compiler, without files.

    Raises:
        NoLibrary: there is no compiler, or the processor is none of those above.
    """
    machine, name = platform.machine(), processor()
    options = _PROCESSORS.get((machine, name))
    if options is None:
        raise NoLibrary(f"the processor ({machine}, {name}) has neither AVX2 nor NEON")
    if _prebuilt().is_file():
        return []
    compiler = shlex.split(os.environ.get("CXX", ""))
    if not compiler:
        names = ("c++", "g++", "clang++")
        compiler = [path for name in names if (path := shutil.which(name))][:1]
    if not compiler:
        raise NoLibrary(
            "no C++ compiler was found; install one (g++ or clang++), or name it in the "
            "environment variable CXX"
        )
    return [*compiler, *_OPTIONS, *options]


def _prebuilt() -> Path:
    return SOURCE.with_name(f"step-{platform.machine()}-{processor().lower()}.so")


def _loaded(command: list[str], folder: Path) -> Library:
    if not command:
        return _open(_prebuilt())
    digest = hashlib.sha256(read_bytes(SOURCE) + "\0".join(command).encode()).hexdigest()
    path = folder / f"step-{digest[:16]}.so"
    try:
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _compile(command, path)
        status = path.stat()
    except OSError as error:
        raise NoLibrary(
            f"{folder} cannot keep the compiled library ({error.strerror or error}); make it "
            "writable, or set XDG_CACHE_HOME"
        ) from error
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NoLibrary(f"{path} is not of this user alone; delete it")
    return _open(path)


def _compile(command: list[str], path: Path) -> None:
    """Compile the source; the library appears whole, or not at all."""
    _logger.info("Compiling the decoding step for this processor; this takes some seconds, once.")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".compiling-") as made:
        output, log = Path(made) / path.name, Path(made) / "log"
        with open(log, "wb") as said:
            try:
                compiler = subprocess.Popen(
                    [*command, str(SOURCE), "-o", str(output)],
                    stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise NoLibrary(
                    f"the compiler {command[0]} cannot be started ({error.strerror}); set CXX to "
                    "one that can"
                ) from error
            try:
                code = compiler.wait(TIME_LIMIT_S)
            except BaseException as error:
                os.killpg(compiler.pid, signal.SIGKILL)  # the compiler and what it has started
                compiler.wait()
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                raise NoLibrary(
                    f"the compiler {command[0]} took more than {TIME_LIMIT_S:g} seconds; set CXX "
                    "to one that works"
                ) from error
        if code or not output.is_file():
            with open(log, "rb") as said:
                text = " ".join(said.read(_SHOWN).decode(errors="replace").split())
            raise NoLibrary(
                f"the compiler {command[0]} failed with exit code {code} ({text or 'no message'}); "
                "set CXX to one that works"
            )
        output.chmod(0o700)
        os.replace(output, path)


def _open(path: Path) -> Library:
    try:
        handle = ctypes.CDLL(str(path))
        for name in ("decode", "finite", "product"):
            getattr(handle, f"pardalis_{name}")
    except (OSError, AttributeError) as error:
        raise NoLibrary(f"{path} cannot be loaded ({error}); delete it") from error
    return Library(path, handle)
