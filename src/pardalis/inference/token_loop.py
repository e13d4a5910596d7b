"""The token loop: requests in, ids out, with steps on the device in between."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from pardalis.inference.automaton import NO_LIMIT, Automaton, RowLimits
from pardalis.inference.cache import PagedCache, Row, Rows
from pardalis.inference.config import EngineConfig
from pardalis.inference.guidance import Guide, largest_k
from pardalis.inference.request import Request
from pardalis.inference.sampling import Choice, Needs
from pardalis.inference.scheduler import Job, Plan, Scheduler, Stream
from pardalis.inference.steps import Batch, Group, Kind, Lanes, Links, Steps
from pardalis.inference.weights import Head, packed
from pardalis.model import Decoder
from pardalis.tokens import Grammar, Mode, Rule

FinishReason = Literal[
    "eos",  # the model ended its answer
    "turn",  # it ended its turn of a conversation
    "pictures",  # every picture that was asked for is drawn
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
    prefilled_ids: int = 0  # prompt ids that were computed
    reused_ids: int = 0  # prompt ids whose keys and values were found in the cache
    written_ids: int = 0
    preempted: int = 0  # times a request gave its memory to another
    guessed: int = 0  # picture codes guessed ahead
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
        n_ids = config.cache_ids or config.max_rows * (context + page_size)
        n_pages = 1 + n_ids // page_size
        self.cache = PagedCache(model.config, n_pages, page_size, model.embedding.weight)
        self.scheduler = Scheduler(config, n_pages, grammar, context)
        self.lanes = Lanes(config.max_rows, self.device)
        self.steps = Steps(
            packed(model, config.weights),
            Head(model, grammar, config.weights),
            Automaton(grammar, self.device),
            self.lanes,
        )
        self.statistics = LoopStatistics()
        self._jobs: dict[int, Job] = {}
        self._in_lane: dict[int, Stream] = {}  # whose state each lane holds
        self._aborted: list[int] = []

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
        return self.scheduler.idle and not self._aborted

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        """Run the next passes of the model; return what they wrote."""
        progress = [Progress(key, [], "aborted") for key in self._aborted]
        self._aborted.clear()
        plan = self.scheduler.plan()
        self.statistics.reused_ids += plan.reused
        self.statistics.preempted += len(plan.preempted)
        jobs = sorted(plan.decode, key=lambda job: _kind(job, plan.steps, self.grammar))
        batch = self._batch(jobs, plan.steps) if jobs else None
        streams = _main_then_linked(jobs)
        if plan.prefill:
            written = self._read(plan, batch, streams)
        elif batch is not None:
            rows = [Row(s.pages, 1, len(s.ids) + plan.steps) for s in streams]
            written = self.steps.run(batch, Rows(self.cache, rows), plan.steps)
        else:
            return progress
        self.statistics.passes += plan.steps
        for stream, n in plan.prefill:
            self.scheduler.read(stream, n)
            self.statistics.prefilled_ids += n
        if written is not None:
            for job, ids in zip(jobs, written.tolist(), strict=True):
                progress.append(self._progress(job, [i for i in ids if i >= 0]))
        return progress

    def _read(
        self, plan: Plan, batch: Batch | None, streams: list[Stream]
    ) -> "torch.Tensor | None":
        """Read parts of prompts beside one decoding step."""
        rows = [Row(s.pages, 1, len(s.ids) + 1) for s in streams]
        ids: list[int] = []
        columns: list[int] = []
        for stream, n in plan.prefill:
            start, stop = stream.computed, stream.computed + n
            rows.append(Row(stream.pages, n, stop))
            ids += stream.ids[start:stop]
            columns += range(start, stop)
        return self.steps.read(batch, Rows(self.cache, rows), ids, columns)

    def _progress(self, job: Job, ids: list[int]) -> Progress:
        """Record what a job wrote; end it if it is over."""
        self.scheduler.wrote(job, ids)
        self.statistics.written_ids += len(ids)
        if job.rule is not Rule.NOTHING:
            return Progress(job.key, ids)
        self.scheduler.finish(job)
        del self._jobs[job.key]
        return Progress(job.key, ids, _reason(job))

    # ── what the device is told ──────────────────────────────────────────────────────────────

    def _batch(self, jobs: list[Job], n_steps: int) -> Batch:
        """Put together rows that decode, those of a kind side by side."""
        for job in jobs:
            for stream in job.streams:
                self._enter_lane(job, stream)
        lanes = [stream.lane for stream in _main_then_linked(jobs)]
        kinds = [_kind(job, n_steps, self.grammar) for job in jobs]
        groups = []
        for kind in Kind:
            if n := kinds.count(kind):
                first = kinds.index(kind)
                rows = slice(first, first + n)
                groups.append(self._group(kind, rows, jobs[rows]))
        return Batch(
            torch.tensor(lanes, device=self.device), self._limits(jobs), groups, self._links(jobs)
        )

    def _enter_lane(self, job: Job, stream: Stream) -> None:
        if self._in_lane.get(stream.lane) is stream:
            return
        # A lane that the stream had before holds what is out of date.
        self._in_lane = {lane: s for lane, s in self._in_lane.items() if s is not stream}
        self._in_lane[stream.lane] = stream
        state = job.state
        self.lanes.write(
            stream.lane,
            {
                "mode": state.mode,
                "codes_left": state.codes_left,
                "pictures": state.pictures,
                "turns": state.turns,
                "room": state.room or 0,
                "last": stream.ids[-1],
                "column": len(stream.ids) - 1,
            },
        )

    def _limits(self, jobs: list[Job]) -> RowLimits:
        def column(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, device=self.device)

        limits = [job.request.limits for job in jobs]
        most = [NO_LIMIT if x.max_pictures is None else x.max_pictures for x in limits]
        return RowLimits(
            text=column([int(x.text) for x in limits]),
            max_pictures=column(most),
            one_turn=column([int(x.one_turn) for x in limits]),
            guided=column([int(job.guided) for job in jobs]),
            attached=column([job.state.pictures if job.linked else -1 for job in jobs]),
        )

    def _group(self, kind: Kind, rows: slice, jobs: list[Job]) -> Group:
        seeds = [job.request.seed for job in jobs]
        text = [job.request.text for job in jobs]
        picture = [job.request.picture for job in jobs]
        used = {Kind.TEXT: text, Kind.CODES: picture, Kind.ANY: [*text, *picture]}[kind]
        return Group(
            kind,
            rows,
            Choice.of(text, seeds, self.device),
            Choice.of(picture, seeds, self.device),
            Needs.of(used),
        )

    def _links(self, jobs: list[Job]) -> Links | None:
        """Return which linked rows belong to which main row, None if there are no linked rows."""
        leader: list[int] = []
        alone, pictures = [], []
        for number, job in enumerate(jobs):
            alone.append(len(leader) if job.linked else 0)
            pictures.append(len(leader) + len(job.linked) - 1 if job.linked else 0)
            leader += [number] * len(job.linked)
        if not leader:
            return None
        guides = [job.request.guidance if job.linked else None for job in jobs]
        return Links(
            torch.tensor(leader, device=self.device),
            torch.tensor(alone, device=self.device),
            torch.tensor(pictures, device=self.device) if pictures != alone else None,
            Guide.of(guides, self.device),
            largest_k(guides),
        )


def _kind(job: Job, n_steps: int, grammar: Grammar) -> Kind:
    """Return what a job's row may come to write within some steps."""
    if job.state.mode is Mode.IMAGE and job.state.codes_left >= n_steps:
        return Kind.CODES
    if job.rule is Rule.TEXT or job.rule is Rule.EOS:
        return Kind.TEXT  # a row that may not open a picture now never may
    return Kind.ANY


def _main_then_linked(jobs: list[Job]) -> list[Stream]:
    return [job.main for job in jobs] + [stream for job in jobs for stream in job.linked]


def _reason(job: Job) -> FinishReason:
    limits, state = job.request.limits, job.state
    if state.mode is Mode.DONE:
        return "eos" if state.room else "length"  # the last id that fits is eos in any case
    if limits.one_turn and state.turns:
        return "turn"
    return "length" if limits.text else "pictures"


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
