"""The naive loop: its contexts under guidance, its limits, and what decides an answer."""

import pytest
import torch

from pardalis.errors import RequestError
from pardalis.inference import Contrastive, Guidance, Request, SamplingConfig, generate_reference
from pardalis.tokens import Limits, Vocabulary

IDS = Vocabulary.build(n_codes=12, n_text=20)
A = IDS.text.start
CODES = [IDS.image.start + c for c in (3, 1, 4, 1)]
IMAGE = (IDS.begin_image_id, *CODES, IDS.end_image_id)
AFTER_TEXT = (IDS.bos_id, A, A + 1, A + 2)
AFTER_IMAGE = (IDS.bos_id, A, *IMAGE, A + 5)
GREEDY = SamplingConfig(temperature=0.0)
DRAW = Limits(max_new_tokens=30, text=False, max_images=2)


def ask(model, grammar, guidance=None, prompt=AFTER_TEXT, limits=DRAW, **changes):
    request = Request(prompt_ids=prompt, limits=limits, guidance=guidance, **changes)
    return generate_reference(model, grammar, request)


def test_the_streams_of_a_guided_image(tiny_model, grammar):
    """While a code is chosen: all, the open image behind bos, and all images without text."""
    read = []
    tiny_model.register_forward_pre_hook(lambda _, args: read.append(tuple(args[0][0].tolist())))
    answer = ask(
        tiny_model,
        grammar,
        Guidance(text=3.0, image=1.2),
        AFTER_IMAGE,
        Limits(max_new_tokens=6, text=False, max_images=1),
    )
    assert [len(answer), answer[0], answer[-1]] == [6, IMAGE[0], IMAGE[-1]]
    expected = [AFTER_IMAGE]  # begin_image is chosen without guidance
    for n in range(1, 5):
        drawn = tuple(answer[:n])
        expected += [
            AFTER_IMAGE + drawn,
            (IDS.bos_id, *drawn),
            (IDS.bos_id, *IMAGE, *drawn),
        ]
    expected.append(AFTER_IMAGE + tuple(answer[:5]))  # and so is end_image
    assert read == expected


def greedy_codes(model, prompt, mix):
    """Write the codes of one image, each the likeliest by a mixture of three streams."""
    codes: list[int] = []
    columns = torch.tensor(list(IDS.image))
    for _ in range(4):
        opened = [IDS.begin_image_id, *codes]
        images = [i for i in prompt if i not in IDS.text]
        streams = ([*prompt, *opened], [IDS.bos_id, *opened], [*images, *opened])
        with torch.no_grad():
            whole, alone, seen = (model(torch.tensor([s]))[0, -1, columns] for s in streams)
        codes.append(IDS.image.start + int(mix(whole, alone, seen).argmax()))
    return codes


@pytest.mark.parametrize("prompt", [AFTER_TEXT, *((*AFTER_IMAGE, A + n) for n in range(5))])
@pytest.mark.parametrize(
    ("guidance", "mix"),
    [
        (None, lambda w, a, s: w),
        (Guidance(text=4.0), lambda w, a, s: a + 4 * (w - a)),
        (Guidance(text=3.0, image=2.0), lambda w, a, s: a + 2 * (s - a) + 3 * (w - s)),
        (
            Contrastive(alpha=0.5, k=3),
            lambda w, a, s: (w - a).masked_fill(
                w.softmax(0) < 0.5 * w.softmax(0).topk(3).values[-1], -torch.inf
            ),
        ),
    ],
)
def test_codes_of_each_form(tiny_model, grammar, guidance, mix, prompt):
    limits = Limits(max_new_tokens=6, text=False, max_images=1)
    answer = ask(tiny_model, grammar, guidance, prompt, limits, image=GREEDY)
    assert answer[1:5] == greedy_codes(tiny_model, prompt, mix)


def test_forms_that_agree(tiny_model, grammar):
    free = Limits(max_new_tokens=30)
    for seed in range(2):
        plain = ask(tiny_model, grammar, None, limits=free, seed=seed)
        assert ask(tiny_model, grammar, Guidance(text=1.0), limits=free, seed=seed) == plain
        one = Limits(max_new_tokens=6, text=False, max_images=1)
        # Before the first image there is nothing that the image scale could hold on to.
        two_way = ask(tiny_model, grammar, Guidance(text=3.0), limits=one, seed=seed)
        three_way = Guidance(text=3.0, image=5.0)
        assert ask(tiny_model, grammar, three_way, limits=one, seed=seed) == two_way


def test_a_prompt_may_end_inside_an_image(tiny_model, grammar):
    begun = (*AFTER_TEXT, *IMAGE[:3])
    limits = Limits(max_new_tokens=4, text=False, max_images=0)
    for guidance in (None, Guidance(text=3.0, image=1.2), Contrastive(alpha=0.3, k=2)):
        answer = ask(tiny_model, grammar, guidance, begun, limits)
        assert len(answer) == 3
        assert answer[-1] == IDS.end_image_id


def test_guidance_leaves_text_alone(tiny_model, grammar):
    words = Limits(max_new_tokens=15, max_images=0)
    plain = ask(tiny_model, grammar, None, AFTER_IMAGE, words)
    for guidance in (Guidance(text=9.0, image=4.0), Contrastive(alpha=0.9, k=1)):
        assert ask(tiny_model, grammar, guidance, AFTER_IMAGE, words) == plain


def test_answers_are_well_formed(tiny_model, grammar):
    drawn, hot = 0, SamplingConfig(temperature=5.0)
    for seed in range(24):
        guidance = [None, Guidance(text=2.0), Contrastive(alpha=0.1, k=4)][seed % 3]
        answer = ask(
            tiny_model, grammar, guidance, limits=Limits(max_new_tokens=25), text=hot, seed=seed
        )
        whole = [*AFTER_TEXT, *answer]
        grammar.validate(whole)
        assert len(answer) <= 25
        drawn += answer.count(IDS.begin_image_id)
    assert drawn > 3


def test_the_seed_decides(tiny_model, grammar):
    answers = [ask(tiny_model, grammar, seed=seed) for seed in (1, 1, 2, 3, 2**62)]
    assert answers[0] == answers[1]
    assert len({tuple(answer) for answer in answers}) == 4


def test_no_room(tiny_model, grammar):
    with pytest.raises(RequestError, match="token budget is 3, but 6 are needed"):
        ask(tiny_model, grammar, limits=Limits(max_new_tokens=3, text=False, max_images=1))
