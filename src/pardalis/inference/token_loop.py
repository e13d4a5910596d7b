"""The token loop: requests in, ids out, with steps on the device in between."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from pardalis.errors import ConfigError
from pardalis.inference.automaton import Automaton
from pardalis.inference.batches import BatchBuilder, kind_of, main_then_linked
from pardalis.inference.cache import PagedCache, Row, Rows
from pardalis.inference.config import EngineConfig
from pardalis.inference.request import Request
from pardalis.inference.scheduler import PassPlan, ScheduledRequest, Scheduler, TokenSequence
from pardalis.inference.speculation import WindowPolicy
from pardalis.inference.steps import DecodeBatch, Lanes, Steps
from pardalis.inference.weights import Head, packed
from pardalis.model import Decoder
from pardalis.tokens import Grammar, Phase, Rule

_FREE_ROWS = {"cpu": 16, "cuda": 128}  # ids that a pass reads for the price of few

FinishReason = Literal[
    "eos",  # the model ended its answer
    "turn",  # it ended its turn of a conversation
    "images",  # every image that was asked for is drawn
    "length",  # the room is used up
    "aborted",
]


@dataclass(frozen=True, slots=True)
class Progress:
    """What one step did for one request."""

    key: int  # of TokenLoop.submit
    ids: list[int]  # written since the last progress; may be empty
    finished: FinishReason | None = None


@dataclass(slots=True)
class LoopStatistics:
    """Counts since the loop was built."""

    passes: int = 0  # of the model over some rows
    prefilled_tokens: int = 0  # prompt ids that were computed
    reused_tokens: int = 0  # prompt ids whose keys and values were found in the cache
    generated_tokens: int = 0
    peak_rows: int = 0  # most rows that decoded in one pass, linked ones included
    preempted: int = 0  # times a request gave its memory to another
    guessed: int = 0  # image codes guessed ahead
    accepted: int = 0  # guesses that were right


class TokenLoop:
    """Answers many requests at once, id by id.

    Raises:
        RequestError: by :meth:`submit`: the request cannot be answered, or too many wait.
        GrammarError: by :meth:`submit`: a prompt is malformed.
    """

    def __init__(self, model: Decoder, grammar: Grammar, config: EngineConfig) -> None:
        self.grammar, self.config = grammar, config
        self.device = model.embedding.weight.device
        context, page_size = model.config.context, config.page_size
        n_ids = config.cache_tokens or config.max_slots * (context + page_size)
        n_pages = 1 + n_ids // page_size
        self.cache = _cache(model, n_pages, page_size)
        self.windows = WindowPolicy(
            config.window, _FREE_ROWS[self.device.type], grammar.codes_per_image
        )
        on_gpu = self.device.type == "cuda"
        self.overlap = on_gpu if config.overlap is None else config.overlap
        self.scheduler = Scheduler(
            config, n_pages, grammar, context, self.windows.largest, 1 + self.overlap
        )
        lanes = Lanes(config.max_slots, self.device)
        self.batches = BatchBuilder(grammar, lanes)
        self.steps = Steps(
            packed(model, config.weights),
            Head(model, grammar, config.weights),
            Automaton(grammar, self.device),
            lanes,
            config.compiled,
        )
        self.statistics = LoopStatistics()
        self._jobs: dict[int, ScheduledRequest] = {}
        self._aborted: list[int] = []
        self._flight: _Flight | None = None
        self._landed = 0.0  # when the last steps were looked at, on the clock of perf_counter

    def submit(self, request: Request, priority: int = 0) -> int:
        """Add a request and return its key; a higher priority goes first."""
        job = self.scheduler.submit(request, priority)
        self._jobs[job.key] = job
        return job.key

    def abort(self, key: int) -> None:
        """End a request; its last progress says ``aborted``. An unknown key is ignored."""
        if job := self._jobs.pop(key, None):
            self.scheduler.finish(job)
            self._aborted.append(key)

    def pause(self, key: int, paused: bool) -> None:
        """Hold a request back, or let it go on; nothing of it is lost meanwhile."""
        if job := self._jobs.get(key):
            self.scheduler.pause(job, paused)

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do before a request comes or goes on."""
        return self.scheduler.idle and not self._aborted and self._flight is None

    @property
    def keys(self) -> list[int]:
        """Requests that are not finished."""
        return list(self._jobs)

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        """Run the next passes of the model; return what they wrote."""
        progress = [Progress(key, [], "aborted") for key in self._aborted]
        self._aborted.clear()
        if self._flight is not None:
            return progress + self._land()
        plan = self.scheduler.plan()
        self.statistics.reused_tokens += plan.reused
        self.statistics.preempted += len(plan.preempted)
        if plan.prefill:
            progress += self._read(plan)
        elif plan.decode:
            self._flight = self._launch(plan)
            if not self.overlap:
                progress += self._land()
        return progress

    def _launch(self, plan: PassPlan) -> "_Flight":
        """Begin decoding steps."""
        window, steps = self._window(plan)
        n_ids = window * steps
        jobs = self.batches.ordered(plan.decode, n_ids)
        batch = self.batches.of(jobs, n_ids, window)
        streams = main_then_linked(jobs)
        self.statistics.peak_rows = max(self.statistics.peak_rows, len(streams))
        return self._run(jobs, streams, batch, steps, [len(stream.ids) for stream in streams])

    def _run(
        self,
        jobs: list[ScheduledRequest],
        streams: list[TokenSequence],
        batch: DecodeBatch,
        steps: int,
        n_ids: list[int],
    ) -> "_Flight":
        """Begin steps of a batch whose streams have at most so many ids."""
        most = [n + steps * batch.window_size for n in n_ids]
        rows = [Row(s.pages, batch.window_size, n) for s, n in zip(streams, most, strict=True)]
        start = time.perf_counter()
        written = self.steps.run(batch, Rows(self.cache, rows), steps)
        return _Flight(jobs, streams, batch, steps, most, _Copy(written), start)

    def _land(self) -> list[Progress]:
        """Look at what the steps in flight wrote, once the next ones are under way."""
        flight, following = self._flight, None
        assert flight is not None
        if self.overlap and self._steady(flight):
            following = self._run(
                flight.jobs, flight.streams, flight.batch, flight.steps, flight.most
            )
        self._flight = following
        progress = self._progress(flight.jobs, flight.written.on_host())
        self.statistics.passes += flight.steps
        if flight.batch.inside:
            self._observe(flight, sum(len(p.ids) for p in progress))
        return progress

    def _steady(self, flight: "_Flight") -> bool:
        """Whether more steps of the same rows make sense before the last are looked at."""
        n_ids = flight.steps * flight.batch.window_size
        as_before = main_then_linked(flight.jobs) == flight.streams and all(
            job.key in self._jobs and job.lanes and kind_of(job, 2 * n_ids) == kind_of(job, n_ids)
            for job in flight.jobs
        )
        if flight.batch.inside:
            as_before &= all(job.state.codes_left >= 2 * n_ids for job in flight.jobs)
        covered = all(
            len(stream.pages) * self.config.page_size >= most + n_ids
            for stream, most in zip(flight.streams, flight.most, strict=True)
        )
        return as_before and covered and not self.scheduler.crowded

    def _observe(self, flight: "_Flight", n_codes: int) -> None:
        """Record what the passes of a batch that only drew have settled, and in what time."""
        window = flight.batch.window_size
        now = time.perf_counter()
        seconds = now - max(flight.start, self._landed)
        self._landed = now
        self.windows.observe(len(flight.batch.lanes), window, n_codes, seconds)
        n_passes = flight.steps * len(flight.jobs)
        self.statistics.guessed += n_passes * (window - 1)
        self.statistics.accepted += max(n_codes - n_passes, 0) if window > 1 else 0

    def _window(self, plan: PassPlan) -> tuple[int, int]:
        """Return how many codes a pass may settle, and how many passes to run."""
        if any(len(job.main.ids) == len(job.request.prompt_ids) for job in plan.decode):
            return 1, 1  # nobody waits for the first id longer than it takes
        left = [job.state.codes_left for job in plan.decode]
        n_rows = sum(len(job.streams) for job in plan.decode)
        if min(left) == 0 or (window := self.windows.choose(n_rows)) == 1:
            return 1, plan.steps
        return window, min(plan.steps, -(-min(left) // window))

    def _read(self, plan: PassPlan) -> list[Progress]:
        """Read parts of prompts beside one decoding step."""
        jobs = self.batches.ordered(plan.decode, 1)
        rows = [Row(s.pages, 1, len(s.ids) + 1) for s in main_then_linked(jobs)]
        ids: list[int] = []
        columns: list[int] = []
        for stream, n in plan.prefill:
            start, stop = stream.computed, stream.computed + n
            rows.append(Row(stream.pages, n, stop))
            ids += stream.ids[start:stop]
            columns += range(start, stop)
        batch = self.batches.of(jobs, 1, 1) if jobs else None
        written = self.steps.read(batch, Rows(self.cache, rows), ids, columns)
        self.statistics.passes += 1
        self.statistics.prefilled_tokens += len(ids)
        for stream, n in plan.prefill:
            self.scheduler.read(stream, n)
        return [] if written is None else self._progress(jobs, written)

    def _progress(self, jobs: list[ScheduledRequest], written: torch.Tensor) -> list[Progress]:
        """Record what jobs wrote; end those that are over."""
        progress = []
        for job, row in zip(jobs, written.tolist(), strict=True):
            if job.key not in self._jobs:  # given up, or over, while the steps were under way
                continue
            ids = [token_id for token_id in row if token_id >= 0]
            self.scheduler.wrote(job, ids)
            self.statistics.generated_tokens += len(ids)
            finished: FinishReason | None = None
            if job.rule is Rule.NOTHING:
                self.scheduler.finish(job)
                del self._jobs[job.key]
                finished = _reason(job)
            progress.append(Progress(job.key, ids, finished))
        return progress


@dataclass(frozen=True, slots=True)
class _Flight:
    """Decoding steps that are under way."""

    jobs: list[ScheduledRequest]
    streams: list[TokenSequence]  # of the batch's rows
    batch: DecodeBatch
    steps: int
    most: list[int]  # ids that each stream has at most when they are done
    written: "_Copy"
    start: float  # on the clock of perf_counter


class _Copy:
    """A tensor on its way to the host."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.to("cpu", non_blocking=True)
        self.arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.arrived.record()

    def on_host(self) -> torch.Tensor:
        """Wait until it has arrived, but not for what was begun later."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.tensor


def _cache(model: Decoder, n_pages: int, page_size: int) -> PagedCache:
    """Return an empty cache; raises ConfigError where there is no memory for it."""
    try:
        return PagedCache(model.config, n_pages, page_size, model.embedding.weight)
    except (MemoryError, RuntimeError) as error:  # torch raises the second
        config, like = model.config, model.embedding.weight
        numbers = 2 * config.n_layers * config.n_kv_heads * config.d_head * n_pages * page_size
        raise ConfigError(
            f"Keys and values of {n_pages * page_size} ids take "
            f"{numbers * like.element_size() / 2**30:,.1f} GiB, which {like.device} does not have; "
            "lower max_slots or cache_tokens."
        ) from error


def _reason(job: ScheduledRequest) -> FinishReason:
    limits, state = job.request.limits, job.state
    if state.phase is Phase.DONE:
        return "eos" if state.budget else "length"  # the last id that fits is eos in any case
    if limits.one_turn and state.turns:
        return "turn"
    return "length" if limits.text else "images"


def generate_ids(
    model: Decoder,
    grammar: Grammar,
    requests: Sequence[Request],
    config: EngineConfig | None = None,
) -> list[list[int]]:
    """Answer requests together; return for each the ids that follow its prompt."""
    loop = TokenLoop(model, grammar, config or EngineConfig(max_waiting=len(requests)))
    answers: dict[int, list[int]] = {loop.submit(request): [] for request in requests}
    while not loop.idle:
        for progress in loop.step():
            answers[progress.key] += progress.ids
    return list(answers.values())
