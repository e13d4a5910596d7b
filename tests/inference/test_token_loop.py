"""The token loop equals the reference loop token by token, in any batch and with any cache."""

import copy
import itertools
import random
from dataclasses import replace

import pytest
import torch
from page_pool import check_pool
from torch.utils._python_dispatch import TorchDispatchMode

from pardalis.errors import GrammarError, QueueFullError, RequestError
from pardalis.inference import (
    Contrastive,
    EngineConfig,
    Guidance,
    Request,
    SamplingConfig,
    TokenLoop,
    generate_ids,
    generate_reference,
    speculation,
)
from pardalis.inference.batches import BatchBuilder
from pardalis.inference.config import STEPS_PER_SYNC
from pardalis.inference.scheduler import Scheduler
from pardalis.inference.steps import SlotStates
from pardalis.model import Decoder, initialise
from pardalis.tokens import Grammar, Limits, Vocabulary

IDS = Vocabulary.build(n_codes=12, n_text=20)
A = IDS.text.start
CODES = [IDS.image.start + c for c in (3, 1, 4, 1)]
IMAGE = (IDS.begin_image_id, *CODES, IDS.end_image_id)
PROMPTS = [
    (IDS.bos_id,),
    (IDS.bos_id, A, A + 1, A + 2),
    (IDS.bos_id, A, *IMAGE, A + 5),
    (IDS.bos_id, A, IDS.begin_image_id, *CODES[:2]),
    (IDS.bos_id, *IMAGE, A, IDS.begin_image_id, CODES[0]),
]
SAMPLINGS = [
    SamplingConfig(temperature=0.0),
    SamplingConfig(temperature=1.0),
    SamplingConfig(temperature=1.5, top_k=5),
    SamplingConfig(temperature=0.8, top_p=0.7),
]
LIMITS = [
    Limits(max_new_tokens=25),
    Limits(max_new_tokens=25, max_images=0),
    Limits(max_new_tokens=25, text=False, max_images=2),
    Limits(max_new_tokens=20, max_images=1),
    Limits(max_new_tokens=25, one_turn=True),
]
GUIDES = [None, Guidance(text=3.0), Guidance(text=3.0, image=1.2), Contrastive(alpha=0.2, k=3)]


@pytest.fixture(scope="module")
def model(tiny_config) -> Decoder:
    return initialise(Decoder(tiny_config), seed=0).eval()


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return [
        Request(
            prompt_ids=prompt, limits=limits, text=sampling, image=sampling, guidance=guide,
            seed=n,
        )
        for n, (prompt, sampling, limits, guide) in enumerate(
            itertools.product(PROMPTS, SAMPLINGS, LIMITS, GUIDES)
        )
        if n % 9 == 0  # a ninth of the product, with every pair of factors
    ]  # fmt: skip


@pytest.fixture(scope="module")
def expected(requests, model, grammar) -> list[list[int]]:
    return [generate_reference(model, grammar, request) for request in requests]


@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(),
        EngineConfig(steps_per_sync=1, max_slots=3, page_size=1),
        EngineConfig(steps_per_sync=3, max_slots=64, page_size=5, prefill_tokens=4),
        EngineConfig(steps_per_sync=32, max_slots=5, page_size=2, quantum_steps=2),
        EngineConfig(
            cache_tokens=80, page_size=4, max_slots=12, quantum_steps=5, speculation_window=1
        ),
        EngineConfig(speculation_window=3, max_slots=2, page_size=2),
        EngineConfig(speculation_window=9, max_slots=1, steps_per_sync=2),
        EngineConfig(overlap=True, max_slots=7),
        EngineConfig(
            overlap=True, max_slots=4, speculation_window=3, steps_per_sync=2, page_size=3
        ),
    ],
    ids=[
        "default",
        "single steps",
        "many slots",
        "many steps per sync",
        "small cache",
        "speculation",
        "large windows",
        "overlap",
        "overlap with speculation",
    ],
)
def test_equals_the_reference(config, requests, expected, model, grammar):
    fitting = [r for r in requests if r.guidance is None or config.max_slots > 2]
    if config.max_slots == 2:
        fitting = [r for r in requests if r.guidance != GUIDES[2]]
    completions = dict(zip(fitting, generate_ids(model, grammar, fitting, config), strict=True))
    for request, right in zip(requests, expected, strict=True):
        assert completions.get(request, right) == right, request


