"""Scheduling of requests: slots, cache pages and fairness. No tensors."""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from pardalis.errors import QueueFullError, RequestError
from pardalis.inference.config import STEPS_PER_SYNC, EngineConfig
from pardalis.inference.generation import Guidance
from pardalis.inference.pages import PagePool
from pardalis.inference.request import Request, ScoreRequest
from pardalis.tokens import Grammar, Limits, Phase, Rule, State


@dataclass(slots=True, eq=False)
class TokenSequence:
    """A sequence of token ids with its own keys and values."""

    ids: list[int]
    computed: int = 0  # leading tokens whose keys and values are cached
    pages: list[int] = field(default_factory=list)  # cache pages, some of them not yet filled
    slot: int = -1  # slot of the running batch; -1: none
    unscored: int | None = None  # first position whose next token has no score yet; None: no scores
    adapter: int = 0  # number of its adapter, on which keys and values depend; 0: none

    @property
    def ready(self) -> bool:
        """Whether a decoding step may read its last token, or all its scores are known."""
        return self.computed == len(self.ids) - 1

    @property
    def reusable(self) -> int:
        """Leading tokens whose hidden states are not needed, so that cached pages may serve."""
        return len(self.ids) - 1 if self.unscored is None else self.unscored


@dataclass(slots=True, eq=False)
class ScheduledRequest:
    """A request and everything it holds until it has finished.

    Its guidance sequences exist while a guided image is open: the unconditional branch and, if
    the guidance has an image scale and there are earlier images, the image-conditional branch.
    """

    key: int  # increases with the order of submission
    request: Request
    priority: int
    state: State
    rule: Rule
    conditional: TokenSequence
    n_images: int  # images in the conditional sequence, the open one included
    guidance_sequences: list[TokenSequence] = field(default_factory=list)
    slots: list[int] = field(
        default_factory=list
    )  # slots of all its sequences, reserved ones included
    paused: bool = False
    tokens_in_quantum: int = 0  # tokens generated since it got its slots
    queue_number: int = 0  # its order among the requests of its priority

    @property
    def sequences(self) -> list[TokenSequence]:
        """The conditional sequence, then the guidance sequences."""
        return [self.conditional, *self.guidance_sequences]

    @property
    def pages(self) -> list[int]:
        """The pages of all its sequences."""
        return [page for sequence in self.sequences for page in sequence.pages]

    @property
    def is_score(self) -> bool:
        """Whether it is a :class:`ScoreRequest`, which is over once its sequence is ready."""
        return self.conditional.unscored is not None

    @property
    def guided(self) -> bool:
        """Whether its images need guidance sequences."""
        return self.request.guidance not in (None, Guidance())

    @property
    def rank(self) -> tuple[int, int]:
        """Sort key of preemption: the lowest priority, then the latest request goes first."""
        return self.priority, -self.key


@dataclass(slots=True)
class PassPlan:
    """What the next passes of the model do."""

    prefill: list[tuple[TokenSequence, int]] = field(default_factory=list)  # tokens to compute
    decode: list[ScheduledRequest] = field(default_factory=list)  # all their sequences are ready
    steps: int = 1  # decoding steps
    reused_tokens: int = 0  # tokens whose keys and values were found in the cache
    preempted: list[ScheduledRequest] = field(default_factory=list)  # lost their pages to others


