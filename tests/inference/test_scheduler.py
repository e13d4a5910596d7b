"""The scheduler with a simulated machine that executes its plans and checks them."""

import random
from itertools import accumulate, pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle as Values
from hypothesis.stateful import RuleBasedStateMachine, consumes, initialize, invariant, multiple
from hypothesis.stateful import rule as step
from page_pool import check_pool

from pardalis.errors import GrammarError, QueueFullError, RequestError
from pardalis.inference.config import STEPS_PER_SYNC, EngineConfig
from pardalis.inference.generation import Contrastive, Guidance
from pardalis.inference.request import Request
from pardalis.inference.scheduler import PassPlan, ScheduledRequest, Scheduler, TokenSequence
from pardalis.tokens import Grammar, Limits, Phase, Rule, Vocabulary

IDS = Vocabulary.build(n_codes=6, n_text=4)
GRAMMAR = Grammar(IDS, codes_per_image=6)
WRITTEN, RANGES = GRAMMAR.writable_ids(), GRAMMAR.ranges()
CONTEXT = 40
A = IDS.text.start
IMAGE = (IDS.begin_image_id, *IDS.image, IDS.end_image_id)
PROMPTS = [
    (IDS.bos_id,),
    (IDS.bos_id, A, A + 1, A, A),
    (IDS.bos_id, *IMAGE, A),
    (IDS.bos_id, *IMAGE, *IMAGE),
    (IDS.bos_id, *IMAGE, A, *IMAGE[:4]),
    (IDS.bos_id, *IMAGE[:-1]),
]
GUIDES = [None, Guidance(text=3.0), Guidance(text=3.0, image=1.2), Contrastive(alpha=0.1, k=2)]
LONG = 10**6  # requests with seeds from here on use their whole token budget


def choose(request: Request, rule: Rule, position: int) -> int:
    """Choose a token as a model would: by request and position, whatever runs in the batch.

    A request whose seed is LONG or more never chooses eos early.
    """
    allowed = [WRITTEN[i] for i in RANGES[rule]]
    if request.seed >= LONG and len(allowed) > 1:
        allowed = [i for i in allowed if i != IDS.eos_id]
    return random.Random(f"{request.seed} {position}").choice(allowed)


def completed(request: Request) -> list[int]:
    """Return the prompt and the completion of a request that runs alone."""
    ids, state = list(request.prompt_ids), GRAMMAR.begin(request.prompt_ids, request.limits)
    while (rule := GRAMMAR.rule(state, request.limits)) is not Rule.NOTHING:
        ids.append(choose(request, rule, len(ids)))
        state = GRAMMAR.advance(state, ids[-1])
    return ids


def images_of(ids: list[int]) -> list[int]:
    return [i for i in ids if i in IDS.image or i in (IDS.bos_id, *IMAGE)]


