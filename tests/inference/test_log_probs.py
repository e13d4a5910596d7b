"""Log-probabilities of generated tokens are those of the model, and cost nothing if unused."""

import itertools

import pytest
import torch
from naive_scores import naive_log_probs

import pardalis
from pardalis.inference import (
    Contrastive,
    Engine,
    EngineConfig,
    Guidance,
    LogProbs,
    Request,
    SamplingConfig,
    TokenLoop,
    generate_reference,
    steps,
    to_request,
)
from pardalis.model import Decoder, initialise
from pardalis.tokens import Limits, Vocabulary

IDS = Vocabulary.build(n_codes=12, n_text=20)
A = IDS.text.start
PROMPTS = [(IDS.bos_id, A, A + 1), (IDS.bos_id, A, IDS.begin_image_id, IDS.image.start + 2)]
LIMITS = [Limits(max_new_tokens=20), Limits(max_new_tokens=20, text=False, max_images=2)]
GUIDES = [None, Guidance(text=3.0, image=1.2), Contrastive(alpha=0.2, k=3)]
SAMPLING = SamplingConfig(temperature=1.5, top_k=9)
TOLERANCE = 1e-5  # 2.9e-6 measured
REQUESTS = [
    Request(
        prompt_ids=prompt, limits=limits, text=SAMPLING, image=SAMPLING, guidance=guide, seed=n,
        logprobs=(0, 1, 4, 1000)[n % 4],
    )
    for n, (prompt, limits, guide) in enumerate(itertools.product(PROMPTS, LIMITS, GUIDES))
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_config) -> Decoder:
    return initialise(Decoder(tiny_config), seed=0).eval()


@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(speculation_window=1),
        EngineConfig(speculation_window=3, max_slots=3, steps_per_sync=3),
        EngineConfig(overlap=True, speculation_window=3, prefill_tokens=2),
    ],
    ids=["single codes", "speculation", "overlap"],
)
def test_equal_the_whole_sequence_through_the_model(config, model, grammar):
    loop = TokenLoop(model, grammar, config)
    keys = {loop.submit(request): request for request in REQUESTS}
    ids, tokens = {key: [] for key in keys}, {key: [] for key in keys}
    while not loop.idle:
        for progress in loop.step():
            ids[progress.key] += progress.ids
            tokens[progress.key] += progress.log_probs
    for key, request in keys.items():
        assert ids[key] == generate_reference(model, grammar, request)
        if not request.logprobs:
            assert tokens[key] == []
            continue
        assert [token.token_id for token in tokens[key]] == ids[key]
        whole = naive_log_probs(model, [*request.prompt_ids, *ids[key]])
        for token, expected in zip(tokens[key], whole[len(request.prompt_ids) - 1 :], strict=False):
            assert token.log_prob == pytest.approx(float(expected[token.token_id]), abs=TOLERANCE)
            n = min(request.logprobs, IDS.size)
            found_ids, found = zip(*token.top, strict=True)
            assert torch.tensor(found) == pytest.approx(expected.topk(n).values, abs=TOLERANCE)
            assert expected[list(found_ids)] == pytest.approx(torch.tensor(found), abs=TOLERANCE)
            assert len(set(found_ids)) == n


def test_nothing_is_computed_without_the_option(bundle, monkeypatch):
    monkeypatch.setattr(steps, "log_probs_of", None)
    with Engine(bundle) as engine:
        completion = engine.submit("owl", seed=3)
        assert LogProbs not in map(type, completion)
        assert completion.log_probs == []
        with pytest.raises(TypeError):
            engine.submit("owl", logprobs=1).wait()


def test_events_hold_all_tokens_in_order(bundle):
    for options in ({"mode": "image"}, {"mode": "text", "temperature": 2.0}, {"guidance": 2.0}):
        request = to_request(bundle, "owl", seed=3, max_new_tokens=20, logprobs=2, **options)
        with Engine(bundle, EngineConfig(steps_per_sync=3)) as engine:
            completion = engine.submit_request(request)
            events = list(completion)
        ids = generate_reference(bundle.model, bundle.codec.grammar, request)
        tokens = [
            token for event in events if isinstance(event, LogProbs) for token in event.tokens
        ]
        assert [token.token_id for token in tokens] == ids
        assert tokens == completion.log_probs
        assert {len(token.top) for token in tokens} == {2}


def test_the_most_likely_token_is_the_first_of_the_top(bundle):
    """At temperature 0 a text has the most likely tokens, where the grammar allows them."""
    with Engine(bundle) as engine:
        completion = engine.submit("An owl", mode="text", logprobs=1)
        completion.wait()
    allowed = {*bundle.codec.vocabulary.text, bundle.codec.vocabulary.eos_id}
    tokens = [token for token in completion.log_probs if token.top[0][0] in allowed]
    assert len(tokens) > 3
    for token in tokens[:-1]:  # the last may be the eos that the token budget forces
        assert token.top[0] == (token.token_id, token.log_prob)


def test_responses_have_those_of_their_completion(bundle):
    with Engine(bundle) as engine:
        completion = engine.submit("owl", logprobs=1)
        assert completion.wait().log_probs == tuple(completion.log_probs) != ()
    assert pardalis.generate(bundle, "owl", logprobs=1).log_probs == tuple(completion.log_probs)
