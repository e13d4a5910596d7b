"""An engine that is kept: the same results as engines of their own, and made anew when needed."""

from dataclasses import replace

import pytest
import torch
from shapes import decoder_config

from pardalis.bundle import Bundle
from pardalis.documents import Document, Text
from pardalis.inference import KeptEngine, Score, ScoreRequest, complete, to_request
from pardalis.inference.generation import GenerationConfig
from pardalis.model import Decoder, initialise


@pytest.fixture(scope="module")
def bundle(codec) -> Bundle:
    torch.set_num_threads(1)
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=64, d_model=32, n_layers=2, n_heads=4,
        n_kv_heads=2, d_ff=64, init_std=0.3,
    )  # fmt: skip
    return Bundle(initialise(Decoder(config), 0).eval(), codec, {})


def scored(bundle: Bundle, prompt: str, n: int) -> list[ScoreRequest]:
    ids = bundle.codec.encode_prompt(Document((Text(prompt),)))
    text = bundle.codec.vocabulary.text
    return [
        ScoreRequest(prompt_ids=tuple(ids), continuation_ids=(text[i], text[5])) for i in range(n)
    ]


def test_groups_share_an_engine_and_the_keys_of_prompts(bundle):
    group = scored(bundle, "The quick brown fox jumps over", 6)
    alone = [Score.of(each.log_probs) for each in complete(bundle, group)]
    with KeptEngine(bundle) as kept:
        assert kept.complete([]) == []
        first = kept.engine_for(group)
        for _ in range(2):
            found = [Score.of(each.log_probs) for each in kept.complete(group)]
            sums = [each.log_prob for each in alone]
            assert [each.log_prob for each in found] == pytest.approx(sums, abs=1e-5)
        assert kept.engine_for(group[:1]) is first
        assert first.statistics.reused_tokens > len(group[0].prompt_ids) * len(group)
        request = to_request(bundle, "owl", GenerationConfig(mode="text", max_new_tokens=40))
        second = kept.engine_for([request])
        assert second is not first and second.config.cache_tokens >= first.config.cache_tokens
        assert kept.complete([request])[0].wait().text == complete(bundle, [request])[0].wait().text
        second.submit_request(replace(request))  # not completed: it is given up
        assert kept.engine_for([request]) is not second


def test_pages_of_another_group_leave_room_for_scores(bundle):
    """Scores have pages of one token; those of generation may end in the middle of a page."""
    request = to_request(bundle, "owl", GenerationConfig(mode="text", max_new_tokens=2))
    text = bundle.codec.vocabulary.text
    for n_tokens in range(10, 40):
        long = replace(scored(bundle, "owl", 1)[0], continuation_ids=(text[7],) * n_tokens)
        with KeptEngine(bundle) as kept:
            kept.complete([request])
            [completion] = kept.complete([long])
            assert len(completion.log_probs) == n_tokens
            assert kept.engine_for([long]) is kept.engine_for([request])
