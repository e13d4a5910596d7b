import pytest
import torch

from pardalis.vq import LiveCodebook, codebook_use, nearest_codes, perplexity


def images(n: int, step: int) -> torch.Tensor:
    """Vectors of a typical batch: half are one background, the rest 64 clusters off the origin."""
    generator = torch.Generator().manual_seed(step)
    centres = torch.randn(64, 8, generator=torch.Generator().manual_seed(99)) + 3
    vectors = centres[torch.randint(64, (n,), generator=generator)]
    vectors[: n // 2] = 5.0
    return vectors + 0.05 * torch.randn(n, 8, generator=generator)


def train(follows_means: bool, start: bool, restart: bool, n_codes: int = 64) -> torch.Tensor:
    """Return how often each code is used after 80 steps, over fresh vectors."""
    generator = torch.Generator().manual_seed(0)
    book = ((torch.rand(n_codes, 8, generator=generator) * 2 - 1) / n_codes).requires_grad_()
    optimizer = torch.optim.Adam([book], lr=0.01)
    live = LiveCodebook(book, follows_means, decay=0.9)
    if start:
        live.start(images(512, 0), generator)
    for step in range(80):
        vectors = images(512, step)
        codes = nearest_codes(vectors, book.detach())
        if not follows_means:
            optimizer.zero_grad()
            (book[codes] - vectors).square().mean().backward()
            optimizer.step()
        live.update(vectors, codes, generator, restart)
    codes = nearest_codes(images(4096, 1000), book.detach())
    return torch.bincount(codes, minlength=n_codes)


@pytest.mark.parametrize("follows_means", [True, False])
def test_a_codebook_collapses_and_either_cure_prevents_it(follows_means):
    """Measured use: 1 or 2 of 64 codes with neither, all 64 with either or both."""

    def use(start: bool, restart: bool) -> float:
        return float(codebook_use(train(follows_means, start, restart)))

    assert use(start=False, restart=False) < 0.1
    assert use(start=False, restart=True) > 0.9
    assert use(start=True, restart=False) > 0.9
    assert use(start=True, restart=True) > 0.9


def test_codes_follow_the_mean_of_their_vectors():
    book = torch.tensor([[0.0, 0.0], [10.0, 10.0]])
    live = LiveCodebook(book, follows_means=True, decay=0.5)
    live.start(torch.tensor([[0.0, 0.0], [10.0, 10.0]]), torch.Generator().manual_seed(0))
    zero, ten = (0, 1) if book[0, 0] == 0 else (1, 0)
    vectors = torch.tensor([[2.0, 2.0], [10.0, 12.0]])
    codes = torch.tensor([zero, ten])
    restarted = live.update(vectors, codes, torch.Generator())
    assert restarted == 0
    # half of the old mean (weight 1) and half of the new vector (weight 1)
    assert book[zero].tolist() == [1.0, 1.0]
    assert book[ten].tolist() == [10.0, 11.0]


def test_a_code_out_of_use_restarts_where_the_error_is_largest():
    book = torch.tensor([[0.0], [50.0]])
    live = LiveCodebook(book, follows_means=True, decay=0.0)
    vectors = torch.tensor([[0.0], [0.0], [0.0], [7.0]])
    restarted = live.update(
        vectors, torch.zeros(4, dtype=torch.long), torch.Generator().manual_seed(0)
    )
    assert restarted == 1
    assert book[1].item() == 7.0


def test_a_codebook_with_a_gradient_is_moved_by_restarts_only():
    book = torch.tensor([[0.0], [50.0], [3.0]])
    live = LiveCodebook(book, follows_means=False, decay=0.0)
    vectors = torch.tensor([[0.5], [0.5], [3.5], [7.0]])
    restarted = live.update(vectors, torch.tensor([0, 0, 2, 2]), torch.Generator().manual_seed(0))
    assert restarted == 1
    assert book.flatten().tolist() == [0.0, 7.0, 3.0]


def test_without_restarts_an_unused_code_stays_where_it_is():
    book = torch.tensor([[0.0], [50.0]])
    live = LiveCodebook(book, follows_means=True, decay=0.0)
    assert (
        live.update(torch.ones(4, 1), torch.zeros(4, dtype=torch.long), torch.Generator(), False)
        == 0
    )
    assert book.tolist() == [[1.0], [50.0]]


@pytest.mark.parametrize("follows_means", [True, False])
def test_on_the_sphere_everything_has_length_1(follows_means):
    """Vectors of any length and a moved codebook; the dead code goes where the angle is largest."""
    book = torch.tensor([[3.0, 0.0], [0.0, -0.1]])
    live = LiveCodebook(book, follows_means, decay=0.0, normalise=True)
    vectors = torch.tensor([[9.0, 0.0], [1.0, 0.0], [100.0, 1.0], [-0.01, 0.01]])
    codes = torch.zeros(4, dtype=torch.long)
    assert live.update(vectors, codes, torch.Generator().manual_seed(1)) == 1
    torch.testing.assert_close(book.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(book[1], torch.tensor([-(0.5**0.5), 0.5**0.5]))
    if follows_means:
        mean = torch.nn.functional.normalize(vectors).mean(0)
        torch.testing.assert_close(book[0], mean / mean.norm())
    else:
        assert book[0].tolist() == [1.0, 0.0]


def test_on_the_sphere_a_codebook_starts_on_directions():
    angles = torch.arange(4) * torch.pi / 2
    directions = torch.stack([angles.cos(), angles.sin()], dim=1)
    vectors = directions.repeat_interleave(8, 0) * torch.linspace(0.1, 9, 32)[:, None]
    book = torch.zeros(4, 2)
    live = LiveCodebook(book, follows_means=False, decay=0.9, normalise=True)
    live.start(vectors, torch.Generator().manual_seed(0))
    assert sorted(nearest_codes(directions, book).tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(book.norm(dim=1), torch.ones(4))


def test_fewer_vectors_than_codes_can_start():
    book = torch.zeros(20, 2)
    LiveCodebook(book, True, 0.9).start(torch.ones(3, 2), torch.Generator().manual_seed(0))
    assert torch.equal(book, torch.ones(20, 2))


def test_the_state_comes_back():
    live, other = (LiveCodebook(torch.zeros(4, 2), True, 0.9) for _ in range(2))
    live.start(torch.randn(9, 2), torch.Generator().manual_seed(0))
    other.load_state_dict(live.state_dict())
    assert other.started
    assert torch.equal(other.counts, live.counts)
    assert torch.equal(other.sums, live.sums)


def test_measures_of_use():
    assert codebook_use(torch.tensor([3, 0, 1, 0])).item() == 0.5
    assert perplexity(torch.tensor([5, 5, 5, 0])).item() == pytest.approx(3.0)
    assert perplexity(torch.tensor([7, 0])).item() == pytest.approx(1.0)
    assert perplexity(torch.tensor([0, 0])).isnan()
