"""What ranks leave for each other in torchrun's store: messages, signs of life, and one last word.

When a rank fails, all that the others see is a connection that closes, each in its own way. So the
first rank that fails claims the word: it alone reports, and the others end without one. A rank that
ends or hangs in silence cannot; then those who wait for it say what is known of it.
"""

import atexit
import json
import os
import pickle
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

# torch.distributed is imported where it is used: it is slow to import.

_BEAT_SECONDS = 1.0
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 2.0  # for whoever caused a broken connection to say so
_COMING_TOGETHER = timedelta(minutes=10)  # some machines start later than others
_PACKAGE = str(Path(__file__).parents[1])
_LIBRARIES = (str(Path(os.__file__).parent), str(Path(torch.__file__).parents[1]))

# What PyTorch's backends say when another rank is gone or silent; gloo's errors have no class.
_BROKEN = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "Timed out")


class Watch:
    """A rank's place in the store.

    Attributes:
        store: of this attempt; torchrun keeps one store for all its restarts.
        step: updates that the rank has done; set by the loop.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self._told = 0
        self.step = 0
        self._main = threading.get_ident()
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, args=(store.clone(),), daemon=True)
        self._beating.start()

    @property
    def step(self) -> int:
        return self._step

    @step.setter
    def step(self, value: int) -> None:
        self._step, self._since = value, time.monotonic()

    def close(self) -> None:
        """Give no more signs of life."""
        self._over.set()
        self._beating.join()  # inside PyTorch when Python ends, it would abort the process

    def tell(self, message: Any) -> Any:
        """Return what the first rank says, in all of them, after whatever time.

        Raises:
            SystemExit: another rank has failed meanwhile, and says why.
        """
        key = f"told/{self._told}"
        self._told += 1
        if self.rank == 0:
            self.store.set(key, pickle.dumps(message))
        while not self.store.check([key]):
            if self.store.check(["word"]):
                raise SystemExit(1)
            time.sleep(_POLL_SECONDS)
        return pickle.loads(self.store.get(key))

    def last_word(self, error: BaseException) -> BaseException:
        """Return what this rank ends with: an error to report, or a silent exit.

        The process ends at once after that; connections that wait for others are not closed.
        """
        if isinstance(error, SystemExit):
            return self._silent(error)
        _outlast_torchrun()
        try:
            return self._word(error)
        except RuntimeError:  # the store is gone, and with it the rank that has the word
            return self._silent(error)

    def _word(self, error: BaseException) -> BaseException:
        if is_broken_connection(error):
            self.store.set(f"broken/{self.rank}", b"")
            error = TrainingError(self._diagnosis(error))
        elif self.rank > 0:
            time.sleep(_GRACE_SECONDS / 4)  # what all have found, the first one says
            if isinstance(error, PardalisError):
                error.args = (f"rank {self.rank} of {self.size}: {error}",)
            else:
                error.add_note(f"This was rank {self.rank} of {self.size}.")
        if self.store.add("word", 1) > 1:
            return self._silent(error)
        is_interrupt = isinstance(error, KeyboardInterrupt)
        code = 128 + signal.SIGINT if is_interrupt else getattr(error, "exit_code", 1)
        _end_with(
            code, f"{error}" if isinstance(error, PardalisError) else f"{error!r}", time.time()
        )
        return error

    def _silent(self, error: BaseException) -> SystemExit:
        # torchrun names the earliest failure as the cause of all.
        _end_with(1, "ended since another rank failed", time.time() + 60)
        return SystemExit(1)

    def _diagnosis(self, error: BaseException) -> str:
        """Say which rank is missing, once those who miss it have come together."""
        before = self._beats()
        deadline = time.monotonic() + _GRACE_SECONDS + _BEAT_SECONDS
        while time.monotonic() < deadline and not self.store.check(["word"]):
            time.sleep(_POLL_SECONDS)
        missing = [r for r in range(self.size) if not self.store.check([f"broken/{r}"])]
        if not missing:
            return f"The {self.size} ranks lost each other: {str(error).splitlines()[0]}"
        now = self._beats()
        rank = min(missing, key=lambda r: now[r]["n"] != before[r]["n"])  # the silent one, if any
        is_alive = now[rank]["n"] != before[rank]["n"]
        seconds = f"{time.monotonic() - self._since:.0f} s"
        if is_alive:
            finding = (
                f"has not finished its step after {seconds}, while others wait for it at "
                f"{_place(_frame_of(error))}; it is at {now[rank]['place']}"
            )
        elif "imed out" in str(error):
            finding = f"does not answer after {seconds}; its process or machine stands still"
        else:
            finding = "ended without a word; it was killed, for want of memory perhaps"
        return (
            f"rank {rank} of {self.size}, at step {self._step + 1}, {finding}. "
            "The same command goes on from the last checkpoint."
        )

    def _beat(self, store: Any) -> None:
        n = 0
        while True:
            frame = sys._current_frames().get(self._main)
            beat = {"n": n, "place": _place(frame)}
            try:
                store.set(f"beat/{self.rank}", json.dumps(beat))
            except RuntimeError:  # the store is gone
                return
            if self._over.wait(_BEAT_SECONDS):
                return
            n += 1

    def _beats(self) -> list[dict[str, Any]]:
        none = json.dumps({"n": 0, "place": "an unknown place"})
        keys = [f"beat/{rank}" for rank in range(self.size)]
        return [json.loads(self.store.get(k) if self.store.check([k]) else none) for k in keys]


def open_watch() -> Watch:
    """Return this rank's place in the store that torchrun names, once all ranks are there."""
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", timeout=_COMING_TOGETHER))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"pardalis/{attempt}", store)
    watch = Watch(store, rank, size)
    store.wait([f"beat/{other}" for other in range(size)], _COMING_TOGETHER)
    return watch


def is_broken_connection(error: BaseException) -> bool:
    """Return whether an error says only that another rank is gone or silent."""
    from torch.distributed import DistError

    if isinstance(error, DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _BROKEN)


def _place(frame: FrameType | None) -> str:
    """Return where a call stack is, as far as it is not in libraries."""
    while frame is not None and _is_of_library(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None:
        return "an unknown place"
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_name})"


def _is_of_library(path: str) -> bool:
    return path.startswith((*_LIBRARIES, "<")) and not path.startswith(_PACKAGE)


def _frame_of(error: BaseException) -> FrameType | None:
    """Return the frame that raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return None if trace is None else trace.tb_frame


def _outlast_torchrun() -> None:
    """Ignore SIGTERM: as soon as a rank is gone, torchrun sends it to those who would say so."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end_with(code: int, sentence: str, moment: float) -> None:
    """Leave a sentence for torchrun's summary, and end the process without closing connections."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        extra = {"py_callstack": sentence, "timestamp": str(int(moment))}
        content = {"message": {"message": sentence, "extraInfo": extra}}
        Path(path).write_text(json.dumps(content))
    atexit.register(_leave, code)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
