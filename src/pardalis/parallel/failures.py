"""Messages, heartbeats and failure reports through torchrun's store.

When a rank fails, the others see only that a connection closes, and each backend says so in its
own way. The first rank that fails therefore claims the report: it prints one error, and the others
exit silently. A rank that is killed or hangs cannot report; then the ranks that wait for it do.
"""

import atexit
import json
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from pardalis.errors import PardalisError, TrainingError
from pardalis.files import parse_json

# torch.distributed is imported where it is used: it is slow to import.

_HEARTBEAT_SECONDS = 1.0
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 2.0  # for the rank that caused a broken connection to report first
_START_TIMEOUT = timedelta(minutes=10)  # some machines start later than others
_REPORTED = "reported"  # key that the first failed rank claims
_UNKNOWN = "an unknown location"
_PACKAGE = str(Path(__file__).parents[1])
_LIBRARIES = (str(Path(os.__file__).parent), str(Path(torch.__file__).parents[1]))

# Texts of errors that PyTorch's backends raise when another rank is gone; gloo has no class.
_BROKEN = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "Timed out")


class RankMonitor:
    """Sends this rank's heartbeats and finds out which rank failed.

    Attributes:
        store: the keys of this attempt; torchrun keeps one store for all its restarts.
        step: updates that this rank has done; set by the loop.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self._n_broadcasts = 0
        self.step = 0
        self._main = threading.get_ident()
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._send_heartbeats, args=(store.clone(),), daemon=True
        )
        self._thread.start()

    @property
    def step(self) -> int:
        return self._step

    @step.setter
    def step(self, value: int) -> None:
        self._step, self._since = value, time.monotonic()

    def close(self) -> None:
        """Stop the heartbeats."""
        self._closed.set()
        self._thread.join()  # a thread inside PyTorch at Python's exit would abort the process

    def broadcast(self, message: Any) -> Any:
        """Return the message of the first rank in every rank, without a timeout.

        A message is anything that can be written as JSON.

        Raises:
            SystemExit: another rank has failed meanwhile, and reports why.
        """
        key = f"broadcast/{self._n_broadcasts}"
        self._n_broadcasts += 1
        if self.rank == 0:
            self.store.set(key, json.dumps(message))
        while not self.store.check([key]):
            if self.store.check([_REPORTED]):
                raise SystemExit(1)
            time.sleep(_POLL_SECONDS)
        return parse_json(self.store.get(key))

    def final_error(self, error: BaseException) -> BaseException:
        """Return the exception that this rank ends with: an error to report, or a silent exit.

        The process is then ended without closing connections, which could wait for other ranks.
        """
        if isinstance(error, SystemExit):
            return self._silent_exit()
        _ignore_sigterm()
        try:
            return self._reported_error(error)
        except RuntimeError:  # the store is gone, and with it the rank that reports
            return self._silent_exit()

    def _reported_error(self, error: BaseException) -> BaseException:
        if is_broken_connection(error):
            self.store.set(f"disconnected/{self.rank}", b"")
            error = TrainingError(self._diagnosis(error))
        elif self.rank > 0:
            time.sleep(_GRACE_SECONDS / 4)  # an error of all ranks is reported by the first
            if isinstance(error, PardalisError):
                error.args = (f"rank {self.rank} of {self.size}: {error}",)
            else:
                error.add_note(f"This was rank {self.rank} of {self.size}.")
        if self.store.add(_REPORTED, 1) > 1:
            return self._silent_exit()
        is_interrupt = isinstance(error, KeyboardInterrupt)
        code = 128 + signal.SIGINT if is_interrupt else getattr(error, "exit_code", 1)
        _end_with(
            code, f"{error}" if isinstance(error, PardalisError) else f"{error!r}", time.time()
        )
        return error

    def _silent_exit(self) -> SystemExit:
        # torchrun names the earliest failure as the root cause, hence the later time.
        _end_with(1, "ended since another rank failed", time.time() + 60)
        return SystemExit(1)

    def _diagnosis(self, error: BaseException) -> str:
        """Say which rank is missing, after the ranks that miss it had time to say so."""
        before = self._heartbeats()
        deadline = time.monotonic() + _GRACE_SECONDS + _HEARTBEAT_SECONDS
        while time.monotonic() < deadline and not self.store.check([_REPORTED]):
            time.sleep(_POLL_SECONDS)
        missing = [r for r in range(self.size) if not self.store.check([f"disconnected/{r}"])]
        if not missing:
            return (
                f"The connection between the {self.size} ranks broke: {str(error).splitlines()[0]}"
            )
        now = self._heartbeats()
        rank = min(missing, key=lambda r: now[r]["n"] != before[r]["n"])  # without heartbeat first
        is_alive = now[rank]["n"] != before[rank]["n"]
        seconds = f"{time.monotonic() - self._since:.0f} s"
        if is_alive:
            finding = (
                f"has not finished its step after {seconds}, while others wait for it at "
                f"{_location(_frame_of(error))}; it is at {now[rank]['location']}"
            )
        elif "imed out" in str(error):
            finding = f"has not responded for {seconds}; its process or machine is suspended"
        else:
            finding = "ended without an error message; it was killed, perhaps for lack of memory"
        return (
            f"rank {rank} of {self.size}, at step {self._step + 1}, {finding}. "
            "The same command resumes from the last checkpoint."
        )

    def _send_heartbeats(self, store: Any) -> None:
        n = 0
        while True:
            frame = sys._current_frames().get(self._main)
            heartbeat = {"n": n, "location": _location(frame)}
            try:
                store.set(f"heartbeat/{self.rank}", json.dumps(heartbeat))
            except RuntimeError:  # the store is gone
                return
            if self._closed.wait(_HEARTBEAT_SECONDS):
                return
            n += 1

    def _heartbeats(self) -> list[dict[str, Any]]:
        none = json.dumps({"n": 0, "location": _UNKNOWN})
        keys = [f"heartbeat/{rank}" for rank in range(self.size)]
        return [parse_json(self.store.get(k) if self.store.check([k]) else none) for k in keys]


def open_monitor() -> RankMonitor:
    """Connect to the store that torchrun names, and wait until all ranks have."""
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", timeout=_START_TIMEOUT))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"pardalis/{attempt}", store)
    watch = RankMonitor(store, rank, size)
    store.wait([f"heartbeat/{other}" for other in range(size)], _START_TIMEOUT)
    return watch


def is_broken_connection(error: BaseException) -> bool:
    """Return whether an error says only that another rank is gone or does not respond."""
    from torch.distributed import DistError

    if isinstance(error, DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _BROKEN)


def _location(frame: FrameType | None) -> str:
    """Return the innermost line of a call stack that is not in a library."""
    while frame is not None and _is_of_library(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None:
        return _UNKNOWN
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_name})"


def _is_of_library(path: str) -> bool:
    return path.startswith((*_LIBRARIES, "<")) and not path.startswith(_PACKAGE)


def _frame_of(error: BaseException) -> FrameType | None:
    """Return the frame that raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return None if trace is None else trace.tb_frame


def _ignore_sigterm() -> None:
    """Ignore SIGTERM, which torchrun sends to the other ranks as soon as one is gone."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end_with(code: int, sentence: str, moment: float) -> None:
    """Write an error for torchrun's summary; end the process without closing connections."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        extra = {"py_callstack": sentence, "timestamp": str(int(moment))}
        content = {"message": {"message": sentence, "extraInfo": extra}}
        Path(path).write_text(json.dumps(content))
    atexit.register(_exit, code)


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
