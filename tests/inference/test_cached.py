"""The cached loop equals the naive one, id for id, whatever shares its batch."""

import itertools

import pytest

from pardalis.errors import RequestError
from pardalis.inference import Request, SamplingConfig, generate_cached, generate_reference
from pardalis.tokens import Limits, Vocabulary

IDS = Vocabulary.build(n_codes=12, n_text=20)
A = IDS.text.start
CODES = [IDS.image.start + c for c in (3, 1, 4, 1)]
PROMPTS = [
    (IDS.bos_id,),
    (IDS.bos_id, A, A + 1, A + 2),
    (IDS.bos_id, A, IDS.begin_image_id, *CODES, IDS.end_image_id, A + 5),
    (IDS.bos_id, A, IDS.begin_image_id, *CODES[:2]),
]
SAMPLINGS = [
    SamplingConfig(temperature=0.0),
    SamplingConfig(temperature=1.0),
    SamplingConfig(temperature=1.5, top_k=5),
    SamplingConfig(temperature=0.8, top_p=0.7),
]
LIMITS = [
    Limits(room=25),
    Limits(room=25, max_pictures=0),
    Limits(room=25, text=False, max_pictures=2),
    Limits(room=20, max_pictures=1),
]


def requests() -> list[Request]:
    return [
        Request(
            prompt_ids=prompt, limits=limits, text=sampling, picture=sampling, guidance=guidance,
            seed=n,
        )
        for n, (prompt, sampling, limits, guidance) in enumerate(
            itertools.product(PROMPTS, SAMPLINGS, LIMITS, [1.0, 3.0])
        )
        if n % 3 == 0  # a third of the product, every factor met with every other
    ]  # fmt: skip


def test_equals_the_reference(tiny_model, grammar):
    asked = requests()
    together = generate_cached(tiny_model, grammar, asked)
    for request, answer in zip(asked, together, strict=True):
        assert answer == generate_reference(tiny_model, grammar, request), request


def test_an_answer_does_not_depend_on_its_neighbours(tiny_model, grammar):
    asked = requests()[:12]
    together = generate_cached(tiny_model, grammar, asked)
    reversed_ = generate_cached(tiny_model, grammar, asked[::-1])[::-1]
    alone = [generate_cached(tiny_model, grammar, [request])[0] for request in asked]
    assert together == reversed_ == alone


def test_answers_are_well_formed_and_use_their_limits(tiny_model, grammar):
    drew = 0
    for request, answer in zip(
        requests(), generate_cached(tiny_model, grammar, requests()), strict=True
    ):
        whole = [*request.prompt_ids, *answer]
        assert len(answer) <= request.limits.room
        grammar.validate(whole if whole[-1] == IDS.eos_id else [*whole, IDS.eos_id])
        opened = answer.count(IDS.begin_image_id)
        drew += opened
        if not request.limits.text:
            assert opened == 2
            assert not any(i in IDS.text for i in answer)
        if request.limits.max_pictures is not None:
            assert opened <= request.limits.max_pictures
    assert drew > 10


def test_the_seed_decides(tiny_model, grammar):
    def ask(seed: int) -> list[int]:
        request = Request(prompt_ids=PROMPTS[1], limits=Limits(room=30), seed=seed)
        return generate_cached(tiny_model, grammar, [request])[0]

    assert ask(1) == ask(1)
    assert len({tuple(ask(seed)) for seed in range(5)}) > 1


def test_guidance_changes_codes(tiny_model, grammar):
    def ask(guidance: float) -> list[int]:
        request = Request(
            prompt_ids=PROMPTS[1],
            limits=Limits(room=30, text=False, max_pictures=3),
            picture=SamplingConfig(temperature=0.0),
            guidance=guidance,
        )
        return generate_cached(tiny_model, grammar, [request])[0]

    assert ask(1.0) != ask(8.0)


def test_no_room(tiny_model, grammar):
    request = Request(prompt_ids=PROMPTS[0], limits=Limits(room=3, text=False, max_pictures=1))
    with pytest.raises(RequestError, match="room for 3 more, but 6 are needed"):
        generate_cached(tiny_model, grammar, [request])


def test_nothing_asked(tiny_model, grammar):
    assert generate_cached(tiny_model, grammar, []) == []
