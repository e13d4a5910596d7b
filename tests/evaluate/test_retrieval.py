import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis.evaluate.retrieval import nearest, retrieval_top1


def random_features(n: int, seed: int, width: int = 16) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 60), seed=st.integers(0, 1000), scale=st.floats(0.1, 10), data=st.data())
def test_images_equal_to_their_originals_rank_first(n, seed, scale, data):
    gallery = random_features(n, seed)
    n_candidates = data.draw(st.integers(1, n))
    originals = torch.arange(n)
    found = retrieval_top1(scale * gallery, gallery, originals, n_candidates, seed)
    assert found.top1 == 1.0
    assert found.ranks == (1,) * n


def test_random_images_reach_chance():
    gallery, generated = random_features(300, 1), random_features(2000, 2)
    originals = torch.arange(2000) % 300
    found = retrieval_top1(generated, gallery, originals, n_candidates=10)
    # Chance 0.1; the standard deviation of a rate over 2,000 samples is 0.007.
    assert found.top1 == pytest.approx(0.1, abs=0.03)
    assert sum(found.ranks) / 2000 == pytest.approx(5.5, abs=0.3)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 30), seed=st.integers(0, 1000))
def test_ranks_among_all_images_equal_a_sort(n, seed):
    gallery, generated = random_features(n, seed), random_features(5, seed + 1)
    originals = torch.arange(5) % n
    found = retrieval_top1(generated, gallery, originals, n_candidates=n, seed=seed)
    cosines = torch.nn.functional.cosine_similarity(generated[:, None], gallery[None], dim=2)
    order = cosines.argsort(dim=1, descending=True)
    expected = (order == originals[:, None]).int().argmax(dim=1) + 1
    assert found.ranks == tuple(expected.tolist())


def test_a_tie_counts_against_the_original():
    same = torch.ones(10, 4)
    found = retrieval_top1(same[:3], same, torch.arange(3), n_candidates=10)
    assert found.top1 == 0.0
    assert found.ranks == (10, 10, 10)


def test_candidates_depend_on_the_seed_only():
    gallery, generated = random_features(200, 1), random_features(20, 2)
    originals = torch.arange(20)
    first = retrieval_top1(generated, gallery, originals, n_candidates=20, seed=3)
    assert retrieval_top1(generated, gallery, originals, n_candidates=20, seed=3) == first
    assert (
        retrieval_top1(generated, gallery, originals, n_candidates=20, seed=4).ranks != first.ranks
    )
    # The candidates of each image are sampled independently.
    assert (
        retrieval_top1(generated[:7], gallery, originals[:7], 20, seed=3).ranks == first.ranks[:7]
    )


def test_no_generated_images_have_no_rate():
    gallery = random_features(5, 0)
    found = retrieval_top1(gallery[:0], gallery, torch.empty(0, dtype=torch.long), n_candidates=5)
    assert math.isnan(found.top1)


def naive_constant(gallery, n: int) -> float:
    """Return the best top-1 of one gallery image for all captions, among all candidates."""
    originals = torch.arange(n)
    return max(
        retrieval_top1(gallery[[k] * n], gallery, originals, len(gallery)).top1
        for k in range(len(gallery))
    )


@settings(max_examples=10, deadline=None)
@given(n=st.integers(2, 12), n_generated=st.integers(1, 12), seed=st.integers(0, 100))
def test_the_constant_is_the_best_single_image(n, n_generated, seed):
    gallery = random_features(n, seed, width=3)
    n_generated = min(n, n_generated)
    originals = torch.arange(n_generated)
    found = retrieval_top1(gallery[:n_generated], gallery, originals, n_candidates=n)
    assert found.constant == pytest.approx(naive_constant(gallery, n_generated))
    assert found.chance == pytest.approx(1 / n)


def test_copies_of_the_original_are_no_candidates():
    gallery = random_features(6, 0)
    gallery[3] = gallery[0]
    originals = torch.tensor([0, 1])
    found = retrieval_top1(gallery[:2], gallery, originals, n_candidates=6)
    assert found.ranks == (2, 1)  # the copy is a tie
    found = retrieval_top1(gallery[:2], gallery, originals, n_candidates=6, same=[[0, 3], [1]])
    assert found.ranks == (1, 1)
    assert found.n_candidates == (5, 6)
    assert found.chance == pytest.approx((1 / 5 + 1 / 6) / 2)


def test_where_all_images_are_right_chance_is_certain():
    gallery, everything = random_features(4, 0), [range(4)] * 3
    generated = random_features(3, 1)
    found = retrieval_top1(generated, gallery, torch.arange(3), n_candidates=4, same=everything)
    assert found.top1 == found.chance == found.constant == 1.0


def test_a_gallery_that_is_too_small_is_refused():
    gallery = random_features(5, 0)
    with pytest.raises(ValueError, match="100 candidates from a gallery of 5 images"):
        retrieval_top1(gallery, gallery, torch.arange(5))


def test_an_empty_gallery_has_no_nearest_image():
    with pytest.raises(ValueError, match="empty gallery"):
        nearest(random_features(2, 0), random_features(0, 0))


def test_nearest_ignores_length():
    gallery = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    indices, similarities = nearest(torch.tensor([[3.0, 0.1], [0.1, 0.2]]), gallery)
    assert indices.tolist() == [0, 1]
    assert similarities[1] == pytest.approx(0.2 / math.hypot(0.1, 0.2))