@pytest.mark.parametrize("guide", GUIDES)
def test_speculation_saves_passes(guide, model, grammar):
    """A model that repeats itself is guessed right, so an image takes fewer passes than codes."""
    requests = [
        Request(
            prompt_ids=PROMPTS[1],
            limits=Limits(max_new_tokens=24, text=False, max_images=4),
            image=SamplingConfig(temperature=0.5),
            guidance=guide,
            seed=seed,
        )
        for seed in range(4)
    ]
    counts = []
    for window in (1, 4):
        loop = TokenLoop(
            model, grammar, EngineConfig(speculation_window=window, steps_per_sync=1, max_slots=3)
        )
        for request in requests:
            key, ids = loop.submit(request), []
            while key in loop.keys:
                ids += [i for progress in loop.step() for i in progress.ids]
            assert ids == generate_reference(model, grammar, request)
        counts.append(loop.statistics)
    single, speculative = counts
    assert single.guessed == single.accepted == 0
    assert 0 < speculative.accepted < speculative.guessed
    assert speculative.passes == single.passes - speculative.accepted


@pytest.mark.parametrize(("native", "window"), [(True, 1), (True, 3), (False, 1)])
def test_large_images_have_more_steps_per_sync(native, window, tiny_config, monkeypatch):
    """As many as take SYNC_SECONDS, to the end of the image; the tokens are the same."""
    monkeypatch.setattr(speculation, "SYNC_SECONDS", 1e9)
    model = initialise(Decoder(replace(tiny_config, context=160)), seed=0).eval()
    grammar, passes = Grammar(IDS, codes_per_image=49), []
    requests = [
        Request(
            prompt_ids=(IDS.bos_id, A + n),
            limits=Limits(max_new_tokens=55, text=False, max_images=1),
            guidance=guide,
            seed=n,
        )
        for n, guide in enumerate(GUIDES)
    ]
    config = EngineConfig(native=native, speculation_window=window, page_size=4, max_slots=9)
    launch = TokenLoop._launch

    def counted(self, requests, batch, steps, lengths):
        passes.append(steps)
        return launch(self, requests, batch, steps, lengths)

    monkeypatch.setattr(TokenLoop, "_launch", counted)
    expected = [generate_reference(model, grammar, request) for request in requests]
    assert generate_ids(model, grammar, requests, config) == expected
    assert max(passes) > STEPS_PER_SYNC
    passes.clear()
    config = replace(config, steps_per_sync=2)
    assert generate_ids(model, grammar, requests, config) == expected
    assert max(passes) == 2


def test_the_small_cache_preempts(requests, model, grammar):
    """The case "small cache" above therefore shows that preemption loses nothing."""
    config = EngineConfig(
        cache_tokens=80, page_size=4, max_slots=12, quantum_steps=5, speculation_window=1
    )
    loop = TokenLoop(model, grammar, config)
    for request in requests:
        loop.submit(request)
    while not loop.idle:
        loop.step()
    assert loop.statistics.preempted > 2
    assert loop.scheduler.pool.in_use == 0
    check_pool(loop.scheduler.pool)


def test_random_arrivals_and_aborts(requests, expected, model, grammar):
    """Requests arrive at random while others run, and some of those are aborted."""
    draw = random.Random(1)
    loop = TokenLoop(
        model, grammar, EngineConfig(max_slots=6, steps_per_sync=2, page_size=3, quantum_steps=6)
    )
    numbers = draw.sample(range(len(requests)), 36)
    answers: dict[int, list[int]] = {}
    number_of: dict[int, int] = {}
    aborted = set()
    waiting = list(numbers)
    while waiting or not loop.idle:
        for _ in range(min(draw.choice([0, 0, 1, 4]), len(waiting))):
            number = waiting.pop()
            key = loop.submit(requests[number], priority=draw.choice([0, 0, 1]))
            number_of[key], answers[key] = number, []
        running = [key for key in answers if key not in aborted]
        if running and draw.random() < 0.05:
            aborted.add(key := draw.choice(running))
            loop.abort(key)
        for progress in loop.step():
            answers[progress.key] += progress.ids
    kept = [key for key in answers if key not in aborted]
    assert len(kept) > 25
    for key in kept:
        assert answers[key] == expected[number_of[key]]
    for key in aborted:
        assert answers[key] == expected[number_of[key]][: len(answers[key])]
    assert loop.scheduler.pool.in_use == 0


def test_completions_are_well_formed_and_obey_their_limits(requests, expected, grammar):
    n_images = 0
    for request, completion in zip(requests, expected, strict=True):
        whole = [*request.prompt_ids, *completion]
        assert len(completion) <= request.limits.max_new_tokens
        grammar.validate(whole if whole[-1] == IDS.eos_id else [*whole, IDS.eos_id])
        opened = completion.count(IDS.begin_image_id)
        n_images += opened
        if not request.limits.text:
            assert opened == 2
            assert not any(i in IDS.text for i in completion)
        if request.limits.max_images is not None:
            assert opened <= request.limits.max_images
    assert n_images > 10


