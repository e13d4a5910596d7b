import pytest
import torch

from pardalis.errors import RequestError
from pardalis.inference import SamplingConfig, guide, gumbel_noise, sample

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[None]
ALL = torch.ones(1, 4, dtype=torch.bool)


def frequencies(config: SamplingConfig, allowed: torch.Tensor = ALL, n: int = 4000) -> list[float]:
    drawn = sample(LOGITS.expand(n, 4), allowed.expand(n, 4), [config] * n, list(range(n)), [0] * n)
    return (torch.bincount(drawn, minlength=4) / n).tolist()


def test_draws_follow_the_distribution():
    assert frequencies(SamplingConfig()) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


def test_temperature_sharpens():
    # p^2 renormalised: 0.25, 0.09, 0.0225, 0.0025 over 0.365
    expected = [0.685, 0.247, 0.062, 0.007]
    assert frequencies(SamplingConfig(temperature=0.5)) == pytest.approx(expected, abs=0.03)


def test_temperature_zero_takes_the_most_likely():
    assert frequencies(SamplingConfig(temperature=0.0)) == [1, 0, 0, 0]


def test_top_k_keeps_k():
    assert frequencies(SamplingConfig(top_k=2)) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.5, 1), (0.6, 2), (0.85, 3), (1.0, 4)])
def test_top_p_keeps_the_fewest_that_reach_it(top_p, kept):
    assert sum(f > 0 for f in frequencies(SamplingConfig(top_p=top_p))) == kept


def test_what_the_grammar_forbids_is_never_drawn():
    allowed = torch.tensor([[False, True, False, True]])
    assert frequencies(SamplingConfig(top_k=3), allowed) == pytest.approx(
        [0, 6 / 7, 0, 1 / 7], abs=0.03
    )
    assert frequencies(SamplingConfig(temperature=0.0), allowed) == [0, 1, 0, 0]


def test_rows_choose_by_their_own_settings():
    settings = [SamplingConfig(temperature=0.0), SamplingConfig(top_k=1), SamplingConfig(top_p=0.1)]
    drawn = sample(LOGITS.expand(3, 4), ALL.expand(3, 4), settings, [1, 2, 3], [0, 0, 0])
    assert drawn.tolist() == [0, 0, 0]


def test_noise_is_a_function_of_seed_and_index():
    both = gumbel_noise([7, 8], [3, 3], 5)
    assert torch.equal(both[1:], gumbel_noise([8], [3], 5))
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(gumbel_noise([7], [4], 5), both[:1])


def test_guidance_is_an_extrapolation():
    c, u = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    assert guide(c, u, torch.tensor([1.0])).tolist() == c.tolist()
    assert guide(c, u, torch.tensor([0.0])).tolist() == u.tolist()
    assert guide(c, u, torch.tensor([3.0])).tolist() == [[4.0, -2.0]]


@pytest.mark.parametrize(
    ("values", "message"),
    [({"temperature": -1.0}, "temperature"), ({"top_k": -1}, "top_k"), ({"top_p": 0.0}, "top_p")],
)
def test_refuses_impossible_settings(values, message):
    with pytest.raises(RequestError, match=message):
        SamplingConfig(**values)