class Machine:
    """Executes plans; an entry of a page holds a hash of the prefix that it was computed from."""

    def __init__(self, max_slots=4, n_pages=41, speculation_window=1, **config) -> None:
        self.config = EngineConfig(max_slots=max_slots, page_size=4, **config)
        self.scheduler = Scheduler(self.config, n_pages, GRAMMAR, CONTEXT, speculation_window)
        self.entries: dict[tuple[int, int], int] = {}
        self.requests: list[ScheduledRequest] = []
        self.done: list[ScheduledRequest] = []
        self.clock = 0  # decoding steps so far
        self.finished_at: dict[int, int] = {}
        self.preempted = self.reused = self.prefilled = 0

    def submit(self, request: Request, priority: int = 0) -> ScheduledRequest:
        scheduled = self.scheduler.submit(request, priority)
        self.requests.append(scheduled)
        self.finish_completed()
        return scheduled

    def finish_completed(self) -> None:
        for scheduled in [r for r in self.requests if r.rule is Rule.NOTHING]:
            self.scheduler.finish(scheduled)
            self.requests.remove(scheduled)
            self.done.append(scheduled)
            self.finished_at[scheduled.key] = self.clock
            assert scheduled.conditional.ids == completed(scheduled.request)

    def run(self, n_plans: int = 2000) -> None:
        while not self.scheduler.idle:
            assert (n_plans := n_plans - 1), "does not terminate"
            self.execute(self.scheduler.plan())

    def execute(self, plan: PassPlan) -> None:
        self.check(plan)
        self.preempted += len(plan.preempted)
        self.reused += plan.reused_tokens
        for sequence, n in plan.prefill:
            self.prefilled += n
            self.compute(sequence, n)
            self.scheduler.record_prefill(sequence, n)
        chunks = [(scheduled, self.decode(scheduled, plan.steps)) for scheduled in plan.decode]
        self.clock += plan.steps if plan.decode else 0
        for scheduled, ids in chunks:
            self.scheduler.record_tokens(scheduled, ids)
        self.finish_completed()
        for scheduled in self.requests:
            self.check_guidance(scheduled)

    def check(self, plan: PassPlan) -> None:
        assert plan.prefill or plan.decode, "a scheduler that is not idle makes progress"
        assert sum(n for _, n in plan.prefill) <= self.config.prefill_tokens
        assert 1 <= plan.steps <= (self.config.steps_per_sync or STEPS_PER_SYNC)
        assert all(n > 0 for _, n in plan.prefill)
        slots = [sequence.slot for scheduled in plan.decode for sequence in scheduled.sequences]
        assert len(slots) == len(set(slots))
        assert set(slots) <= set(range(1, self.config.max_slots + 1))
        for scheduled in plan.decode:
            assert not scheduled.paused
            assert scheduled.rule is not Rule.NOTHING
            assert all(sequence.ready for sequence in scheduled.sequences)
            if scheduled.state.phase is Phase.IMAGE:  # it has pages for the complete image
                left, conditional = scheduled.state.codes_left, scheduled.conditional
                assert len(conditional.pages) * 4 >= len(conditional.ids) + left + 1
                for sequence in scheduled.guidance_sequences:
                    assert len(sequence.pages) * 4 >= len(sequence.ids) + left
        assert 0 not in [page for scheduled in self.requests for page in scheduled.pages]

    def check_guidance(self, scheduled: ScheduledRequest) -> None:
        ids, guidance = scheduled.conditional.ids, scheduled.request.guidance
        expected = []
        if guidance and scheduled.state.codes_left:
            opened = len(ids) - 1 - ids[::-1].index(IDS.begin_image_id)
            expected = [[IDS.bos_id, *ids[opened:]]]
            if guidance == GUIDES[2] and ids.count(IDS.begin_image_id) > 1:
                expected.append(images_of(ids))
        assert [sequence.ids for sequence in scheduled.guidance_sequences] == expected

    def compute(self, sequence: TokenSequence, n: int) -> None:
        """Compute n tokens from the cached entries of those before them."""
        prefixes = list(accumulate(sequence.ids, lambda h, i: hash((h, i)), initial=0))[1:]
        for position in range(sequence.computed + n):
            entry = sequence.pages[position // 4], position % 4
            if position < sequence.computed:
                assert self.entries[entry] == prefixes[position]
            else:
                holders = [r for r in self.requests for s in r.sequences if entry[0] in s.pages]
                assert len(holders) == 1, "a page with two holders is never written"
                self.entries[entry] = prefixes[position]

    def decode(self, scheduled: ScheduledRequest, steps: int) -> list[int]:
        """Do what the device does between two host synchronisations."""
        state, ids = scheduled.state, list(scheduled.conditional.ids)
        sequences = [
            TokenSequence(list(s.ids), s.computed, list(s.pages)) for s in scheduled.sequences
        ]
        for _ in range(steps):
            rule = GRAMMAR.rule(state, scheduled.request.limits)
            lacks_branches = scheduled.guided and len(sequences) == 1
            if rule is Rule.NOTHING or (lacks_branches and rule is Rule.CODE):
                break
            if rule is not Rule.CODE:
                sequences = sequences[:1]
            ids.append(choose(scheduled.request, rule, len(ids)))
            state = GRAMMAR.advance(state, ids[-1])
            for sequence in sequences:
                self.compute(sequence, 1)
                sequence.ids.append(ids[-1])
                sequence.computed += 1
        return ids[len(scheduled.conditional.ids) :]

    def released_all(self) -> bool:
        """Return whether neither pages nor slots are held."""
        check_pool(self.scheduler.pool)
        free = self.scheduler._free_slots
        return self.scheduler.pool.in_use == 0 and len(set(free)) == self.config.max_slots


def request(prompt=0, seed=0, guide=0, budget=12, **limits) -> Request:
    return Request(
        prompt_ids=PROMPTS[prompt],
        limits=Limits(max_new_tokens=min(budget, CONTEXT - len(PROMPTS[prompt])), **limits),
        guidance=GUIDES[guide],
        seed=seed,
    )


def image(seed=0, n=1, budget=None, **options) -> Request:
    return request(seed=seed, budget=budget or 8 * n, text=False, max_images=n, **options)


def text(seed=0, budget=4) -> Request:
    return request(seed=seed, budget=budget, max_images=0)


def texts(n: int, budget: int) -> list[Request]:
    """Texts that use their whole token budget."""
    return [text(LONG + i, budget) for i in range(n)]


# ── random walks ─────────────────────────────────────────────────────────────────────────────


class Walk(RuleBasedStateMachine):
    """Requests of all kinds are submitted, paused, resumed and aborted, with any cache size."""

    requests = Values("requests")

    @initialize(
        max_slots=st.integers(1, 6),
        n_pages=st.integers(12, 60),
        speculation_window=st.integers(1, 4),
        steps_per_sync=st.integers(1, 5),
        prefill_tokens=st.integers(1, 30),
        quantum_steps=st.integers(1, 12),
    )
    def build(self, **options):
        self.machine = Machine(max_waiting=6, **options)
        self.seed = 0

    @step(
        target=requests,
        prompt=st.integers(0, len(PROMPTS) - 1),
        guide=st.integers(0, len(GUIDES) - 1),
        budget=st.integers(1, 40),
        text=st.booleans(),
        max_images=st.sampled_from([None, 0, 1, 2, 3]),
        one_turn=st.booleans(),
        priority=st.sampled_from([0, 0, 0, 1]),
    )
    def submit(self, priority, **options):
        self.seed += 1
        try:
            return self.machine.submit(request(seed=self.seed, **options), priority)
        except RequestError:
            return multiple()

    @step(scheduled=requests, paused=st.booleans())
    def pause(self, scheduled, paused):
        if scheduled in self.machine.requests:
            self.machine.scheduler.pause(scheduled, paused)

    @step(scheduled=consumes(requests))
    def abort(self, scheduled):
        if scheduled in self.machine.requests:
            self.machine.requests.remove(scheduled)
            self.machine.scheduler.finish(scheduled)

    @step(n=st.integers(1, 6))
    def run_plans(self, n):
        for _ in range(n):
            if not self.machine.scheduler.idle:
                self.machine.execute(self.machine.scheduler.plan())

    @invariant()
    def the_pool_is_consistent(self):
        if hasattr(self, "machine"):
            check_pool(self.machine.scheduler.pool)

    def teardown(self):
        if hasattr(self, "machine"):
            for scheduled in self.machine.requests:
                self.machine.scheduler.pause(scheduled, False)
            self.machine.run()
            assert not self.machine.requests
            assert self.machine.released_all()


Walk.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestWalk = Walk.TestCase


@pytest.mark.parametrize("n_pages", [19, 24, 100])
@pytest.mark.parametrize("quantum", [2, 64])
def test_many_requests_with_any_cache_size(n_pages, quantum):
    machine = Machine(max_slots=5, n_pages=n_pages, quantum_steps=quantum)
    for seed in range(60):
        options = {"prompt": seed % 6, "guide": seed % 4, "budget": 12 + seed % 9}
        machine.submit(request(seed=seed, max_images=seed % 3, **options), priority=seed % 2)
    machine.run()
    assert len(machine.done) == 60
    assert n_pages < 100 or machine.preempted == 0
    assert machine.released_all()


# ── slots and guidance sequences ─────────────────────────────────────────────────────────────


def test_a_guided_image_takes_slots_and_returns_them():
    machine = Machine(max_slots=3, steps_per_sync=1)
    machine.submit(request(prompt=2, guide=2, budget=30, max_images=1))
    free = set()
    while machine.requests:
        plan = machine.scheduler.plan()
        free.add((machine.requests[0].state.phase, machine.requests[0].state.images,
                  len(machine.scheduler._free_slots)))  # fmt: skip
        machine.execute(plan)
    # Three slots from the start, while an image may be opened; one after it.
    after_image = {n for phase, images, n in free if phase is Phase.TEXT and images == 1}
    assert {n for _, images, n in free if images == 0} == {0}
    assert after_image <= {2}


@pytest.mark.parametrize(
    "prompt, guide, n, n_slots",
    [
        (1, 0, 1, 1),  # not guided
        (1, 1, 2, 2),
        (1, 2, 1, 2),  # the first image of all: no earlier ones
        (1, 2, 2, 3),
        (2, 2, 1, 3),
        (2, 3, 1, 2),
        (4, 2, 0, 3),  # the prompt ends inside its second image
        (5, 2, 0, 1),  # it has all codes
    ],
)
def test_slots_of_a_request(prompt, guide, n, n_slots):
    machine = Machine(max_slots=4)
    scheduled = machine.submit(
        request(prompt=prompt, guide=guide, budget=20, text=False, max_images=n)
    )
    machine.scheduler.plan()
    assert len(scheduled.slots) == n_slots


@pytest.mark.parametrize("budget, n_slots", [(8, 1), (9, 2)])
def test_no_branch_slot_for_an_image_that_does_not_fit(budget, n_slots):
    machine = Machine()
    scheduled = machine.submit(request(guide=1, budget=budget))  # an image takes 8 tokens, eos 1
    machine.scheduler.plan()
    assert len(scheduled.slots) == n_slots


def test_scales_of_one_are_no_guidance():
    scheduled = Machine().submit(Request(prompt_ids=(IDS.bos_id,), limits=Limits(max_new_tokens=9),
                                   guidance=Guidance(text=1.0)))  # fmt: skip
    assert not scheduled.guided


def test_guidance_sequences_are_prefilled_before_decoding():
    machine = Machine(prefill_tokens=8)
    scheduled = machine.submit(request(prompt=4, guide=2, budget=4, text=False, max_images=0))
    decoded = []
    while machine.requests:
        plan = machine.scheduler.plan()
        decoded.append(scheduled in plan.decode)
        machine.execute(plan)
    # Prefill of 13 conditional, 4 unconditional and 12 image-conditional tokens, less the prefix
    # that the last two share with the first.
    assert (machine.prefilled, machine.reused) == (17, 12)
    assert decoded == [False] * 3 + [True] * (len(decoded) - 3)


# ── passes ───────────────────────────────────────────────────────────────────────────────────


def test_prefill_shares_a_pass_with_one_decoding_step():
    machine = Machine(prefill_tokens=5, steps_per_sync=4)
    machine.submit(text(budget=30))
    assert machine.scheduler.plan().steps == 4
    late = machine.submit(request(prompt=2, budget=20, max_images=0))
    plan = machine.scheduler.plan()
    assert (plan.prefill, plan.steps, len(plan.decode)) == ([(late.conditional, 5)], 1, 1)
    machine.execute(plan)
    assert machine.scheduler.plan().prefill == [(late.conditional, 4)]


@pytest.mark.parametrize(
    "submitted, steps",
    [
        (text(budget=3), 3),
        (text(budget=30), 8),
        (request(prompt=5, text=False, max_images=0), 1),  # end_image
        (request(prompt=5, text=False, max_images=1), 8),
        (request(prompt=5, guide=1, text=False, max_images=1), 2),  # and begin_image
        (image(), 8),
        (image(guide=1), 1),  # begin_image, then the branch must be prefilled
    ],
)
def test_no_more_steps_than_can_be_used(submitted, steps):
    machine = Machine(steps_per_sync=8)
    machine.submit(submitted)
    while (plan := machine.scheduler.plan()).prefill:
        machine.execute(plan)
    assert plan.steps == steps


def test_a_prefix_is_computed_once():
    machine = Machine(prefill_tokens=16)
    long = (IDS.bos_id, *IMAGE, *IMAGE, A, A, A)
    for seed in range(4):
        machine.submit(Request(prompt_ids=long, limits=Limits(max_new_tokens=4), seed=seed))
    machine.run()
    # 19 tokens each; those prefilled in the same pass cannot be shared, all earlier ones are.
    assert machine.reused >= 3 * 12
    assert machine.reused + machine.prefilled == 4 * 19
    before = machine.prefilled
    machine.submit(Request(prompt_ids=(*long, A), limits=Limits(max_new_tokens=4), seed=0))
    machine.run()
    assert machine.prefilled - before == 20 % 4


def test_a_completion_is_a_prefix_of_the_next_prompt():
    machine = Machine()
    first = machine.submit(image(prompt=1))
    machine.run()
    prompt = (*first.conditional.ids, A)
    machine.submit(Request(prompt_ids=prompt, limits=Limits(max_new_tokens=2)))
    machine.run()
    assert machine.reused == 12  # of 13 tokens


@pytest.mark.parametrize("max_images, n_tokens", [(0, 1 + 4), (1, 1 + 4 * 3)])
def test_pages_for_all_tokens_of_a_plan(max_images, n_tokens):
    """A step may generate several codes, but only one text token."""
    machine = Machine(steps_per_sync=4, speculation_window=3)
    scheduled = machine.submit(request(budget=30, max_images=max_images))
    machine.scheduler.plan()
    assert len(scheduled.pages) == machine.scheduler.pool.pages_for(n_tokens)


# ── preemption ───────────────────────────────────────────────────────────────────────────────


def test_the_lowest_priority_is_preempted():
    # 8 pages; a text of 29 tokens takes all of them
    machine = Machine(n_pages=9, steps_per_sync=1, quantum_steps=4)
    requests = [machine.submit(text(LONG + i, budget=28), priority=(1, 0, 1)[i]) for i in range(3)]
    order = []
    while machine.requests:
        plan = machine.scheduler.plan()
        order += plan.preempted
        machine.execute(plan)
    assert order[0] is requests[1]  # lowest priority, although the third came later
    assert requests[0] not in order
    assert machine.released_all()


def test_a_paused_request_loses_its_slots_at_once_and_its_pages_on_demand():
    machine = Machine(max_slots=1, n_pages=9, steps_per_sync=2)
    reader = machine.submit(text(LONG, budget=28), priority=5)
    for _ in range(4):
        machine.execute(machine.scheduler.plan())
    machine.scheduler.pause(reader, True)
    assert reader.slots == []
    assert reader.pages
    machine.submit(text(LONG + 1, budget=28))
    machine.run()
    assert machine.scheduler.idle
    assert machine.preempted
    assert machine.requests == [reader]
    machine.scheduler.pause(reader, False)
    machine.run()
    assert machine.released_all()


def test_a_paused_request_is_preempted_before_a_waiting_one():
    machine = Machine(max_slots=1, n_pages=9, steps_per_sync=2, quantum_steps=2)
    reader, late = machine.submit(text(LONG, budget=11)), machine.submit(text(LONG + 1, budget=11))
    while not late.pages:
        machine.execute(machine.scheduler.plan())
    machine.scheduler.pause(reader, True)
    machine.submit(text(LONG + 2, budget=28), priority=1)
    while not (plan := machine.scheduler.plan()).preempted:
        machine.execute(plan)
    assert plan.preempted == [reader]
    assert late.pages


@pytest.mark.parametrize("guide", [0, 1])
def test_all_slots_run_where_the_cache_has_room_for_their_images(guide):
    n, longest = 4, 3  # a prompt and an image have 9 tokens, so 3 pages of 4
    n_pages = 1 + n * longest * (1 + guide)
    slots = n * (1 + guide)
    machine = Machine(max_slots=slots, n_pages=n_pages, steps_per_sync=1, quantum_steps=64)
    for seed in range(n):  # each one comes when the image before it is open
        machine.submit(image(seed, n=1, guide=guide))
        machine.execute(machine.scheduler.plan())
    assert len([scheduled for scheduled in machine.requests if scheduled.slots]) == n
    machine.run()
    assert machine.preempted == 0


# ── fairness ─────────────────────────────────────────────────────────────────────────────────


def test_short_texts_among_long_images():
    machine = Machine(max_slots=4, steps_per_sync=4, quantum_steps=8, n_pages=200)
    for seed in range(6):
        machine.submit(image(seed, n=4, guide=1))
    for _ in range(8):
        machine.execute(machine.scheduler.plan())
    start = machine.clock
    shorts = [machine.submit(r) for r in texts(8, budget=4)]
    machine.run()
    # Two image requests run at a time, and the other four are ahead in the queue: two rounds of a
    # quantum and some steps each before the first text, then four texts share the slots.
    waits = [machine.finished_at[scheduled.key] - start for scheduled in shorts]
    assert max(waits) <= 6 * (8 + 4 + 2)
    assert max(waits) < max(machine.finished_at.values()) - start


def test_requests_of_equal_priority_take_turns():
    machine = Machine(max_slots=1, steps_per_sync=2, quantum_steps=4)
    requests = [machine.submit(r) for r in texts(3, budget=30)]
    lead, ran = 0, []
    while machine.requests:
        plan = machine.scheduler.plan()
        ran += [scheduled.key for scheduled in plan.decode]
        machine.execute(plan)
        lengths = [len(r.conditional.ids) for r in requests if r in machine.requests]
        lead = max(lead, max(lengths, default=0) - min(lengths, default=0))
    assert lead <= 4
    assert sum(a != b for a, b in pairwise(ran)) <= 3 * 8
    assert machine.preempted == 0  # the cache is large enough


def test_a_higher_priority_goes_first_and_a_lower_one_finishes_after_it():
    machine = Machine(max_slots=2, steps_per_sync=2, quantum_steps=64)
    low = [machine.submit(r) for r in texts(2, budget=20)]
    machine.execute(machine.scheduler.plan())
    high = [machine.submit(r, priority=1) for r in texts(6, budget=10)]
    machine.run()
    last = max(machine.finished_at[scheduled.key] for scheduled in high)
    assert all(machine.finished_at[scheduled.key] > last for scheduled in low)
    assert last <= 2 + 3 * 10


def test_a_request_for_many_slots_does_not_starve():
    machine = Machine(max_slots=3, steps_per_sync=1, quantum_steps=4, n_pages=200)
    machine.submit(texts(1, budget=30)[0])
    machine.execute(machine.scheduler.plan())
    guided_image = machine.submit(image(prompt=2, guide=2))
    for r in (*texts(1, budget=2), *texts(30, budget=3)):
        machine.submit(r)
    while not guided_image.slots:
        machine.execute(machine.scheduler.plan())
        assert machine.clock <= 8
    machine.run()


def test_a_request_for_many_pages_does_not_starve():
    machine = Machine(max_slots=3, n_pages=11, steps_per_sync=1)
    for r in (*texts(1, budget=4), *texts(1, budget=7)):
        machine.submit(r)
    machine.execute(machine.scheduler.plan())
    long = machine.submit(
        Request(prompt_ids=(IDS.bos_id, *[A] * 29), limits=Limits(max_new_tokens=3))
    )
    for r in (*texts(1, budget=5), *texts(30, budget=6)):
        machine.submit(r)
    while not long.slots:
        machine.execute(machine.scheduler.plan())
        assert machine.clock <= 8
    machine.run()


def test_a_starting_request_takes_no_pages_of_equal_priority():
    machine = Machine(max_slots=4, n_pages=15, steps_per_sync=2, quantum_steps=6)
    for r in texts(6, budget=35):
        machine.submit(r)
    machine.run()
    assert machine.preempted <= 6  # only as they grow


# ── admission ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "submitted, options, sentence",
    [
        (text(budget=9), {"n_pages": 3}, "may need 12 tokens of cache, which holds 8"),
        (
            Request(prompt_ids=PROMPTS[1], limits=Limits(max_new_tokens=36)),
            {},
            "The prompt has 5 tokens and the completion may have 36, more than the model's context",
        ),
        (
            image(prompt=2, guide=2),
            {"max_slots": 2},
            "take 3 slots, but the engine has 2",
        ),
        (image(guide=1), {"n_pages": 5}, "may need 20 tokens of cache, which holds 16"),
        (Request(prompt_ids=(), limits=Limits(max_new_tokens=3)), {}, "The prompt has no tokens"),
        (image(n=1, budget=3), {}, "token budget is 3, but 8 are needed"),
    ],
)
def test_what_can_never_run_is_refused(submitted, options, sentence):
    machine = Machine(**options)
    with pytest.raises(RequestError, match=sentence):
        machine.submit(submitted)
    assert machine.scheduler.idle


def test_a_malformed_prompt():
    with pytest.raises(GrammarError):
        Machine().submit(Request(prompt_ids=(A,), limits=Limits(max_new_tokens=3)))


def test_a_full_queue():
    machine = Machine(max_slots=2, max_waiting=3)
    for r in texts(5, budget=30):
        machine.submit(r)
    with pytest.raises(QueueFullError, match="3 requests wait already"):
        machine.submit(text(5))
    machine.execute(machine.scheduler.plan())
    with pytest.raises(QueueFullError, match="3 requests wait already"):
        machine.submit(text(5))
    machine.run()
    machine.submit(text(6))
    machine.run()
