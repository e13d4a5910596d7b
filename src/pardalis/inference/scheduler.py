"""Who runs next, and with what memory: lanes, pages, fairness. No tensors."""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from pardalis.errors import RequestError
from pardalis.inference.config import EngineConfig
from pardalis.inference.pages import PagePool
from pardalis.inference.request import Guidance, Request
from pardalis.tokens import Grammar, Phase, Rule, State


@dataclass(slots=True, eq=False)
class TokenSequence:
    """A sequence of ids with its own keys and values."""

    ids: list[int]
    computed: int = 0  # leading ids whose keys and values are stored
    pages: list[int] = field(default_factory=list)  # where they are stored, and room for more
    lane: int = -1  # its row among those that decode; -1: none

    @property
    def ready(self) -> bool:
        """Whether a decoding step may read its last id."""
        return self.computed == len(self.ids) - 1


@dataclass(slots=True, eq=False)
class ScheduledRequest:
    """A request while it is being answered.

    Its ``linked`` streams exist while a guided image is open: the image ``alone`` and, where
    the guidance asks for it and there are earlier images, all ``images`` without the text.
    """

    key: int  # a later request has a larger one
    request: Request
    priority: int
    state: State
    rule: Rule
    main: TokenSequence
    images: int  # that its ids hold, the open one included
    linked: list[TokenSequence] = field(default_factory=list)
    lanes: list[int] = field(default_factory=list)  # of main, then of streams that are or may come
    paused: bool = False
    served: int = 0  # ids written since it got its lanes
    turn: int = 0  # its place in the queue of its priority

    @property
    def streams(self) -> list[TokenSequence]:
        """The main stream, then the linked ones."""
        return [self.main, *self.linked]

    @property
    def pages(self) -> list[int]:
        """All pages it holds."""
        return [page for stream in self.streams for page in stream.pages]

    @property
    def guided(self) -> bool:
        """Whether its images need linked streams."""
        return self.request.guidance not in (None, Guidance())

    @property
    def rank(self) -> tuple[int, int]:
        """Order in which jobs are worth keeping: priority, then age."""
        return self.priority, -self.key


@dataclass(slots=True)
class PassPlan:
    """What the next passes of the model do."""

    prefill: list[tuple[TokenSequence, int]] = field(
        default_factory=list
    )  # how many ids to compute
    decode: list[ScheduledRequest] = field(default_factory=list)  # every stream of theirs is ready
    steps: int = 1  # of decoding
    reused: int = 0  # ids whose keys and values were found in the cache
    preempted: list[ScheduledRequest] = field(
        default_factory=list
    )  # these lost their memory to others


