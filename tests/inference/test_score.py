"""Scores equal those of the whole sequence through the model, in any batch and with any cache."""

import random

import numpy as np
import PIL.Image
import pytest
from naive_scores import naive_log_probs, naive_score
from page_pool import check_pool

import pardalis
from pardalis.documents import Document, Image, Text
from pardalis.errors import DataError, GrammarError, RequestError
from pardalis.inference import (
    Engine,
    EngineConfig,
    Finished,
    LogProbs,
    Request,
    Score,
    ScoreRequest,
    TokenLoop,
    generate_reference,
    log_probs,
    to_document,
    to_score_requests,
)
from pardalis.model import Decoder, initialise
from pardalis.tokens import Limits, Vocabulary

IDS = Vocabulary.build(n_codes=12, n_text=20)
A = IDS.text.start
CODES = [IDS.image.start + c for c in (3, 1, 4, 1)]
IMAGE = (IDS.begin_image_id, *CODES, IDS.end_image_id)
PROMPTS = [
    (IDS.bos_id,),
    (IDS.bos_id, *range(A, A + 9)),
    (IDS.bos_id, *range(A, A + 7), *IMAGE, A + 5),
    (IDS.bos_id, A, IDS.begin_image_id, *CODES[:2]),
]
TEXT = [(A,), (A + 3, A + 4, IDS.end_turn_id, A), (*IMAGE, A + 1, *IMAGE, IDS.eos_id), IMAGE[:3]]
IN_IMAGE = [CODES[2:], (*CODES[2:], IDS.end_image_id, A), (CODES[0],)]
REQUESTS = [
    ScoreRequest(prompt_ids=prompt, continuation_ids=tuple(continuation))
    for prompt in PROMPTS
    for continuation in (IN_IMAGE if prompt is PROMPTS[-1] else TEXT)
]
TOLERANCE = 1e-5  # 1.4e-6 measured


@pytest.fixture(scope="module")
def model(tiny_config) -> Decoder:
    return initialise(Decoder(tiny_config), seed=0).eval()


def scores(loop: TokenLoop, requests: list[ScoreRequest]) -> list[Score]:
    tokens = {loop.submit(request): [] for request in requests}
    finished = []
    while not loop.idle:
        for progress in loop.step():
            assert progress.ids == [token.token_id for token in progress.log_probs]
            tokens[progress.key] += progress.log_probs
            finished += [progress.key] if progress.finished == "scored" else []
    assert sorted(finished) == sorted(tokens)
    for request, scored in zip(requests, tokens.values(), strict=True):
        assert tuple(token.token_id for token in scored) == request.continuation_ids
    return [Score.of(scored) for scored in tokens.values()]


def check(model: Decoder, requests: list[ScoreRequest], found: list[Score]) -> None:
    for request, score in zip(requests, found, strict=True):
        expected, greedy = naive_score(model, request.prompt_ids, request.continuation_ids)
        assert score.log_probs == pytest.approx(expected, rel=0, abs=TOLERANCE)
        assert score.log_prob == pytest.approx(sum(expected), rel=0, abs=10 * TOLERANCE)
        assert score.greedy == greedy


@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(),
        EngineConfig(max_slots=1, page_size=1),
        EngineConfig(max_slots=5, page_size=2, prefill_tokens=3),
        EngineConfig(max_slots=16, page_size=4, prefill_tokens=7, cache_tokens=48),
    ],
    ids=["default", "one slot", "parts", "small cache"],
)
def test_equals_the_whole_sequence_through_the_model(config, model, grammar):
    loop = TokenLoop(model, grammar, config)
    check(model, REQUESTS, scores(loop, REQUESTS))
    check(model, REQUESTS[::-1], scores(loop, REQUESTS[::-1]))  # from cached prefixes
    assert loop.scheduler.pool.in_use == 0
    check_pool(loop.scheduler.pool)


def test_greedy_is_the_most_likely_token_of_the_whole_vocabulary(model, grammar):
    requests, expected = [], []
    for first in IDS.text:
        prompt = (IDS.bos_id, A, first)
        best = int(naive_log_probs(model, prompt)[-1].argmax())
        for token_id in IDS.text:
            requests.append(ScoreRequest(prompt_ids=prompt, continuation_ids=(token_id,)))
            expected.append(token_id == best)
    found = scores(TokenLoop(model, grammar, EngineConfig()), requests)
    assert [score.greedy for score in found] == expected
    assert {True, False} == set(expected)


