import pytest
import torch

from pardalis.vq import CodebookTrainer, codebook_use, nearest_codes, perplexity


def vectors_of_step(n: int, step: int) -> torch.Tensor:
    """Vectors of a typical batch: half are one background, the rest 64 clusters off the origin."""
    generator = torch.Generator().manual_seed(step)
    centres = torch.randn(64, 8, generator=torch.Generator().manual_seed(99)) + 3
    vectors = centres[torch.randint(64, (n,), generator=generator)]
    vectors[: n // 2] = 5.0
    return vectors + 0.05 * torch.randn(n, 8, generator=generator)


def train(ema: bool, start: bool, restart: bool, n_codes: int = 64) -> torch.Tensor:
    """Return how often each code is used after 80 steps, over fresh vectors."""
    generator = torch.Generator().manual_seed(0)
    book = ((torch.rand(n_codes, 8, generator=generator) * 2 - 1) / n_codes).requires_grad_()
    optimizer = torch.optim.Adam([book], lr=0.01)
    trainer = CodebookTrainer(book, ema, decay=0.9)
    if start:
        trainer.start(vectors_of_step(512, 0), generator)
    for step in range(80):
        vectors = vectors_of_step(512, step)
        codes = nearest_codes(vectors, book.detach())
        if not ema:
            optimizer.zero_grad()
            (book[codes] - vectors).square().mean().backward()
            optimizer.step()
        trainer.update(vectors, codes, generator, restart)
    codes = nearest_codes(vectors_of_step(4096, 1000), book.detach())
    return torch.bincount(codes, minlength=n_codes)


@pytest.mark.parametrize("ema", [True, False])
def test_initialisation_or_restarts_prevent_collapse(ema):
    """Measured: 1 or 2 of 64 codes in use with neither, all 64 with either or both."""

    def use(start: bool, restart: bool) -> float:
        return float(codebook_use(train(ema, start, restart)))

    assert use(start=False, restart=False) < 0.1
    assert use(start=False, restart=True) > 0.9
    assert use(start=True, restart=False) > 0.9
    assert use(start=True, restart=True) > 0.9


def test_ema_entries_are_the_moving_average_of_their_vectors():
    book = torch.tensor([[0.0, 0.0], [10.0, 10.0]])
    trainer = CodebookTrainer(book, ema=True, decay=0.5)
    trainer.start(torch.tensor([[0.0, 0.0], [10.0, 10.0]]), torch.Generator().manual_seed(0))
    zero, ten = (0, 1) if book[0, 0] == 0 else (1, 0)
    vectors = torch.tensor([[2.0, 2.0], [10.0, 12.0]])
    codes = torch.tensor([zero, ten])
    restarted = trainer.update(vectors, codes, torch.Generator())
    assert restarted == 0
    # half of the old mean (weight 1) and half of the new vector (weight 1)
    assert book[zero].tolist() == [1.0, 1.0]
    assert book[ten].tolist() == [10.0, 11.0]


def test_a_dead_code_restarts_where_the_error_is_largest():
    book = torch.tensor([[0.0], [50.0]])
    trainer = CodebookTrainer(book, ema=True, decay=0.0)
    vectors = torch.tensor([[0.0], [0.0], [0.0], [7.0]])
    restarted = trainer.update(
        vectors, torch.zeros(4, dtype=torch.long), torch.Generator().manual_seed(0)
    )
    assert restarted == 1
    assert book[1].item() == 7.0


def test_without_ema_only_restarts_move_entries():
    book = torch.tensor([[0.0], [50.0], [3.0]])
    trainer = CodebookTrainer(book, ema=False, decay=0.0)
    vectors = torch.tensor([[0.5], [0.5], [3.5], [7.0]])
    restarted = trainer.update(
        vectors, torch.tensor([0, 0, 2, 2]), torch.Generator().manual_seed(0)
    )
    assert restarted == 1
    assert book.flatten().tolist() == [0.0, 7.0, 3.0]


def test_without_restarts_an_unused_code_keeps_its_entry():
    book = torch.tensor([[0.0], [50.0]])
    trainer = CodebookTrainer(book, ema=True, decay=0.0)
    assert (
        trainer.update(torch.ones(4, 1), torch.zeros(4, dtype=torch.long), torch.Generator(), False)
        == 0
    )
    assert book.tolist() == [[1.0], [50.0]]


@pytest.mark.parametrize("ema", [True, False])
def test_normalised_entries_have_unit_length(ema):
    """Vectors of any length and a moved codebook; the dead code goes where the angle is largest."""
    book = torch.tensor([[3.0, 0.0], [0.0, -0.1]])
    trainer = CodebookTrainer(book, ema, decay=0.0, normalise=True)
    vectors = torch.tensor([[9.0, 0.0], [1.0, 0.0], [100.0, 1.0], [-0.01, 0.01]])
    codes = torch.zeros(4, dtype=torch.long)
    assert trainer.update(vectors, codes, torch.Generator().manual_seed(1)) == 1
    torch.testing.assert_close(book.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(book[1], torch.tensor([-(0.5**0.5), 0.5**0.5]))
    if ema:
        mean = torch.nn.functional.normalize(vectors).mean(0)
        torch.testing.assert_close(book[0], mean / mean.norm())
    else:
        assert book[0].tolist() == [1.0, 0.0]


def test_a_normalised_codebook_is_initialised_with_directions():
    angles = torch.arange(4) * torch.pi / 2
    directions = torch.stack([angles.cos(), angles.sin()], dim=1)
    vectors = directions.repeat_interleave(8, 0) * torch.linspace(0.1, 9, 32)[:, None]
    book = torch.zeros(4, 2)
    trainer = CodebookTrainer(book, ema=False, decay=0.9, normalise=True)
    trainer.start(vectors, torch.Generator().manual_seed(0))
    assert sorted(nearest_codes(directions, book).tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(book.norm(dim=1), torch.ones(4))


def test_initialisation_from_fewer_vectors_than_codes():
    book = torch.zeros(20, 2)
    CodebookTrainer(book, True, 0.9).start(torch.ones(3, 2), torch.Generator().manual_seed(0))
    assert torch.equal(book, torch.ones(20, 2))


def test_state_dict_round_trip():
    trainer, other = (CodebookTrainer(torch.zeros(4, 2), True, 0.9) for _ in range(2))
    trainer.start(torch.randn(9, 2), torch.Generator().manual_seed(0))
    other.load_state_dict(trainer.state_dict())
    assert other.started
    assert torch.equal(other.counts, trainer.counts)
    assert torch.equal(other.sums, trainer.sums)


def test_codebook_use_and_perplexity():
    assert codebook_use(torch.tensor([3, 0, 1, 0])).item() == 0.5
    assert perplexity(torch.tensor([5, 5, 5, 0])).item() == pytest.approx(3.0)
    assert perplexity(torch.tensor([7, 0])).item() == pytest.approx(1.0)
    assert perplexity(torch.tensor([0, 0])).isnan()
