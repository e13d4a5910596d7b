"""Who works: this process, others on this machine, or actors of a Ray cluster.

What is to be done (:class:`Task`) is divided into pieces of work, such as the blocks of a source,
and a worker does one at a time. One that is killed costs its piece, which another does. On a CPU a
worker computes with one thread, since the last bits of a convolution depend on the number of
threads; so many workers, and not many threads, use a machine.
"""

import logging
import multiprocessing
import os
import signal
import traceback
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from pardalis.config import check_at_least
from pardalis.devices import n_processors
from pardalis.errors import ConfigError, DataError, PardalisError

logger = logging.getLogger(__name__)

_BLOCKS_PER_WORKER = 2  # below that a worker is not worth its start
_MOST_DEATHS = 2  # of workers with the same piece of work


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """How many workers prepare, and where. It decides the time that this takes, and no result.

    Attributes:
        jobs: workers; None: one for each CPU or GPU, as far as there is work for them.
        engine: ``processes`` of this machine, or actors of the cluster of ``ray`` that
            ``RAY_ADDRESS`` names, or else that of this machine.
        joins_only: nothing is encoded; all blocks must be there.
    """

    jobs: int | None = None
    engine: str = "processes"
    joins_only: bool = False

    def __post_init__(self) -> None:
        if self.jobs is not None:
            check_at_least(self, jobs=1)
        if self.engine not in ENGINES:
            known = " or ".join(map(repr, ENGINES))
            raise ConfigError(f"engine must be {known}, got {self.engine!r}.")


@runtime_checkable
class Work(Protocol):
    """A piece of work, which one worker does; it can be pickled."""

    @property
    def number(self) -> int: ...

    @property
    def named(self) -> str:
        """What it is about, for messages."""


Piece = TypeVar("Piece", bound=Work)
Given = TypeVar("Given", bound=Work, contravariant=True)
Done = TypeVar("Done", covariant=True)


@runtime_checkable
class Task(Protocol[Given, Done]):
    """What a worker has; it can be pickled.

    Attributes:
        did: what workers did with a piece of work that is not done, as a verb.
        advice: what to do if that ends worker after worker, as a sentence.
    """

    did: str
    advice: str

    @property
    def device(self) -> torch.device: ...

    def do(self, work: Given, /) -> Done: ...

    def to(self, device: torch.device | str) -> "Task[Given, Done]":
        """Move to a device, and return this."""


class WorkerDiedError(Exception):
    """A worker has ended without a result; the text says how, as the end of a sentence."""


class Worker(ABC):
    """One who does a piece of work at a time."""

    name: str

    @abstractmethod
    def send(self, work: Work) -> None:
        """Begin with a piece of work, and do not wait."""

    @abstractmethod
    def result(self) -> Any:
        """Return what it has done.

        Raises:
            WorkerDiedError: it has ended.
            PardalisError: what doing it raised.
        """


class Pool(ABC):
    """Where workers are."""

    @abstractmethod
    def jobs(self, wanted: int | None, n: int) -> int:
        """Return how many workers to start for ``n`` pieces of work."""

    @abstractmethod
    def start(self, number: int) -> Worker:
        """Start a worker, which a message calls by its number."""

    @abstractmethod
    def wait(self, workers: Sequence[Any]) -> Sequence[Any]:
        """Wait until some workers have a result or have died, and return them."""

    @abstractmethod
    def close(self) -> None:
        """End all workers."""


def do_all(
    task: Task[Piece, Done], work: Iterator[Piece], n: int, workers: Workers
) -> Generator[Done, None, None]:
    """Do pieces of work and yield what comes of them as they are done, not in order.

    Args:
        n: how many ``work`` has.

    Raises:
        PardalisError: what doing one raised.
        DataError: two workers died with the same piece.
        ConfigError: the engine is not installed.
    """
    pool = ENGINES[workers.engine](task)
    jobs = pool.jobs(workers.jobs, n)
    if workers.engine == "processes" and jobs == 1:
        with suppress(StopIteration):
            for each in work:
                with one_thread(task.device):
                    done = task.do(each)
                yield done
        return
    try:
        yield from _do_in(pool, task, jobs, work)
    finally:
        pool.close()