def test_continuations_of_one_prompt_compute_it_once(model, grammar):
    prompt = (IDS.bos_id, A, *IMAGE, *range(A, A + 11))  # 19 tokens: 4 pages of 4, and 3 tokens
    requests = [ScoreRequest(prompt_ids=prompt, continuation_ids=(A + n, A)) for n in range(9)]
    for max_slots in (1, 4, 16):
        loop = TokenLoop(model, grammar, EngineConfig(page_size=4, max_slots=max_slots))
        check(model, requests, scores(loop, requests))
        assert loop.statistics.prefilled_tokens == 16 + 9 * (3 + 1)
        assert loop.statistics.reused_tokens == 8 * 16


def test_a_prompt_longer_than_a_pass_is_computed_once(model, grammar):
    prompt = (IDS.bos_id, *range(A, A + 17), *range(A, A + 15))  # 33 tokens: 8 pages and one
    requests = [ScoreRequest(prompt_ids=prompt, continuation_ids=(A + n, A)) for n in range(3)]
    loop = TokenLoop(model, grammar, EngineConfig(page_size=4, prefill_tokens=6))
    check(model, requests, scores(loop, requests))
    assert loop.statistics.prefilled_tokens == 32 + 3 * (1 + 1)


def test_scores_beside_generation_change_nothing(model, grammar):
    generated = [
        Request(prompt_ids=prompt, limits=Limits(max_new_tokens=12), seed=n)
        for n, prompt in enumerate(PROMPTS * 2)
    ]
    config = EngineConfig(max_slots=6, page_size=4, prefill_tokens=9, cache_tokens=160)
    loop, draw = TokenLoop(model, grammar, config), random.Random(0)
    waiting: list[Request | ScoreRequest] = [*generated, *REQUESTS]
    draw.shuffle(waiting)
    keys, ids, tokens = {}, {}, {}
    while waiting or not loop.idle:
        if waiting:
            key = loop.submit(request := waiting.pop())
            keys[key], ids[key], tokens[key] = request, [], []
        for progress in loop.step():
            ids[progress.key] += progress.ids
            tokens[progress.key] += progress.log_probs
    for key, request in keys.items():
        if isinstance(request, Request):
            assert ids[key] == generate_reference(model, grammar, request)
            assert tokens[key] == []
        else:
            check(model, [request], [Score.of(tokens[key])])
    check_pool(loop.scheduler.pool)


def test_a_preempted_score_reports_each_token_once(model, grammar):
    request = ScoreRequest(prompt_ids=PROMPTS[1], continuation_ids=tuple(range(A, A + 18)))
    loop = TokenLoop(model, grammar, EngineConfig(page_size=4, prefill_tokens=5, max_slots=2))
    key, tokens = loop.submit(request), []
    for _ in range(4):
        for progress in loop.step():
            tokens += progress.log_probs
    assert 0 < len(tokens) < 18
    scheduled = loop.scheduler._running[0]
    loop.scheduler._preempt(scheduled)
    while key in loop.keys:
        tokens += [token for progress in loop.step() for token in progress.log_probs]
    assert tuple(token.token_id for token in tokens) == request.continuation_ids
    check(model, [request], [Score.of(tokens)])


def test_an_aborted_score_says_so(model, grammar):
    loop = TokenLoop(model, grammar, EngineConfig(prefill_tokens=4))
    key = loop.submit(ScoreRequest(prompt_ids=PROMPTS[1], continuation_ids=TEXT[1]))
    loop.step()
    loop.abort(key)
    assert [progress.finished for progress in loop.step()] == ["aborted"]
    assert loop.idle
    assert loop.scheduler.pool.in_use == 0


def test_few_logits_exist_at_a_time(model, grammar, monkeypatch):
    sizes = []
    monkeypatch.setattr(log_probs, "_LOGITS_AT_ONCE", 3 * IDS.size)
    loop = TokenLoop(model, grammar, EngineConfig())
    real = loop.runner.head.whole
    monkeypatch.setattr(loop.runner.head, "whole", lambda x: sizes.append(len(x)) or real(x))
    check(model, REQUESTS, scores(loop, REQUESTS))
    assert max(sizes) == 3


