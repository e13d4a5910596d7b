"""The reference loop: contexts of its guidance branches, limits, and determinism."""

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
TWO_IMAGES = Limits(max_new_tokens=30, text=False, max_images=2)


def run(model, grammar, guidance=None, prompt=AFTER_TEXT, limits=TWO_IMAGES, **changes):
    request = Request(prompt_ids=prompt, limits=limits, guidance=guidance, **changes)
    return generate_reference(model, grammar, request)


def test_the_contexts_of_a_guided_image(tiny_model, grammar):
    """For each code: the whole context, bos with the open image, and all images without text."""
    read = []
    tiny_model.register_forward_pre_hook(lambda _, args: read.append(tuple(args[0][0].tolist())))
    completion = run(
        tiny_model,
        grammar,
        Guidance(text=3.0, image=1.2),
        AFTER_IMAGE,
        Limits(max_new_tokens=6, text=False, max_images=1),
    )
    assert [len(completion), completion[0], completion[-1]] == [6, IMAGE[0], IMAGE[-1]]
    expected = [AFTER_IMAGE]  # begin_image is chosen without guidance
    for n in range(1, 5):
        generated = tuple(completion[:n])
        expected += [
            AFTER_IMAGE + generated,
            (IDS.bos_id, *generated),
            (IDS.bos_id, *IMAGE, *generated),
        ]
    expected.append(AFTER_IMAGE + tuple(completion[:5]))  # and so is end_image
    assert read == expected


def greedy_codes(model, prompt, mix):
    """Return the codes of one image, each the most likely by a mixture of three contexts."""
    codes: list[int] = []
    columns = torch.tensor(list(IDS.image))
    for _ in range(4):
        opened = [IDS.begin_image_id, *codes]
        images = [i for i in prompt if i not in IDS.text]
        contexts = ([*prompt, *opened], [IDS.bos_id, *opened], [*images, *opened])
        with torch.no_grad():
            full, unconditional, image_conditional = (
                model(torch.tensor([c]))[0, -1, columns] for c in contexts
            )
        codes.append(IDS.image.start + int(mix(full, unconditional, image_conditional).argmax()))
    return codes


@pytest.mark.parametrize("prompt", [AFTER_TEXT, *((*AFTER_IMAGE, A + n) for n in range(5))])
@pytest.mark.parametrize(
    ("guidance", "mix"),
    [
        (None, lambda f, u, i: f),
        (Guidance(text=4.0), lambda f, u, i: u + 4 * (f - u)),
        (Guidance(text=3.0, image=2.0), lambda f, u, i: u + 2 * (i - u) + 3 * (f - i)),
        (
            Contrastive(alpha=0.5, k=3),
            lambda f, u, i: (f - u).masked_fill(
                f.softmax(0) < 0.5 * f.softmax(0).topk(3).values[-1], -torch.inf
            ),
        ),
    ],
)
def test_codes_of_each_kind_of_guidance(tiny_model, grammar, guidance, mix, prompt):
    limits = Limits(max_new_tokens=6, text=False, max_images=1)
    completion = run(tiny_model, grammar, guidance, prompt, limits, image=GREEDY)
    assert completion[1:5] == greedy_codes(tiny_model, prompt, mix)


def test_kinds_of_guidance_that_agree(tiny_model, grammar):
    free = Limits(max_new_tokens=30)
    for seed in range(2):
        plain = run(tiny_model, grammar, None, limits=free, seed=seed)
        assert run(tiny_model, grammar, Guidance(text=1.0), limits=free, seed=seed) == plain
        one = Limits(max_new_tokens=6, text=False, max_images=1)
        # Without an earlier image the image scale has no effect.
        two_way = run(tiny_model, grammar, Guidance(text=3.0), limits=one, seed=seed)
        three_way = Guidance(text=3.0, image=5.0)
        assert run(tiny_model, grammar, three_way, limits=one, seed=seed) == two_way


def test_a_prompt_may_end_inside_an_image(tiny_model, grammar):
    begun = (*AFTER_TEXT, *IMAGE[:3])
    limits = Limits(max_new_tokens=4, text=False, max_images=0)
    for guidance in (None, Guidance(text=3.0, image=1.2), Contrastive(alpha=0.3, k=2)):
        completion = run(tiny_model, grammar, guidance, begun, limits)
        assert len(completion) == 3
        assert completion[-1] == IDS.end_image_id


def test_guidance_does_not_change_text(tiny_model, grammar):
    words = Limits(max_new_tokens=15, max_images=0)
    plain = run(tiny_model, grammar, None, AFTER_IMAGE, words)
    for guidance in (Guidance(text=9.0, image=4.0), Contrastive(alpha=0.9, k=1)):
        assert run(tiny_model, grammar, guidance, AFTER_IMAGE, words) == plain


def test_completions_are_well_formed(tiny_model, grammar):
    n_images, hot = 0, SamplingConfig(temperature=5.0)
    for seed in range(24):
        guidance = [None, Guidance(text=2.0), Contrastive(alpha=0.1, k=4)][seed % 3]
        completion = run(
            tiny_model, grammar, guidance, limits=Limits(max_new_tokens=25), text=hot, seed=seed
        )
        whole = [*AFTER_TEXT, *completion]
        grammar.validate(whole)
        assert len(completion) <= 25
        n_images += completion.count(IDS.begin_image_id)
    assert n_images > 3


def test_the_seed_decides(tiny_model, grammar):
    completions = [run(tiny_model, grammar, seed=seed) for seed in (1, 1, 2, 3, 2**62)]
    assert completions[0] == completions[1]
    assert len({tuple(completion) for completion in completions}) == 4


def test_a_budget_that_is_too_small(tiny_model, grammar):
    with pytest.raises(RequestError, match="token budget is 3, but 6 are needed"):
        run(tiny_model, grammar, limits=Limits(max_new_tokens=3, text=False, max_images=1))