def test_the_seed_decides(model, grammar):
    def run(seed: int) -> list[int]:
        request = Request(prompt_ids=PROMPTS[1], limits=Limits(max_new_tokens=30), seed=seed)
        return generate_ids(model, grammar, [request])[0]

    assert run(1) == run(1)
    assert len({tuple(run(seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("guide", GUIDES[1:])
def test_guidance_changes_codes(guide, model, grammar):
    def run(guidance: object) -> list[int]:
        request = Request(
            prompt_ids=PROMPTS[2],
            limits=Limits(max_new_tokens=30, text=False, max_images=3),
            guidance=guidance,
        )
        return generate_ids(model, grammar, [request])[0]

    assert run(None) != run(guide)


class NoHostSync(TorchDispatchMode):
    """Raises where the host would wait for a value from the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("the host read a value from the device")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("window", [1, 3])
def test_steps_do_not_synchronise(window, requests, model, grammar, monkeypatch):
    """Within the steps of a plan no value is copied from the device to the host."""
    loop = TokenLoop(
        model, grammar, EngineConfig(max_slots=8, steps_per_sync=4, speculation_window=window)
    )
    ran = []

    def watched(name: str) -> None:
        real = getattr(loop.runner, name)

        def run(*arguments):
            ran.append(name)
            with NoHostSync():
                return real(*arguments)

        monkeypatch.setattr(loop.runner, name, run)

    watched("decode")
    watched("prefill")
    for request in requests[::3]:
        loop.submit(request)
    while not loop.idle:
        loop.step()
    assert set(ran) == {"decode", "prefill"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_steps_do_not_wait_for_a_gpu(requests, expected, model, grammar, monkeypatch):
    loop = TokenLoop(copy.deepcopy(model).cuda(), grammar, EngineConfig(max_slots=8))
    real = loop.runner.decode

    def run(*arguments):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return real(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop.runner, "decode", run)
    keys = {loop.submit(request): [] for request in requests}
    while not loop.idle:
        for progress in loop.step():
            keys[progress.key] += progress.ids
    right = sum(got == want for got, want in zip(keys.values(), expected, strict=True))
    assert right >= 0.9 * len(requests)  # sums have another order of rounding there


def test_no_host_sync_detects_a_read():
    with pytest.raises(AssertionError, match="read a value"), NoHostSync():
        torch.ones(1).item()


def test_a_shared_prompt_is_prefilled_once(model, grammar):
    prompt = (IDS.bos_id, A, *IMAGE, *range(A, A + 9))
    loop = TokenLoop(model, grammar, EngineConfig(page_size=4, max_slots=1))
    for seed in range(3):
        loop.submit(Request(prompt_ids=prompt, limits=Limits(max_new_tokens=5), seed=seed))
    while not loop.idle:
        loop.step()
    whole_pages = (len(prompt) - 1) // 4 * 4
    assert loop.statistics.reused_tokens == 2 * whole_pages
    assert loop.statistics.prefilled_tokens == 3 * (len(prompt) - 1) - 2 * whole_pages


def test_an_image_costs_no_prefill(model, grammar):
    """Entering and leaving images computes every token exactly once."""
    request = Request(
        prompt_ids=PROMPTS[1], limits=Limits(max_new_tokens=30, text=False, max_images=4)
    )
    loop = TokenLoop(model, grammar, EngineConfig())
    loop.submit(request)
    while not loop.idle:
        loop.step()
    assert loop.statistics.prefilled_tokens == len(PROMPTS[1]) - 1
    assert loop.statistics.generated_tokens == 4 * 6


def test_finish_reasons(model, grammar):
    def reason(limits: Limits, **more) -> str:
        loop = TokenLoop(model, grammar, EngineConfig())
        loop.submit(Request(prompt_ids=PROMPTS[1], limits=limits, **more))
        while True:
            for progress in loop.step():
                if progress.finished:
                    return progress.finished

    assert reason(Limits(max_new_tokens=12, text=False, max_images=2)) == "images"
    assert reason(Limits(max_new_tokens=1)) == "length"
    found = {reason(Limits(max_new_tokens=30, one_turn=True), seed=n) for n in range(40)}
    assert found == {"turn", "eos", "length"}


def test_a_paused_request_waits_and_loses_nothing(requests, expected, model, grammar):
    loop = TokenLoop(model, grammar, EngineConfig(max_slots=4, steps_per_sync=2))
    number = next(n for n, ids in enumerate(expected) if len(ids) > 15)
    key = loop.submit(requests[number])
    written: list[int] = []
    for _ in range(3):
        written += [i for progress in loop.step() for i in progress.ids]
    loop.pause(key, True)
    assert loop.idle
    assert loop.step() == []
    loop.pause(key, False)
    while not loop.idle:
        written += [i for progress in loop.step() for i in progress.ids]
    assert written == expected[number]


def test_abort_is_reported_once(model, grammar):
    loop = TokenLoop(model, grammar, EngineConfig())
    key = loop.submit(Request(prompt_ids=PROMPTS[1], limits=Limits(max_new_tokens=30)))
    loop.step()
    loop.abort(key)
    loop.abort(key)
    loop.abort(99)
    assert [p.finished for p in loop.step()] == ["aborted"]
    assert loop.idle


def test_refuses_impossible_requests(model, grammar):
    loop = TokenLoop(model, grammar, EngineConfig(max_waiting=0, max_slots=1))
    short = Limits(max_new_tokens=3, text=False, max_images=1)
    with pytest.raises(RequestError, match="token budget is 3, but 6 are needed"):
        loop.submit(Request(prompt_ids=PROMPTS[0], limits=short))
    with pytest.raises(RequestError, match="context of 48"):
        loop.submit(Request(prompt_ids=PROMPTS[0], limits=Limits(max_new_tokens=48)))
    with pytest.raises(GrammarError):
        loop.submit(Request(prompt_ids=(IDS.eos_id,), limits=Limits(max_new_tokens=4)))
    loop.submit(Request(prompt_ids=PROMPTS[0], limits=Limits(max_new_tokens=4)))
    with pytest.raises(QueueFullError, match="0 requests wait already"):
        loop.submit(Request(prompt_ids=PROMPTS[0], limits=Limits(max_new_tokens=4)))


@pytest.mark.parametrize(
    "values",
    [
        {"seed": 2**64},
        {"seed": -1},
        {"logprobs": -1},
        {"limits": Limits(max_new_tokens=2**63, text=False, max_images=1)},
        {"limits": Limits(max_new_tokens=20, max_images=2**63)},
        {"limits": Limits(max_new_tokens=20, text=False, max_images=-1)},
    ],
)
def test_refuses_numbers_beyond_int64_and_below_0(values):
    with pytest.raises(RequestError, match="must"):
        Request(**({"prompt_ids": PROMPTS[0], "limits": Limits(max_new_tokens=4)} | values))


def test_steps_that_fail_to_launch_lose_no_tokens(model, grammar, requests, expected, monkeypatch):
    """With steps in flight, a failure to launch the next ones raises, and the loop can continue."""
    loop = TokenLoop(model, grammar, EngineConfig(overlap=True, steps_per_sync=2))
    number = next(n for n, ids in enumerate(expected) if len(ids) > 15)
    loop.submit(requests[number])
    real, calls, written = loop.runner.decode, [], []

    def run(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError
        return real(*arguments)

    monkeypatch.setattr(loop.runner, "decode", run)
    failed = 0
    while not loop.idle:
        try:
            written += [i for progress in loop.step() for i in progress.ids]
        except MemoryError:
            failed += 1
    assert failed == 1
    assert written == expected[number]


def test_paused_requests_do_not_count_as_waiting(model, grammar):
    loop = TokenLoop(model, grammar, EngineConfig(max_slots=1, max_waiting=1))
    request = Request(prompt_ids=PROMPTS[0], limits=Limits(max_new_tokens=4))
    for _ in range(4):
        loop.pause(loop.submit(request), True)
    loop.submit(request)
    loop.submit(request)
    with pytest.raises(QueueFullError, match="max_waiting"):
        loop.submit(request)


def test_first_guesses_are_the_codes_above(grammar):
    """Codes 0 1 above 2 3 in the grid: the third is guessed as the first."""
    scheduler = Scheduler(EngineConfig(), 50, grammar, 48)
    ids = (IDS.bos_id, IDS.begin_image_id, *CODES[:2])
    scheduled = scheduler.submit(Request(prompt_ids=ids, limits=Limits(max_new_tokens=20)))
    window = BatchBuilder(grammar, SlotStates(4, torch.device("cpu")))._first_guesses(
        [scheduled], 3
    )
    assert window.guesses.tolist() == [CODES[:2]]


def test_no_requests(model, grammar):
    assert generate_ids(model, grammar, []) == []
