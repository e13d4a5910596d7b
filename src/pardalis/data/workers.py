"""Who encodes: this process, others on this machine, or actors of a Ray cluster.

Blocks are read in order by one process and encoded by workers, each by one of them. A worker that
is killed costs its block, which another encodes. On a CPU a worker computes with one thread, since
the last bits of a convolution depend on the number of threads; so many workers, and not many
threads, use a machine.
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
from typing import Any, Protocol, runtime_checkable

import torch

from pardalis.config import check_at_least
from pardalis.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_BLOCKS_PER_WORKER = 2  # below that a worker is not worth its start
_MOST_DEATHS = 2  # of workers with the same block


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """How many workers encode, and where. It decides the time that this takes, and no result.

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


@dataclass(frozen=True, slots=True)
class Work:
    """Some documents in succession, which one worker encodes."""

    number: int
    groups: list[Any]
    omissions: tuple[Any, ...]  # what is left out of them, or of what precedes them
    made_from: str  # fingerprint of everything that decides its block
    named: str  # which documents they are, for messages


@dataclass(frozen=True, slots=True)
class Made:
    """The file of a block, and what to show of it."""

    number: int
    content: bytes
    groups: int
    images: int
    rejected: int


@runtime_checkable
class Encoder(Protocol):
    """What a worker has; it can be pickled."""

    @property
    def device(self) -> torch.device: ...

    def encode(self, work: Work) -> Made: ...

    def to(self, device: torch.device | str) -> "Encoder":
        """Move to a device, and return this."""


class WorkerDiedError(Exception):
    """A worker has ended without a result; the text says how, as the end of a sentence."""


class Worker(ABC):
    """One who encodes a block at a time."""

    name: str

    @abstractmethod
    def send(self, work: Work) -> None:
        """Begin to encode, and do not wait."""

    @abstractmethod
    def result(self) -> Made:
        """Return what it has encoded; raises WorkerDiedError."""


class Pool(ABC):
    """Where workers are."""

    @abstractmethod
    def jobs(self, wanted: int | None, n_blocks: int) -> int:
        """Return how many workers to start."""

    @abstractmethod
    def start(self, number: int) -> Worker:
        """Start a worker, which a message calls by its number."""

    @abstractmethod
    def wait(self, workers: Sequence[Any]) -> Sequence[Any]:
        """Wait until some workers have a result or have died, and return them."""

    @abstractmethod
    def close(self) -> None:
        """End all workers."""


def encode_all(
    encoder: Encoder, work: Iterator[Work], n_blocks: int, workers: Workers
) -> Generator[Made, None, None]:
    """Encode blocks and yield them as they are made, not in order.

    Args:
        n_blocks: how many ``work`` has.

    Raises:
        DataError: two workers died with the same block.
        ConfigError: the engine is not installed.
    """
    pool = ENGINES[workers.engine](encoder)
    jobs = pool.jobs(workers.jobs, n_blocks)
    if workers.engine == "processes" and jobs == 1:
        with suppress(StopIteration):
            for each in work:
                with one_thread(encoder.device):
                    made = encoder.encode(each)
                yield made
        return
    try:
        yield from _encode_in(pool, jobs, work)
    finally:
        pool.close()


def _encode_in(pool: Pool, jobs: int, work: Iterator[Work]) -> Iterator[Made]:
    started = jobs
    idle = [pool.start(number) for number in range(1, jobs + 1)]
    busy: dict[int, tuple[Worker, Work]] = {}
    deaths: Counter[int] = Counter()
    again: deque[Work] = deque()
    ahead = next(work, None)  # read while the workers are busy
    while ahead is not None or busy:
        while idle and ahead is not None:
            worker = idle.pop()
            worker.send(ahead)
            busy[id(worker)] = worker, ahead
            ahead = again.popleft() if again else next(work, None)
        for worker in pool.wait([each for each, _ in busy.values()]):
            _, its = busy.pop(id(worker))
            try:
                made = worker.result()
            except WorkerDiedError as died:
                deaths[its.number] += 1
                _tell(worker, its, died, deaths[its.number])
                started += 1
                idle.append(pool.start(started))
                again.append(its)
                if ahead is None:
                    ahead = again.popleft()
                continue
            idle.append(worker)
            yield made


def _tell(worker: Worker, work: Work, died: WorkerDiedError, deaths: int) -> None:
    """Say that a worker has died; raises DataError if another is not to try its block again."""
    what = f"{worker.name} {died} while it encoded {work.named}"
    if deaths == _MOST_DEATHS:
        raise DataError(
            f"{what}, as another did before. What is encoded is kept. If memory is short, use "
            "fewer jobs or a smaller prepare.block_documents, and prepare again."
        ) from died
    logger.warning("%s; another encodes them again.", what)


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

    def __init__(self, context: Any, number: int, encoder: Encoder, device: str) -> None:
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, encoder, device), name=f"prepare-{number}", daemon=True
        )
        self._process.start()
        theirs.close()
        self.name = f"Worker {number} (process {self._process.pid})"

    def send(self, work: Work) -> None:
        with suppress(OSError):  # it has died, as its result will say
            self.pipe.send(work)

    def result(self) -> Made:
        try:
            found = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise WorkerDiedError(_ending(self._process.exitcode)) from None
        if isinstance(found, str):
            raise RuntimeError(f"{self.name} failed:\n{found}")
        return found

    def end(self) -> None:
        self.pipe.close()
        self._process.terminate()
        self._process.join()


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


class Processes(Pool):
    """Workers of this machine, started by a fork server that has imported what they need."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, "pardalis.data.prepare"])
        self._workers: list[_Process] = []

    def jobs(self, wanted: int | None, n_blocks: int) -> int:
        if wanted is None:
            is_cpu = self._encoder.device.type == "cpu"
            wanted = len(os.sched_getaffinity(0)) if is_cpu else max(1, torch.cuda.device_count())
            n_blocks //= _BLOCKS_PER_WORKER
        return max(1, min(wanted, n_blocks))

    def start(self, number: int) -> _Process:
        device = self._encoder.device
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", (number - 1) % torch.cuda.device_count())
        worker = _Process(self._context, number, self._encoder, str(device))
        self._workers.append(worker)
        return worker

    def wait(self, workers: Sequence[_Process]) -> Sequence[_Process]:
        ready = connection.wait([worker.pipe for worker in workers])
        return [worker for worker in workers if worker.pipe in ready]

    def close(self) -> None:
        for worker in self._workers:
            worker.end()


def _serve(pipe: connection.Connection, encoder: Encoder, device: str) -> None:
    """Encode what comes until the other end of the pipe is closed, or its process has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent acts
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    encoder = encoder.to(device)
    with suppress(EOFError, OSError), one_thread(encoder.device):
        while True:
            work = pipe.recv()
            try:
                answer: Made | str = encoder.encode(work)
            except Exception:
                answer = traceback.format_exc()
            pipe.send(answer)


def _ray(encoder: Encoder) -> Pool:
    from pardalis.data.ray_workers import Actors

    return Actors(encoder)


ENGINES: dict[str, Callable[[Encoder], Pool]] = {"processes": Processes, "ray": _ray}

ONE_WORKER = Workers(jobs=1)