@pytest.mark.parametrize(
    ("prompt", "continuation", "error", "message"),
    [
        ((IDS.bos_id,), (), RequestError, "The continuation has no tokens"),
        ((), (A,), RequestError, "The prompt has no tokens"),
        ((IDS.bos_id,), (A,) * 48, RequestError, "continuation have 49 tokens, more than the mod"),
        ((IDS.bos_id,), (CODES[0],), GrammarError, "at position 1; expected text"),
        ((A,), (A,), GrammarError, "at position 0; expected <bos>"),
    ],
)
def test_refuses_what_has_no_score(prompt, continuation, error, message, model, grammar):
    loop = TokenLoop(model, grammar, EngineConfig())
    with pytest.raises(error, match=message):
        loop.submit(ScoreRequest(prompt_ids=prompt, continuation_ids=continuation))
    assert loop.idle


# ── documents ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def image() -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8))


def test_documents_of_text_and_images(bundle, image):
    owl, picture = Document((Text("owl"),)), Document((Image(image),))
    pairs = [
        ("An owl", " sat on", Document((Text(" sat on"),))),
        ("An owl", [image, "ok"], Document((Image(image), Text("ok")))),
        ([image, "what"], "owl", owl),
        ([image, "what"], image, picture),
        (Document((Text("what", role="user"),)), Document((Text("owl", role="assistant"),)), owl),
        ([], "owl", owl),
    ]
    found = pardalis.score(bundle, [(prompt, continuation) for prompt, continuation, _ in pairs])
    for (prompt, _, plain), score in zip(pairs, found, strict=True):
        prompt_ids = bundle.codec.encode_prompt(to_document(prompt))
        [_, *ids, _] = bundle.codec.encode(plain).ids.tolist()
        expected, greedy = naive_score(bundle.model, prompt_ids, ids)
        assert score.log_probs == pytest.approx(expected, rel=0, abs=TOLERANCE)
        assert score.greedy == greedy


def test_one_prompt_is_encoded_once(bundle, image, monkeypatch):
    encoded, real = [], bundle.codec.encode_prompt
    monkeypatch.setattr(bundle.codec, "encode_prompt", lambda d: encoded.append(d) or real(d))
    pardalis.score(bundle, [([image, "what"], "owl"), ([image, "what"], "fox"), ("what", "fox")])
    assert len(encoded) == 2


def test_ids_and_documents_mix(bundle):
    ids = bundle.codec.encode(Document((Text("fox"),))).ids.tolist()
    asked = ScoreRequest(prompt_ids=(ids[0],), continuation_ids=tuple(ids[1:-1]))
    first, second = pardalis.score(bundle, [("", "fox"), asked])
    assert first.log_probs == pytest.approx(second.log_probs, abs=TOLERANCE)
    assert pardalis.score(bundle, []) == []


def test_more_than_may_wait(bundle):
    found = pardalis.score(bundle, [("An owl", "fox")] * 1200)
    assert len(found) == 1200
    for score in found:
        assert score.log_probs == pytest.approx(found[0].log_probs, abs=TOLERANCE)


def test_errors_come_before_anything_is_computed(bundle, monkeypatch):
    monkeypatch.setattr("pardalis.inference.api.Engine", None)
    with pytest.raises(RequestError, match="have 66 tokens, more than the model's context of 40"):
        pardalis.score(bundle, [("owl", "owl"), ("x" * 60, "x" * 5)])
    with pytest.raises(RequestError, match="The continuation has no tokens"):
        pardalis.score(bundle, [("owl", "")])
    with pytest.raises(DataError):
        pardalis.score(bundle, [("owl", b"no image")])


def test_an_engine_scores_beside_completions(bundle):
    [expected] = pardalis.score(bundle, [("An owl", "fox")])
    request = next(to_score_requests(bundle, [("An owl", "fox")]))
    with Engine(bundle) as engine:
        other = engine.submit("owl", mode="image", seed=3)
        completion = engine.submit_request(request)
        *events, last = completion
        assert {type(event) for event in events} == {LogProbs}
        assert isinstance(last, Finished)
        assert (last.reason, last.usage.images) == ("scored", 0)
        assert last.usage.prompt_tokens == len(request.prompt_ids)
        assert last.usage.completion_tokens == len(request.continuation_ids)
        assert completion.log_probs == [token for event in events for token in event.tokens]
        found = Score.of(completion.log_probs)
        assert found.log_probs == pytest.approx(expected.log_probs, abs=TOLERANCE)
        assert completion.wait() == Document(())
        assert len(other.wait().images) == 1
