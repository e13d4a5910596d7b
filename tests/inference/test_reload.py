"""After new weights a loop gives what a new loop gives, to the bit."""

import copy
from dataclasses import replace

import pytest
import torch
from page_pool import check_pool

import pardalis
from pardalis.errors import ConfigError, RequestError
from pardalis.inference import (
    Engine,
    EngineConfig,
    Guidance,
    Request,
    SamplingConfig,
    ScoreRequest,
    TokenLoop,
)
from pardalis.model import Decoder, initialise
from pardalis.tokens import Limits, Vocabulary

IDS = Vocabulary.build(n_codes=12, n_text=20)
A = IDS.text.start
PROMPTS = [(IDS.bos_id, *range(A, A + 9)), (IDS.bos_id, A, IDS.begin_image_id, IDS.image.start)]
CONFIG = EngineConfig(page_size=4, speculation_window=2)  # passes that do not depend on the clock
REQUESTS = [
    ScoreRequest(prompt_ids=PROMPTS[0], continuation_ids=(A, A + 3, IDS.eos_id)),
    *(
        Request(
            prompt_ids=prompt, limits=Limits(max_new_tokens=20), guidance=guide, logprobs=3,
            image=SamplingConfig(temperature=1.5), seed=1,
        )
        for prompt in PROMPTS
        for guide in (None, Guidance(text=3.0))
    ),
]  # fmt: skip


def make(config, seed) -> Decoder:
    return initialise(Decoder(config), seed=seed).eval()


def run(loop: TokenLoop) -> list[object]:
    """Return everything that the requests give, log-probabilities to the bit included."""
    results = {loop.submit(request): [] for request in REQUESTS}
    while not loop.idle:
        for progress in loop.step():
            results[progress.key] += [*progress.log_probs, progress.finished]
    return [[item for item in result if item is not None] for result in results.values()]


@pytest.mark.parametrize("weights", ["stored", "int8"])
@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "another module"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_equals_a_new_loop_to_the_bit(tied, weights, in_place, tiny_config, grammar):
    tiny_config = replace(tiny_config, tie_embeddings=tied)
    config = replace(CONFIG, weights=weights)
    model, other = make(tiny_config, 0), make(tiny_config, 1)
    loop = TokenLoop(model, grammar, config)
    before = run(loop)
    n_reused = loop.statistics.reused_tokens
    if in_place:
        model.load_state_dict(other.state_dict())
        loop.reload(model)
    else:
        loop.reload(other)
    after = run(loop)
    assert after == run(TokenLoop(other, grammar, config)) != before
    assert loop.statistics.reused_tokens == n_reused  # no prefix of the weights before
    loop.reload(make(tiny_config, 0))
    check_pool(loop.scheduler.pool)
    assert run(loop) == before


def test_a_model_in_16_bits(tiny_config, grammar):
    model, other = make(tiny_config, 0).bfloat16(), make(tiny_config, 1).bfloat16()
    loop = TokenLoop(model, grammar, CONFIG)
    run(loop)
    loop.reload(other)
    assert run(loop) == run(TokenLoop(other, grammar, CONFIG))


def test_weights_without_nan_follow_weights_with_nan(tiny_config, grammar):
    """The cache is full of NaN, and positions beyond a sequence are multiplied by 0."""
    broken = make(tiny_config, 0)
    with torch.no_grad():
        broken.embedding.weight.fill_(torch.nan)
    loop = TokenLoop(broken, grammar, CONFIG)
    run(loop)
    whole = make(tiny_config, 1)
    loop.reload(whole)
    assert run(loop) == run(TokenLoop(whole, grammar, CONFIG))


@pytest.mark.parametrize("overlap", [False, True])
def test_refused_while_a_request_runs(overlap, tiny_config, grammar):
    model, other = make(tiny_config, 0), make(tiny_config, 1)
    config = replace(CONFIG, overlap=overlap, steps_per_sync=2)
    loop = TokenLoop(model, grammar, config)
    loop.submit(REQUESTS[1])
    loop.pause(loop.submit(REQUESTS[2]), True)
    for _ in range(4):
        loop.step()
    with pytest.raises(RequestError, match="2 requests have not finished, and the model cannot"):
        loop.reload(other)
    for open_key in loop.keys:
        loop.abort(open_key)
    loop.reload(other)
    assert [p.finished for p in loop.step()] == ["aborted", "aborted"]
    assert run(loop) == run(TokenLoop(other, grammar, config))


def test_refuses_another_model(tiny_config, grammar):
    loop = TokenLoop(make(tiny_config, 0), grammar, CONFIG)
    for change, message in [
        ({"context": 64}, "differs in context: 64, where the loop was made for 48; make a new"),
        ({"n_layers": 1}, "differs in the cache: "),
        ({"d_model": 64}, "differs in the cache: "),
    ]:
        with pytest.raises(ConfigError, match=message):
            loop.reload(make(replace(tiny_config, **change), 0))
    with pytest.raises(ConfigError, match=r"embedding.weight: .* torch.float64 cpu, where"):
        loop.reload(make(tiny_config, 0).double())
    first = run(loop)
    assert first == run(TokenLoop(make(tiny_config, 0), grammar, CONFIG))


def test_an_engine_takes_new_weights(bundle):
    other = initialise(copy.deepcopy(bundle.model), 5)
    expected = pardalis.generate(replace(bundle, model=other), "owl", mode="image")
    with Engine(bundle) as engine:
        first = engine.submit("owl", mode="image")
        with pytest.raises(RequestError, match="1 requests have not finished"):
            engine.reload(other)
        assert first.wait() != expected
        engine.reload(other)
        assert engine.bundle.model is other
        assert engine.submit("owl", mode="image").wait() == expected