class Scheduler:
    """Divides slots, pages and passes among requests.

    A request **runs** while it holds slots and waits otherwise. A waiting request keeps its pages
    until a running one needs them. Waiting requests are admitted by priority, then in turn. A
    request that lacks slots blocks those behind it, and one that lacks pages blocks those that
    hold none, so that no request starves.

    Requests of equal priority take turns at slots, but not at memory: pages are taken from a
    request only if it is paused, or so that running requests of its priority can continue, never
    so that one of them can start.

    The caller executes each :meth:`plan`, reports it by :meth:`record_prefill` and
    :meth:`record_tokens`, and calls :meth:`finish` once ``scheduled.rule`` is ``Rule.NOTHING`` or
    the sequence of a score is ready.

    Args:
        n_pages: pages of the cache, page 0 included.
        context: tokens that a sequence may have.
        speculation_window: codes that one step may generate.
        plans_in_flight: plans that may be executed before the first is reported.
        adapters: names of the adapters; the first has number 1.
    """

    def __init__(
        self,
        config: EngineConfig,
        n_pages: int,
        grammar: Grammar,
        context: int,
        speculation_window: int = 1,
        plans_in_flight: int = 1,
        adapters: Sequence[str] = (),
    ) -> None:
        self._adapters = {name: number for number, name in enumerate(adapters, 1)}
        self.config, self.grammar, self.context = config, grammar, context
        self.speculation_window, self.plans_in_flight = speculation_window, plans_in_flight
        self._steps_per_sync = config.steps_per_sync or STEPS_PER_SYNC
        self.pool = PagePool(n_pages, config.page_size)
        self._n_pages = n_pages - 1  # pages that sequences can hold
        self._free_slots = list(range(config.max_slots, 0, -1))  # slot 0 is padding
        self._running: list[ScheduledRequest] = []
        self._waiting: list[ScheduledRequest] = []  # by priority and queue number
        self._keys, self._queue_numbers = count(), count()
        self._plan = PassPlan()

    @property
    def idle(self) -> bool:
        """Whether no request is left that could continue."""
        return not self._running and not self.has_waiting

    @property
    def has_waiting(self) -> bool:
        """Whether a waiting request could continue."""
        return any(not scheduled.paused for scheduled in self._waiting)

    # ── requests ─────────────────────────────────────────────────────────────────────────────

    def submit(self, request: Request | ScoreRequest, priority: int = 0) -> ScheduledRequest:
        """Add a request to the queue, or raise as ``TokenLoop.submit``."""
        unscored = None
        if isinstance(request, ScoreRequest):  # a prompt after which nothing is generated
            request.require_fits(self.context)
            unscored = len(request.prompt_ids) - 1
            ids = request.prompt_ids + request.continuation_ids
            state = self.grammar.state_at(request.prompt_ids)
            n_prompt, rest = len(request.prompt_ids), request.continuation_ids
            state = replace(self.grammar.state_after(rest, state, n_prompt), budget=0)
            limits = Limits(max_new_tokens=0)
            request = Request(prompt_ids=ids, limits=limits, adapter=request.adapter)
        else:
            state = self.grammar.begin(request.prompt_ids, request.limits)
        scheduled = ScheduledRequest(
            key=next(self._keys),
            request=request,
            priority=priority,
            state=state,
            rule=self.grammar.rule(state, request.limits),
            conditional=TokenSequence(
                list(request.prompt_ids), unscored=unscored, adapter=self._number(request.adapter)
            ),
            n_images=request.prompt_ids.count(self.grammar.vocabulary.begin_image_id),
        )
        self._check_admissible(scheduled)
        self._open_guidance(scheduled)
        scheduled.queue_number = next(self._queue_numbers)
        self._enqueue(scheduled)
        return scheduled

    def _number(self, adapter: str | None) -> int:
        """Return the number of an adapter; raises RequestError for one that is not loaded."""
        if adapter is None:
            return 0
        if adapter not in self._adapters:
            known = ", ".join(map(repr, self._adapters)) or "none"
            raise RequestError(
                f"adapter {adapter!r} is not loaded; the engine has {known}. Give its folder in "
                "`adapters`."
            )
        return self._adapters[adapter]

    def finish(self, scheduled: ScheduledRequest) -> None:
        """Release everything a request holds, whether it is complete or aborted."""
        if scheduled.slots:
            self._release_slots(scheduled)
        else:
            self._waiting.remove(scheduled)
        self._release(scheduled.sequences)

    def pause(self, scheduled: ScheduledRequest, paused: bool) -> None:
        """Pause or resume a request; a paused one loses its slots and may lose its pages."""
        scheduled.paused = paused
        if paused:
            self._stop(scheduled)

    def record_prefill(self, sequence: TokenSequence, n_tokens: int) -> None:
        """Record that n more tokens of a sequence have keys and values."""
        sequence.computed += n_tokens
        if sequence.unscored is not None:
            sequence.unscored = max(sequence.unscored, sequence.computed)
        self._add_prefix(sequence)

    def record_tokens(self, scheduled: ScheduledRequest, token_ids: Sequence[int]) -> None:
        """Record the tokens that decoding steps generated for a request.

        For a guided request begin_image must be the last of them, since the codes after it need
        the guidance sequences that are opened here.
        """
        begin_image = self.grammar.vocabulary.begin_image_id
        for token_id in token_ids:
            scheduled.state = self.grammar.advance(
                scheduled.state, token_id, len(scheduled.conditional.ids)
            )
            for sequence in scheduled.sequences:
                sequence.ids.append(token_id)
                sequence.computed += 1
            if token_id == begin_image:
                scheduled.n_images += 1
                self._open_guidance(scheduled)
            elif scheduled.guidance_sequences and scheduled.state.codes_left == 0:
                unconditional, *image_conditional = scheduled.guidance_sequences
                self.pool.release(unconditional.pages)  # no other sequence will have that prefix
                self._release(image_conditional)
                scheduled.guidance_sequences = []
        scheduled.tokens_in_quantum += len(token_ids)
        scheduled.rule = self.grammar.rule(scheduled.state, scheduled.request.limits)

    # ── planning ─────────────────────────────────────────────────────────────────────────────

    def plan(self) -> PassPlan:
        """Decide what runs; every sequence of the plan holds the pages that it will write to."""
        self._plan = plan = PassPlan()
        self._extend_running()
        self._admit()
        self._plan_prefill(plan)
        plan.decode = [
            r for r in self._running if not r.is_score and all(s.ready for s in r.sequences)
        ]
        if not plan.prefill:
            useful = max(map(self._useful_steps, plan.decode), default=1)
            plan.steps = max(min(self._steps_per_sync, useful), 1)
        return plan

    def _extend_running(self) -> None:
        """Give running requests pages for their next tokens, the highest rank first."""
        for scheduled in sorted(self._running, key=lambda r: r.rank, reverse=True):
            if not scheduled.slots:  # preempted by an earlier one
                continue
            self._fit_slots(scheduled)
            lower = [other for other in self._running if other.rank < scheduled.rank]
            if not self._allocate_pages(scheduled, [*self._waiting, *lower]):
                self._preempt(scheduled)

    def _admit(self) -> None:
        """Start waiting requests in order, while slots and pages are free or can be taken."""
        lacks_pages = False  # a request without pages could not start
        for scheduled in [r for r in self._waiting if not r.paused]:
            if lacks_pages and not scheduled.pages:
                continue
            yielding = sorted(
                (other for other in self._running if self._yields_slots(other, scheduled)),
                key=lambda other: (-other.priority, other.tokens_in_quantum),
            )
            n_slots = self._slots_needed(scheduled)
            if n_slots > len(self._free_slots) + sum(len(other.slots) for other in yielding):
                return
            if not self._allocate_to_start(scheduled, yielding):
                lacks_pages = True
                continue
            while len(self._free_slots) < n_slots:
                self._stop(next(other for other in reversed(yielding) if other.slots))
            self._waiting.remove(scheduled)
            self._running.append(scheduled)
            scheduled.tokens_in_quantum = 0
            self._fit_slots(scheduled)

    def _allocate_to_start(
        self, scheduled: ScheduledRequest, yielding: Sequence[ScheduledRequest]
    ) -> bool:
        """Give a waiting request the pages to run; return whether that was possible."""
        lower = [other for other in yielding if other.priority < scheduled.priority]
        victims = [*self._waiting, *lower]
        if scheduled.pages:
            return self._allocate_pages(scheduled, victims)
        reused = sum(map(self._reuse_prefix, scheduled.sequences))
        reserve = 0
        if self._running:  # otherwise all memory is available to it
            victims = [other for other in victims if _yields_pages(other, scheduled)]
            started = [r for r in (*self._waiting, *self._running) if r.pages]
            reserve = sum(
                self._pages_of_quantum(r) for r in started if not _yields_pages(r, scheduled)
            )
        if not self._allocate_pages(scheduled, victims, reserve):
            self._release(scheduled.sequences)
            return False
        self._plan.reused_tokens += reused
        return True

    def _yields_slots(self, running: ScheduledRequest, waiting: ScheduledRequest) -> bool:
        return running.priority < waiting.priority or (
            running.priority == waiting.priority
            and running.tokens_in_quantum >= self.config.quantum_steps
        )

    def _plan_prefill(self, plan: PassPlan) -> None:
        """Share the prefill tokens of one pass among the sequences that are not ready.

        A score waits for a pass if another sequence computes a page in it that both begin with.
        """
        budget = self.config.prefill_tokens
        has_scores = any(scheduled.is_score for scheduled in self._running)
        begun: set[tuple[int, ...]] = set()  # prefixes whose last page this pass computes
        for scheduled in sorted(self._running, key=lambda r: r.rank, reverse=True):
            for sequence in scheduled.sequences:
                if budget and not sequence.ready:
                    plan.reused_tokens += self._reuse_prefix(sequence)
                    if has_scores and (prefix := self._next_prefix(sequence)):
                        if scheduled.is_score and prefix in begun:
                            continue
                        begun.add(prefix)
                    n = min(len(sequence.ids) - 1 - sequence.computed, budget)
                    if n:
                        plan.prefill.append((sequence, n))
                    budget -= n

    def _useful_steps(self, scheduled: ScheduledRequest) -> int:
        """Return how many tokens a request can generate until it ends or needs a new branch."""
        if not scheduled.guided or scheduled.request.limits.text:
            return self._max_new_tokens(scheduled)
        return self._open_image_tokens(scheduled) + min(self._max_new_images(scheduled), 1)

    # ── memory ───────────────────────────────────────────────────────────────────────────────

    def _allocate_pages(
        self, scheduled: ScheduledRequest, victims: Sequence[ScheduledRequest], reserve: int = 0
    ) -> bool:
        """Give all sequences of a request the pages they lack, or none; may preempt victims.

        A reserve of pages stays available.
        """
        missing = [self._missing_pages(scheduled, sequence) for sequence in scheduled.sequences]
        n = sum(missing) + reserve if any(missing) else 0
        if n > self.pool.available and not self._free_pages(scheduled, n, victims):
            return False
        for sequence, n in zip(scheduled.sequences, missing, strict=True):
            if n:
                pages = self.pool.allocate(n, sequence.pages[-1] if sequence.pages else None)
                assert pages is not None
                sequence.pages += pages
        return True

    def _free_pages(
        self, scheduled: ScheduledRequest, n: int, victims: Sequence[ScheduledRequest]
    ) -> bool:
        """Preempt victims until n pages are available; preempt none if that cannot suffice."""
        victims = [other for other in victims if other is not scheduled and other.pages]
        pages = [page for victim in victims for page in victim.pages]
        if n > self.pool.available + self.pool.freed_by(pages):
            return False
        for victim in sorted(victims, key=lambda v: (bool(v.slots), not v.paused, v.rank)):
            if n <= self.pool.available:
                break
            self._preempt(victim)
        return True

    def _missing_pages(self, scheduled: ScheduledRequest, sequence: TokenSequence) -> int:
        """Return the pages that a sequence lacks for the next plans and for its open image."""
        if sequence is scheduled.conditional:
            n_new = self._steps_per_sync * self.plans_in_flight
            if self._max_new_images(scheduled) or scheduled.state.phase is Phase.IMAGE:
                n_new *= self.speculation_window
            n_new += self._open_image_tokens(scheduled)
            n_new = min(n_new, self._max_new_tokens(scheduled))
        else:
            n_new = scheduled.state.codes_left
        return max(self.pool.pages_for(len(sequence.ids) + n_new) - len(sequence.pages), 0)

    def _pages_of_quantum(self, scheduled: ScheduledRequest) -> int:
        """Return the pages that a request fills in a quantum besides those of its open image.

        It holds these already.
        """
        n_new = min(self.config.quantum_steps, self._max_new_tokens(scheduled))
        return self.pool.pages_for(max(n_new - self._open_image_tokens(scheduled), 0))

    def _reuse_prefix(self, sequence: TokenSequence) -> int:
        """Use a cached prefix that is longer than what is computed; return the tokens gained."""
        pages = self.pool.match(sequence.ids[: sequence.reusable], sequence.adapter)
        gain = len(pages) * self.config.page_size - sequence.computed
        if gain <= 0:
            self.pool.release(pages)
            return 0
        self.pool.release(sequence.pages[: len(pages)])
        sequence.pages[: len(pages)] = pages
        sequence.computed += gain
        return gain

    def _next_prefix(self, sequence: TokenSequence) -> tuple[int, ...]:
        """Return the tokens that one more page of the prefix index would hold, if any."""
        size = self.config.page_size
        end = (sequence.computed // size + 1) * size
        prefix = (sequence.adapter, *sequence.ids[:end])
        return prefix if end <= sequence.reusable else ()

    def _preempt(self, scheduled: ScheduledRequest) -> None:
        """Take the pages and slots of a request; its tokens are computed or found again later."""
        self._plan.preempted.append(scheduled)
        self._release(scheduled.sequences)
        self._stop(scheduled)

    def _release(self, sequences: Sequence[TokenSequence]) -> None:
        for sequence in sequences:
            self._add_prefix(sequence)
            self.pool.release(sequence.pages)
            sequence.pages, sequence.computed = [], 0

    def _add_prefix(self, sequence: TokenSequence) -> None:
        self.pool.add_prefix(sequence.ids[: sequence.computed], sequence.pages, sequence.adapter)

    # ── slots ────────────────────────────────────────────────────────────────────────────────

    def _slots_needed(self, scheduled: ScheduledRequest) -> int:
        """Return the slots of a request, those of possible guidance sequences included."""
        n_new = self._max_new_images(scheduled)
        if not scheduled.guided or not (n_new or scheduled.state.codes_left):
            return 1
        return 3 if _has_image_scale(scheduled) and scheduled.n_images + n_new > 1 else 2

    def _fit_slots(self, scheduled: ScheduledRequest) -> None:
        """Take or return slots so that a request has as many as it may need."""
        n_slots = self._slots_needed(scheduled)
        while len(scheduled.slots) < n_slots:
            scheduled.slots.append(self._free_slots.pop())
        while len(scheduled.slots) > n_slots:
            self._free_slots.append(scheduled.slots.pop())
        for sequence, slot in zip(scheduled.sequences, scheduled.slots, strict=False):
            sequence.slot = slot

    def _stop(self, scheduled: ScheduledRequest) -> None:
        """Return a running request to the queue, to its end if it has used up its quantum."""
        if scheduled.slots:
            self._release_slots(scheduled)
            if scheduled.tokens_in_quantum >= self.config.quantum_steps:
                scheduled.queue_number = next(self._queue_numbers)
            self._enqueue(scheduled)

    def _release_slots(self, scheduled: ScheduledRequest) -> None:
        self._running.remove(scheduled)
        self._free_slots += reversed(scheduled.slots)
        scheduled.slots = []
        for sequence in scheduled.sequences:
            sequence.slot = -1

    def _enqueue(self, scheduled: ScheduledRequest) -> None:
        insort(self._waiting, scheduled, key=lambda other: (-other.priority, other.queue_number))

    # ── guidance sequences ───────────────────────────────────────────────────────────────────

    def _open_guidance(self, scheduled: ScheduledRequest) -> None:
        """Open the guidance sequences of a guided image that has codes to come."""
        if not scheduled.guided or scheduled.state.codes_left == 0:
            return
        ids, adapter = scheduled.conditional.ids, scheduled.conditional.adapter
        masked = scheduled.request.unconditional == "mask"
        branches = [TokenSequence(self.grammar.unconditional(ids, masked=masked), adapter=adapter)]
        if _has_image_scale(scheduled) and scheduled.n_images > 1:
            branches.append(TokenSequence(self.grammar.images_only(ids), adapter=adapter))
        scheduled.guidance_sequences = branches
        for sequence, slot in zip(branches, scheduled.slots[1:], strict=False):
            sequence.slot = slot

    # ── bounds on what a request may still generate ──────────────────────────────────────────

    def _open_image_tokens(self, scheduled: ScheduledRequest) -> int:
        """Return the tokens that the open image still needs."""
        state = scheduled.state
        return state.codes_left + 1 if state.phase is Phase.IMAGE else 0

    def _max_new_images(self, scheduled: ScheduledRequest) -> int:
        limits, state = scheduled.request.limits, scheduled.state
        # With text one token is reserved for eos.
        budget = (state.budget or 0) - self._open_image_tokens(scheduled) - limits.text
        fit = max(budget, 0) // self.grammar.tokens_per_image
        return fit if limits.max_images is None else min(fit, limits.max_images - state.images)

    def _max_new_tokens(self, scheduled: ScheduledRequest) -> int:
        if scheduled.request.limits.text:
            return scheduled.state.budget or 0
        new_images = self._max_new_images(scheduled) * self.grammar.tokens_per_image
        return self._open_image_tokens(scheduled) + new_images

    def _max_pages(self, scheduled: ScheduledRequest) -> int:
        """Return the most pages that a new request can come to hold."""
        lengths = [len(scheduled.conditional.ids) + self._max_new_tokens(scheduled)]
        n_slots, tokens_per_image = self._slots_needed(scheduled), self.grammar.tokens_per_image
        if n_slots > 1:
            # bos, begin_image, codes; in infilling also a mask twice and end_image
            lengths.append(tokens_per_image + (3 if self.grammar.vocabulary.masks else 0))
        if n_slots > 2:
            n_images = scheduled.n_images + self._max_new_images(scheduled)
            lengths.append(min(1 + n_images * tokens_per_image, lengths[0]))
        return sum(map(self.pool.pages_for, lengths))

    def _check_admissible(self, scheduled: ScheduledRequest) -> None:
        """Raise RequestError if a request can never run, QueueFullError if it must not wait."""
        n_prompt, n_new = len(scheduled.conditional.ids), self._max_new_tokens(scheduled)
        if n_prompt == 0:
            raise RequestError("The prompt has no tokens; it must begin with <bos>.")
        if n_prompt + n_new > self.context:
            raise RequestError(
                f"The prompt has {n_prompt} tokens and the completion may have {n_new}, more than "
                f"the model's context of {self.context}; shorten the prompt, or lower "
                "`max_new_tokens` or `max_images`."
            )
        n_slots, max_slots = self._slots_needed(scheduled), self.config.max_slots
        if n_slots > max_slots:
            raise RequestError(
                f"The guided images of this request take {n_slots} slots, but the engine has "
                f"{max_slots}; raise `max_slots` or leave out `guidance`."
            )
        max_pages, size = self._max_pages(scheduled), self.config.page_size
        if max_pages > self._n_pages:
            raise RequestError(
                f"The request may need {max_pages * size} tokens of cache, which holds "
                f"{self._n_pages * size}; lower `max_new_tokens` or `max_images`, or raise "
                "`cache_tokens`."
            )
        waiting = sum(not other.paused for other in self._waiting)
        if waiting >= self.config.max_waiting + len(self._free_slots):
            raise QueueFullError(
                f"{self.config.max_waiting} requests wait already, as many as `max_waiting` "
                "allows; submit it again when some have finished, or raise `max_waiting`."
            )


def _yields_pages(other: ScheduledRequest, starting: ScheduledRequest) -> bool:
    return other.paused or other.priority < starting.priority


def _has_image_scale(scheduled: ScheduledRequest) -> bool:
    guidance = scheduled.request.guidance
    return isinstance(guidance, Guidance) and guidance.image is not None
