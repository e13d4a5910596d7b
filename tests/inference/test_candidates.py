"""Pools of candidates and their ranking."""

from dataclasses import replace

import pytest
from random_adapters import random_adapter

from pardalis.adapters import LoRAConfig
from pardalis.documents import Document, Image, Text
from pardalis.errors import RequestError
from pardalis.inference import (
    POOLS,
    SCORERS,
    GenerationConfig,
    generate,
    generate_ranked,
    score,
    to_document,
)
from pardalis.inference.candidates import half_top_p_half_cd_k

IMAGES = {"mode": "image", "image_temperature": 1.0, "max_images": 1}


def test_half_of_a_pool_has_contrastive_decoding():
    config = GenerationConfig(mode="image", guidance=3.0, image_guidance=1.2, image_top_p=0.8)
    given = {"contrastive_alpha": 0.2, "contrastive_k": 4}
    pool = half_top_p_half_cd_k(5, config, given)
    assert pool[:3] == [config] * 3
    [other] = set(pool[3:])
    assert (other.contrastive_alpha, other.contrastive_k) == (0.2, 4)
    assert (other.guidance, other.image_guidance, other.image_top_p) == (1.0, None, 0.8)
    assert POOLS["same"](2, config, given) == [config] * 2


def test_candidates_are_ranked_by_the_prompt_after_their_images(bundle):
    found = generate_ranked(bundle, "An owl", candidates=4, pool="half_top_p_half_cd_k", **IMAGES)
    assert sorted(each.number for each in found) == [0, 1, 2, 3]
    assert [each.config.contrastive_alpha for each in found if each.number > 1] == [0.1] * 2
    scores = [each.score for each in found]
    assert scores == sorted(scores, reverse=True)
    images = {each.response.images[0].source.tobytes() for each in found}
    assert len(images) > 1
    for each in found:
        image = Document((Image(each.response.images[0].source),))
        [expected] = score(bundle, [(image, Text("An owl"))])
        n = len(bundle.codec.text_tokenizer.encode("An owl"))
        assert each.score == pytest.approx(expected.log_prob / n, abs=1e-5)
    # The first candidate is what one prompt alone gets.
    [first] = [each for each in found if each.number == 0]
    assert first.response == generate(bundle, "An owl", **IMAGES)


def test_the_likelihood_of_texts(bundle):
    options = {"mode": "text", "temperature": 1.0, "max_new_tokens": 5}
    found = generate_ranked(bundle, "An", candidates=3, rank_by="likelihood", **options)
    for each in found:
        [expected] = score(bundle, [("An", each.response)])
        assert each.score == pytest.approx(expected.log_prob / len(expected.log_probs), abs=1e-5)


def test_the_likelihood_of_a_turn_is_that_after_the_turn_before_it(bundle):
    options = {"mode": "text", "temperature": 1.0, "max_new_tokens": 5, "chat": True}
    found = generate_ranked(bundle, "An", candidates=2, rank_by="likelihood", **options)
    turn = to_document("An", "user")
    for each in found:
        [expected] = score(bundle, [(turn, Document(each.response.segments))])
        assert each.score == pytest.approx(expected.log_prob / len(expected.log_probs), abs=1e-5)


@pytest.mark.parametrize("rank_by", ["prompt", "likelihood"])
def test_candidates_are_judged_by_the_adapters_that_generated_them(bundle, monkeypatch, rank_by):
    config = LoRAConfig(rank=2, alpha=4.0)
    adapters = {
        name: random_adapter(bundle.model, config, bundle.codec.vocabulary, seed, scale=0.5)
        for seed, name in enumerate(("first", "second"))
    }

    def pool(n, config, contrastive):
        return [replace(config, adapter=name) for name in (None, "first", "second")]

    monkeypatch.setitem(POOLS, "same", pool)
    options = {"rank_by": rank_by, "adapters": adapters, **IMAGES}
    found = generate_ranked(bundle, "An owl", candidates=3, **options)
    assert {each.config.adapter for each in found} == {None, "first", "second"}
    for each in found:
        image = Document((Image(each.response.images[0].source),))
        pair = (image, Text("An owl")) if rank_by == "prompt" else ("An owl", each.response)
        adapter = each.config.adapter
        [expected] = score(bundle, [pair], adapters=adapters, adapter=adapter)
        mean = expected.log_prob / len(expected.log_probs)
        assert each.score == pytest.approx(mean, abs=1e-5), adapter
        if adapter:
            [plain] = score(bundle, [pair])
            assert abs(plain.log_prob - expected.log_prob) > 1e-2


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("owl", {"pool": "many"}, "pool must be one of same, half_top_p_half_cd_k, got 'many'"),
        ("owl", {"rank_by": "clip"}, "rank_by must be one of prompt, likelihood, got 'clip'"),
        ("owl", {"candidates": 0}, "candidates must be a whole number, 1 or more, got 0"),
        ("owl", {"mode": "text", "max_new_tokens": 2}, "'prompt' needs a prompt with text and"),
        ("", {"mode": "image", "candidates": 2}, "'prompt' needs a prompt with text and"),
    ],
)
def test_what_cannot_be_ranked(bundle, prompt, options, message):
    with pytest.raises(RequestError, match=message):
        generate_ranked(bundle, prompt, **options)


def test_the_command_line_knows_all_names():
    from pardalis.cli.generate_otherwise import _POOLS, _SCORERS

    assert (tuple(POOLS), tuple(SCORERS)) == (_POOLS, _SCORERS)