class Scheduler:
    """Divides lanes, pages and passes among jobs.

    A job **runs** while it has lanes, and waits otherwise. It keeps its pages while it waits, until
    a job that runs needs them. Waiting jobs are taken by priority, then in turn. One that lacks
    lanes holds back those behind it, and one that lacks pages those that have none either, so that
    nobody is passed over for ever.

    Equals share lanes in turn, but not memory: what one has computed is taken from it only if it is
    paused, or so that others of its priority can go on, never so that one of them can begin.

    The caller executes each :meth:`plan` and reports it by :meth:`read` and :meth:`wrote`; it
    calls :meth:`finish` once ``job.rule`` is ``Rule.NOTHING``.

    Args:
        n_pages: pages of the cache, page 0 included.
        context: ids that a sequence may have.
        window: ids that one step may write into an image.
        chunks: plans that may be carried out before the first is reported.
    """

    def __init__(
        self,
        config: EngineConfig,
        n_pages: int,
        grammar: Grammar,
        context: int,
        window: int = 1,
        chunks: int = 1,
    ) -> None:
        self.config, self.grammar, self.context = config, grammar, context
        self.window, self.chunks = window, chunks
        self.pool = PagePool(n_pages, config.page_size)
        self._n_pages = n_pages - 1  # that can be held
        self._lanes = list(range(config.max_slots, 0, -1))  # free ones; lane 0 is padding
        self._running: list[ScheduledRequest] = []
        self._waiting: list[ScheduledRequest] = []  # by priority and turn
        self._keys, self._turns = count(), count()
        self._plan = PassPlan()

    @property
    def idle(self) -> bool:
        """Whether no job is left that could go on."""
        return not self._running and not self.crowded

    @property
    def crowded(self) -> bool:
        """Whether a job waits that could go on."""
        return any(not job.paused for job in self._waiting)

    # ── jobs ─────────────────────────────────────────────────────────────────────────────────

    def submit(self, request: Request, priority: int = 0) -> ScheduledRequest:
        """Add a request to those that wait.

        Raises:
            GrammarError: the prompt is malformed.
            RequestError: the request can never be answered, or too many wait.
        """
        state = self.grammar.begin(request.prompt_ids, request.limits)
        job = ScheduledRequest(
            key=next(self._keys),
            request=request,
            priority=priority,
            state=state,
            rule=self.grammar.rule(state, request.limits),
            main=TokenSequence(list(request.prompt_ids)),
            images=request.prompt_ids.count(self.grammar.vocabulary.begin_image_id),
        )
        self._admissible(job)
        self._open_linked(job)
        job.turn = next(self._turns)
        self._wait(job)
        return job

    def finish(self, job: ScheduledRequest) -> None:
        """Release everything a job holds, whether it is answered or given up."""
        if job.lanes:
            self._unseat(job)
        else:
            self._waiting.remove(job)
        self._release(job.streams)

    def pause(self, job: ScheduledRequest, paused: bool) -> None:
        """Hold a job back, or let it go on; it loses its lanes and may lose its pages."""
        job.paused = paused
        if paused:
            self._stop(job)

    def read(self, stream: TokenSequence, n: int) -> None:
        """Record that n more ids of a stream have keys and values."""
        stream.computed += n
        self.pool.remember(stream.ids[: stream.computed], stream.pages)

    def wrote(self, job: ScheduledRequest, ids: Sequence[int]) -> None:
        """Record ids that decoding steps wrote for a job.

        They advance its automaton. Where it is guided they end with begin_image at the latest,
        since what follows needs the linked streams that open here.
        """
        begin_image = self.grammar.vocabulary.begin_image_id
        for token_id in ids:
            job.state = self.grammar.advance(job.state, token_id, len(job.main.ids))
            for stream in job.streams:
                stream.ids.append(token_id)
                stream.computed += 1
            if token_id == begin_image:
                job.images += 1
                self._open_linked(job)
            elif job.linked and job.state.codes_left == 0:
                self._close_linked(job)
        job.served += len(ids)
        job.rule = self.grammar.rule(job.state, job.request.limits)

    # ── planning ─────────────────────────────────────────────────────────────────────────────

    def plan(self) -> PassPlan:
        """Decide who runs; every stream of the plan has the pages that it will write."""
        self._plan = plan = PassPlan()
        self._grow()
        self._admit()
        self._prefill(plan)
        plan.decode = [job for job in self._running if all(s.ready for s in job.streams)]
        if not plan.prefill:
            useful = max(map(self._useful_steps, plan.decode), default=1)
            plan.steps = max(min(self.config.steps, useful), 1)
        return plan

    def _grow(self) -> None:
        """Give running jobs pages for what they write next, the worthiest first."""
        for job in sorted(self._running, key=lambda job: job.rank, reverse=True):
            if not job.lanes:  # preempted by one before it
                continue
            self._fit_lanes(job)
            lower = [other for other in self._running if other.rank < job.rank]
            if not self._give_pages(job, [*self._waiting, *lower]):
                self._preempt(job)

    def _admit(self) -> None:
        """Let waiting jobs run, one after another, as long as there is budget or some give way."""
        short = False  # of pages, for a job that has none
        for job in [job for job in self._waiting if not job.paused]:
            if short and not job.pages:
                continue
            yielding = sorted(
                (other for other in self._running if self._gives_way(other, job)),
                key=lambda other: (-other.priority, other.served),
            )
            width = self._width(job)
            if width > len(self._lanes) + sum(len(other.lanes) for other in yielding):
                return
            if not self._place(job, yielding):
                short = True
                continue
            while len(self._lanes) < width:
                self._stop(next(other for other in reversed(yielding) if other.lanes))
            self._waiting.remove(job)
            self._running.append(job)
            job.served = 0
            self._fit_lanes(job)

    def _place(self, job: ScheduledRequest, yielding: Sequence[ScheduledRequest]) -> bool:
        """Give a job the pages to run; say whether it could be done."""
        victims = [*self._waiting, *(other for other in yielding if other.priority < job.priority)]
        if job.pages:
            return self._give_pages(job, victims)
        reused = sum(map(self._reuse, job.streams))
        spare = 0
        if self._running:  # otherwise the memory of all is there for it
            victims = [other for other in victims if _yields_pages(other, job)]
            begun = [v for v in (*self._waiting, *self._running) if v.pages]
            spare = sum(self._quantum_pages(v) for v in begun if not _yields_pages(v, job))
        if not self._give_pages(job, victims, spare):
            self._release(job.streams)
            return False
        self._plan.reused += reused
        return True

    def _quantum_pages(self, job: ScheduledRequest) -> int:
        """Return the pages a job fills in a quantum."""
        return self.pool.pages_for(min(self.config.quantum, self._remaining(job)))

    def _gives_way(self, running: ScheduledRequest, waiting: ScheduledRequest) -> bool:
        return running.priority < waiting.priority or (
            running.priority == waiting.priority and running.served >= self.config.quantum
        )

    def _prefill(self, plan: PassPlan) -> None:
        """Share the ids that one pass may read among streams that are not ready."""
        budget = self.config.prefill
        for job in sorted(self._running, key=lambda job: job.rank, reverse=True):
            for stream in job.streams:
                if budget and not stream.ready:
                    plan.reused += self._reuse(stream)
                    n = min(len(stream.ids) - 1 - stream.computed, budget)
                    if n:
                        plan.prefill.append((stream, n))
                    budget -= n

    def _useful_steps(self, job: ScheduledRequest) -> int:
        """Return how many ids a job can write before it is over or must wait for streams."""
        if not job.guided or job.request.limits.text:
            return self._remaining(job)
        return self._open_image(job) + min(self._images_ahead(job), 1)

    # ── memory ───────────────────────────────────────────────────────────────────────────────

    def _give_pages(
        self, job: ScheduledRequest, victims: Sequence[ScheduledRequest], spare: int = 0
    ) -> bool:
        """Give all streams of a job their pages, if need be those of others, or give none.

        Args:
            spare: pages that must be left.
        """
        missing = [self._missing_pages(job, stream) for stream in job.streams]
        n = sum(missing) + spare if any(missing) else 0
        if n > self.pool.available and not self._make_room(job, n, victims):
            return False
        for stream, n in zip(job.streams, missing, strict=True):
            if n:
                pages = self.pool.allocate(n, stream.pages[-1] if stream.pages else None)
                assert pages is not None
                stream.pages += pages
        return True

    def _make_room(
        self, job: ScheduledRequest, n: int, victims: Sequence[ScheduledRequest]
    ) -> bool:
        """Preempt jobs until n pages are available; none if that would not suffice."""
        victims = [other for other in victims if other is not job and other.pages]
        pages = [page for victim in victims for page in victim.pages]
        if n > self.pool.available + self.pool.freed_by(pages):
            return False
        for victim in sorted(victims, key=lambda v: (bool(v.lanes), not v.paused, v.rank)):
            if n <= self.pool.available:
                break
            self._preempt(victim)
        return True

    def _missing_pages(self, job: ScheduledRequest, stream: TokenSequence) -> int:
        """Return the pages a stream lacks for the next chunk and for all of an open image."""
        if stream is job.main:
            steps = self.config.steps * self.chunks
            if self._images_ahead(job) or job.state.phase is Phase.IMAGE:
                steps *= self.window
            ahead = min(self._open_image(job) + steps, self._remaining(job))
        else:
            ahead = job.state.codes_left
        return max(self.pool.pages_for(len(stream.ids) + ahead) - len(stream.pages), 0)

    def _reuse(self, stream: TokenSequence) -> int:
        """Take over a remembered prefix that is longer than what is computed; return the gain."""
        pages = self.pool.match(stream.ids[:-1])  # the last id is read by a decoding step
        gain = len(pages) * self.config.page_size - stream.computed
        if gain <= 0:
            self.pool.release(pages)
            return 0
        self.pool.release(stream.pages[: len(pages)])
        stream.pages[: len(pages)] = pages
        stream.computed += gain
        return gain

    def _preempt(self, job: ScheduledRequest) -> None:
        """Take a job's pages, and its lanes; it will compute its ids anew, or find them again."""
        self._plan.preempted.append(job)
        self._release(job.streams)
        self._stop(job)

    def _release(self, streams: Sequence[TokenSequence]) -> None:
        for stream in streams:
            self.pool.remember(stream.ids[: stream.computed], stream.pages)
            self.pool.release(stream.pages)
            stream.pages, stream.computed = [], 0

    # ── lanes ────────────────────────────────────────────────────────────────────────────────

    def _width(self, job: ScheduledRequest) -> int:
        """Return the lanes of a job, with those of linked streams that are open or may come."""
        ahead = self._images_ahead(job)
        if not job.guided or not (ahead or job.state.codes_left):
            return 1
        return 3 if _follows_images(job) and job.images + ahead > 1 else 2

    def _fit_lanes(self, job: ScheduledRequest) -> None:
        """Take or give back lanes so that a job has what it may need."""
        width = self._width(job)
        while len(job.lanes) < width:
            job.lanes.append(self._lanes.pop())
        while len(job.lanes) > width:
            self._lanes.append(job.lanes.pop())
        for stream, lane in zip(job.streams, job.lanes, strict=False):
            stream.lane = lane

    def _stop(self, job: ScheduledRequest) -> None:
        """Let a job that runs wait, at the back of its queue if it was served for a quantum."""
        if job.lanes:
            self._unseat(job)
            if job.served >= self.config.quantum:
                job.turn = next(self._turns)
            self._wait(job)

    def _unseat(self, job: ScheduledRequest) -> None:
        self._running.remove(job)
        self._lanes += reversed(job.lanes)
        job.lanes = []
        for stream in job.streams:
            stream.lane = -1

    def _wait(self, job: ScheduledRequest) -> None:
        insort(self._waiting, job, key=lambda other: (-other.priority, other.turn))

    # ── linked streams ───────────────────────────────────────────────────────────────────────

    def _open_linked(self, job: ScheduledRequest) -> None:
        """Open the streams that a guided image needs, if one has codes to come."""
        if not job.guided or job.state.codes_left == 0:
            return
        job.linked = [TokenSequence(self.grammar.unconditional(job.main.ids))]
        if _follows_images(job) and job.images > 1:
            job.linked.append(TokenSequence(self.grammar.images_only(job.main.ids)))
        for stream, lane in zip(job.linked, job.lanes[1:], strict=False):
            stream.lane = lane

    def _close_linked(self, job: ScheduledRequest) -> None:
        alone, *images = job.linked
        self.pool.release(alone.pages)  # nobody will ask for that prefix
        self._release(images)
        job.linked = []

    # ── what a job may yet take ──────────────────────────────────────────────────────────────

    def _open_image(self, job: ScheduledRequest) -> int:
        """Return the ids that the open image still takes."""
        return job.state.codes_left + 1 if job.state.phase is Phase.IMAGE else 0

    def _images_ahead(self, job: ScheduledRequest) -> int:
        """Return how many images a job may yet open."""
        limits, state = job.request.limits, job.state
        budget = (state.budget or 0) - self._open_image(job) - limits.text  # one id is left for eos
        fit = max(budget, 0) // self.grammar.tokens_per_image
        return fit if limits.max_images is None else min(fit, limits.max_images - state.images)

    def _remaining(self, job: ScheduledRequest) -> int:
        """Return how many ids a job may yet write."""
        if job.request.limits.text:
            return job.state.budget or 0
        return self._open_image(job) + self._images_ahead(job) * self.grammar.tokens_per_image

    def _most_pages(self, job: ScheduledRequest) -> int:
        """Return the pages a job can come to hold, before it has begun."""
        most = [len(job.main.ids) + self._remaining(job)]
        width, tokens_per_image = self._width(job), self.grammar.tokens_per_image
        if width > 1:
            most.append(tokens_per_image)  # bos, begin_image, codes
        if width > 2:
            most.append(min(1 + (job.images + self._images_ahead(job)) * tokens_per_image, most[0]))
        return sum(map(self.pool.pages_for, most))

    def _admissible(self, job: ScheduledRequest) -> None:
        """Raise RequestError if a job can never run, or must not wait."""
        n_prompt, n_answer = len(job.main.ids), self._remaining(job)
        if n_prompt == 0:
            raise RequestError("The prompt has no ids; it must begin with <bos>.")
        if n_prompt + n_answer > self.context:
            raise RequestError(
                f"The prompt has {n_prompt} ids and the answer may have {n_answer}, more than the "
                f"model's context of {self.context}; shorten the prompt or ask for less."
            )
        if self._width(job) > self.config.max_slots:
            raise RequestError(
                f"Guided images of this request take {self._width(job)} rows of a pass, but the "
                f"engine has {self.config.max_slots}; raise max_slots or leave guidance out."
            )
        if self._most_pages(job) > self._n_pages:
            raise RequestError(
                f"The request may come to hold {self._most_pages(job) * self.config.page_size} ids "
                f"in the cache, which has room for {self._n_pages * self.config.page_size}; ask "
                "for less, or raise cache_tokens."
            )
        waiting = sum(not other.paused for other in self._waiting)
        if waiting >= self.config.max_waiting + len(self._lanes):
            raise RequestError(
                f"As many requests wait already as max_waiting allows, {self.config.max_waiting}; "
                "submit it again when some have finished, or raise max_waiting."
            )


def _yields_pages(other: ScheduledRequest, job: ScheduledRequest) -> bool:
    """Return whether a job gives its pages so that another can begin."""
    return other.paused or other.priority < job.priority


def _follows_images(job: ScheduledRequest) -> bool:
    guidance = job.request.guidance
    return isinstance(guidance, Guidance) and guidance.image is not None
