"""Guidance against its formulas, and contrastive decoding against a slow implementation."""

import itertools

import pytest
import torch

from pardalis.errors import RequestError
from pardalis.inference.generation import Contrastive, Guidance
from pardalis.inference.guidance import GuidanceTensors, apply_guidance, largest_k

P = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
GENERATOR = torch.Generator().manual_seed(0)
L, U, S = (3 * torch.randn(1, 9, generator=GENERATOR) for _ in range(3))


def one(guide, logits=L, unconditional=U, image_conditional=None):
    guidance = GuidanceTensors.of([guide])
    return apply_guidance(
        logits, unconditional, image_conditional, guidance, largest_k=largest_k([guide])
    )


def kept(guide, logits=None):
    """Return the tokens that contrastive decoding may choose."""
    scores = one(guide, P.log() if logits is None else logits, torch.zeros(1, 4))
    return set((scores[0] > -1e9).nonzero()[:, 0].tolist())


# ── extrapolation ────────────────────────────────────────────────────────────────────────────────


def test_a_scale_of_one_is_no_guidance_and_zero_is_the_unconditional_branch():
    assert torch.equal(one(None), L)
    assert torch.equal(one(Guidance(text=1.0)), L)
    assert torch.equal(one(Guidance(text=0.0)), U)


def test_two_way():
    c, u = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    assert one(Guidance(text=3.0), c, u).tolist() == [[4.0, -2.0]]


def test_three_way():
    """As in Chameleon's release, with its scales."""
    expected = U + 1.2 * (S - U) + 3.0 * (L - S)
    torch.testing.assert_close(one(Guidance(text=3.0, image=1.2), image_conditional=S), expected)


def test_without_earlier_images_three_ways_are_two():
    two_way = one(Guidance(text=3.0))
    for scale in (0.0, 1.2, 5.0):
        assert torch.equal(one(Guidance(text=3.0, image=scale), image_conditional=U), two_way)
    torch.testing.assert_close(two_way, U + 3.0 * (L - U))


def test_scales_of_one_are_no_guidance():
    torch.testing.assert_close(one(Guidance(text=1.0, image=1.0), image_conditional=S), L)


# ── contrastive decoding ─────────────────────────────────────────────────────────────────────────


def test_equal_logits_score_zero():
    scores = one(Contrastive(alpha=0.2, k=3), L, L)
    assert (scores[scores > -1e9] == 0).all()


@pytest.mark.parametrize(
    ("alpha", "k", "expected"),
    [(0.6, 1, {0, 1}), (0.6, 2, {0, 1}), (0.1, 1, {0, 1, 2, 3}), (0.7, 1, {0}), (0.7, 2, {0, 1})],
)
def test_candidates(alpha, k, expected):
    assert kept(Contrastive(alpha=alpha, k=k)) == expected


def test_candidates_grow_with_k():
    for seed in range(20):
        logits = torch.randn(1, 4, generator=torch.Generator().manual_seed(seed))
        sets = [kept(Contrastive(alpha=0.8, k=k), logits) for k in range(1, 7)]
        assert all(fewer <= more for fewer, more in itertools.pairwise(sets))
        assert len(sets[0]) >= 1


def test_alpha_zero_keeps_every_code():
    assert kept(Contrastive(alpha=0.0, k=1), torch.tensor([[9.0, 0.0, -50.0, -200.0]])) == {
        0, 1, 2, 3
    }  # fmt: skip


def slow_contrastive(logits, unconditional, alpha, k):
    """CD-K (arXiv 2309.02591, section 2.3) with probabilities."""
    p, q = logits.double().softmax(-1), unconditional.double().softmax(-1)
    kth = sorted(p.tolist(), reverse=True)[min(k, len(p)) - 1]
    return [float((p[t] / q[t]).log()) if p[t] >= alpha * kth else None for t in range(len(p))]


@pytest.mark.parametrize("k", [1, 2, 5, 8, 40])
@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.77])
def test_equals_the_slow_implementation(alpha, k):
    generator = torch.Generator().manual_seed(k)
    logits, unconditional = 2 * torch.randn(2, 30, generator=generator)
    scores = one(Contrastive(alpha=alpha, k=k), logits[None], unconditional[None])[0]
    slow = slow_contrastive(logits, unconditional, alpha, k)
    assert [score > -1e9 for score in scores] == [score is not None for score in slow]
    # Equal up to a constant, which no sampling sees.
    constants = [
        float(score) - expected
        for score, expected in zip(scores, slow, strict=True)
        if expected is not None
    ]
    assert max(constants) - min(constants) < 1e-5


# ── batches ──────────────────────────────────────────────────────────────────────────────────────


def test_all_kinds_share_a_batch():
    guidance = [
        None,
        Guidance(text=3.0),
        Contrastive(alpha=0.4, k=2),
        Guidance(text=3.0, image=1.2),
        Contrastive(alpha=0.1, k=5),
        Guidance(text=1.0),
    ]
    logits, unconditional, images = 3 * torch.randn(3, len(guidance), 9, generator=GENERATOR)
    for i in (0, 1, 2, 4, 5):
        images[i] = unconditional[i]  # sequences without an image-conditional branch
    together = apply_guidance(
        logits, unconditional, images, GuidanceTensors.of(guidance), largest_k=largest_k(guidance)
    )
    for i, guide in enumerate(guidance):
        part = slice(i, i + 1)
        expected = one(guide, logits[part], unconditional[part], images[part])
        assert torch.equal(together[part], expected)


def test_a_sequence_without_guidance_ignores_the_branches():
    broken = torch.full_like(L, torch.nan)
    guidance = [None, Contrastive(alpha=0.4, k=2)]
    both = apply_guidance(
        torch.cat([L, L]), torch.cat([broken, U]), None, GuidanceTensors.of(guidance), largest_k=2
    )
    assert torch.equal(both[:1], L)


def test_largest_k():
    assert largest_k([None, Guidance(text=3.0)]) == 0
    assert largest_k([Contrastive(alpha=0.1, k=1)]) == 1
    assert largest_k([Contrastive(alpha=0.1, k=5), None]) == 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Guidance(text=float("nan")), "text must be a number"),
        (lambda: Guidance(image=float("inf")), "image must be a number"),
        (lambda: Contrastive(alpha=1.5, k=1), "alpha must lie in"),
        (lambda: Contrastive(alpha=0.5, k=0), "k must be a whole number, 1 or more"),
    ],
)
def test_refuses_impossible_guidance(make, message):
    with pytest.raises(RequestError, match=message):
        make()