def _do_in(pool: Pool, task: Task[Any, Done], jobs: int, work: Iterator[Work]) -> Iterator[Done]:
    started = jobs
    idle = [pool.start(number) for number in range(1, jobs + 1)]
    busy: dict[int, tuple[Worker, Work]] = {}
    deaths: Counter[int] = Counter()
    again: deque[Work] = deque()

    def following() -> Work | None:
        return again.popleft() if again else next(work, None)

    ahead = following()  # made while the workers are busy
    while ahead is not None or busy:
        while idle and ahead is not None:
            worker = idle.pop()
            worker.send(ahead)
            busy[id(worker)] = worker, ahead
            ahead = following()
        for worker in pool.wait([each for each, _ in busy.values()]):
            _, its = busy.pop(id(worker))
            try:
                done = worker.result()
            except WorkerDiedError as died:
                deaths[its.number] += 1
                what = f"{worker.name} {died} while it {task.did} {its.named}"
                if deaths[its.number] == _MOST_DEATHS:
                    raise DataError(f"{what}, as another did before. {task.advice}") from died
                logger.warning("%s; another does that again.", what)
                started += 1
                idle.append(pool.start(started))
                again.append(its)
            else:
                if ahead is None:
                    idle.append(worker)
                else:  # before what is done is written, so that it does not wait
                    worker.send(ahead)
                    busy[id(worker)] = worker, ahead
                    ahead = None
                yield done
            if ahead is None:
                ahead = following()


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Compute with one thread on a CPU, as every worker does."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ── processes ────────────────────────────────────────────────────────────────────────────────────


class _Process(Worker):
    """A process of this machine."""

    def __init__(self, context: Any, number: int, task: Task[Any, Any], device: str) -> None:
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve,
            args=(theirs, task, device, os.getcwd()),
            name=f"prepare-{number}",
            daemon=True,
        )
        self._process.start()
        theirs.close()
        self.name = f"Worker {number} (process {self._process.pid})"

    def send(self, work: Work) -> None:
        with suppress(OSError):  # it has died, as its result will say
            self.pipe.send(work)

    def result(self) -> Any:
        try:
            found = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise WorkerDiedError(_ending(self._process.exitcode)) from None
        if isinstance(found, _Failed):
            raise found.error or RuntimeError(f"{self.name} failed:\n{found.text}")
        return found

    def end(self) -> None:
        self.pipe.close()
        self._process.terminate()
        self._process.join()


@dataclass(frozen=True, slots=True)
class _Failed:
    """What a worker sends in the place of what it would have done."""

    text: str  # with the places in the code
    error: PardalisError | None  # which says all by itself

    @classmethod
    def of(cls, error: Exception) -> "_Failed":
        """Describe an error; one of ours becomes that of its classes which any process can make."""
        ours = PardalisError.__module__
        kinds = [each for each in type(error).__mro__ if each.__module__ == ours]
        kind = next((each for each in kinds if each.__init__ is Exception.__init__), None)
        return cls(traceback.format_exc(), None if kind is None else kind(str(error)))


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


class Processes(Pool):
    """Workers of this machine, started by a fork server that has imported what they need."""

    def __init__(self, task: Task[Any, Any]) -> None:
        self._task = task
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, "pardalis.data.prepare"])
        self._workers: list[_Process] = []

    def jobs(self, wanted: int | None, n: int) -> int:
        if wanted is None:
            is_cpu = self._task.device.type == "cpu"
            wanted = n_processors() if is_cpu else max(1, torch.cuda.device_count())
            n //= _BLOCKS_PER_WORKER
        return max(1, min(wanted, n))

    def start(self, number: int) -> _Process:
        device = self._task.device
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", (number - 1) % torch.cuda.device_count())
        worker = _Process(self._context, number, self._task, str(device))
        self._workers.append(worker)
        return worker

    def wait(self, workers: Sequence[_Process]) -> Sequence[_Process]:
        ready = connection.wait([worker.pipe for worker in workers])
        return [worker for worker in workers if worker.pipe in ready]

    def close(self) -> None:
        for worker in self._workers:
            worker.end()


def _serve(pipe: connection.Connection, task: Task[Any, Any], device: str, folder: str) -> None:
    """Do what comes until the other end of the pipe is closed, or its process has ended.

    Args:
        folder: what paths are relative to; the one that a process begins in was fixed earlier.
    """
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent acts
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    task = task.to(device)
    with suppress(EOFError, OSError), one_thread(task.device):
        while True:
            work = pipe.recv()
            try:
                answer = task.do(work)
            except Exception as error:
                answer = _Failed.of(error)
            pipe.send(answer)


def _ray(task: Task[Any, Any]) -> Pool:
    from pardalis.data.ray_workers import Actors

    return Actors(task)


ENGINES: dict[str, Callable[[Task[Any, Any]], Pool]] = {"processes": Processes, "ray": _ray}

ONE_WORKER = Workers(jobs=1)
