"""The sampler against a slow one that sorts, and the quality of its noise."""

import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pardalis.errors import RequestError
from pardalis.inference import SamplingConfig
from pardalis.inference.sampling import (
    SamplerNeeds,
    SamplingTensors,
    gumbel_noise,
    prepare_ids,
    sample,
)

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[None]


def draw(logits, configs, *, allowed=None, seeds=None, index=None, needs=None):
    """Sample with defaults for most arguments."""
    n = len(configs)
    return sample(
        logits.expand(n, -1),
        allowed and tuple(torch.tensor(bound).expand(n) for bound in allowed),
        SamplingTensors.of(configs, seeds or range(n)),
        torch.zeros(n, dtype=torch.long) if index is None else torch.tensor(index),
        prepare_ids(torch.arange(logits.shape[1])),
        needs or SamplerNeeds.of(configs),
    )


def frequencies(config, allowed=None, n=4000):
    drawn = draw(LOGITS, [config] * n, allowed=allowed)
    return (torch.bincount(drawn, minlength=4) / n).tolist()


def slow_choice(logits, config, seed, index, allowed):
    """Sample for one sequence by sorting, in the order of the definition."""
    n = len(logits)
    keep = torch.zeros(n, dtype=torch.bool)
    keep[allowed[0] : allowed[1]] = True
    if config.temperature == 0:
        return logits.masked_fill(~keep, -torch.inf).argmax()
    scaled = (logits / config.temperature).masked_fill(~keep, -torch.inf)
    if config.top_k:
        least = scaled.sort(descending=True).values[: config.top_k][-1]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    if config.top_p < 1:
        probabilities, order = scaled.double().softmax(0).sort(descending=True)
        before = probabilities.cumsum(0) - probabilities
        least = scaled[order[before < config.top_p]].min()
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    noise = gumbel_noise(torch.tensor([seed]), torch.tensor([index]), prepare_ids(torch.arange(n)))
    return (scaled + noise[0]).argmax()


def random_logits(batch, n, kind):
    generator = torch.Generator().manual_seed(n)
    logits = torch.randn(batch, n, generator=generator)
    match kind:
        case "ties":
            return logits.mul(2).round()
        case "flat":
            return logits / 1000
        case "sharp":
            return logits * 30
    return logits * 3


@pytest.mark.parametrize("kind", ["plain", "ties", "flat", "sharp"])
@pytest.mark.parametrize("n", [1, 7, 300, 5000])
def test_equals_the_slow_sampler_in_any_batch(kind, n):
    numbers = itertools.product([0.0, 0.3, 1.0, 2.0], [0, 1, 5, 400], [0.001, 0.37, 0.9, 1.0])
    configs = [SamplingConfig(temperature=t, top_k=k, top_p=p) for t, k, p in numbers]
    configs = configs[:: 7 if n > 1000 else 1]
    logits = random_logits(len(configs), n, kind)
    seeds = range(len(configs))
    index = [7 * i for i in seeds]
    first = torch.tensor([i % n for i in seeds])
    end = torch.tensor([max(i % n + 1, n - i % 3) for i in seeds])
    ids = prepare_ids(torch.arange(n))
    sampling, needs = SamplingTensors.of(configs, seeds), SamplerNeeds.of(configs)
    drawn = sample(logits, (first, end), sampling, torch.tensor(index), ids, needs)
    for i, config in enumerate(configs):
        allowed = int(first[i]), int(end[i])
        assert drawn[i] == slow_choice(logits[i], config, i, index[i], allowed), config
        alone = draw(logits[i : i + 1], [config], allowed=allowed, seeds=[i], index=[index[i]])
        assert alone == drawn[i]


def test_a_slice_of_the_head_samples_the_same():
    """If only a slice of the head is computed, its tokens keep their noise."""
    logits = random_logits(50, 900, "plain")
    sampling = SamplingTensors.of([SamplingConfig(top_p=0.9)] * 50, range(50))
    ids, index = prepare_ids(torch.arange(900)), torch.arange(50)
    needs = SamplerNeeds(random=True, top_k=0, top_p=True)
    allowed = torch.full((50,), 100), torch.full((50,), 400)
    whole = sample(logits, allowed, sampling, index, ids, needs)
    part = sample(logits[:, 100:400], None, sampling, index, ids[100:400], needs)
    assert torch.equal(whole, 100 + part)


def test_needs():
    greedy = SamplingConfig(temperature=0.0, top_k=9, top_p=0.5)
    assert SamplerNeeds.of([greedy]) == SamplerNeeds(random=False, top_k=0, top_p=False)
    needs = SamplerNeeds.of([greedy, SamplingConfig(top_k=5), SamplingConfig(top_p=0.9)])
    assert needs == SamplerNeeds(random=True, top_k=8, top_p=True)


def test_an_empty_range_affects_no_other_sequence():
    configs = [SamplingConfig(temperature=0.7, top_k=2, top_p=0.9)] * 3
    allowed = torch.tensor([0, 2, 1]), torch.tensor([4, 2, 3])
    index, ids = torch.zeros(3, dtype=torch.long), prepare_ids(torch.arange(4))
    needs = SamplerNeeds.of(configs)
    drawn = sample(
        LOGITS.expand(3, 4), allowed, SamplingTensors.of(configs, [1, 2, 3]), index, ids, needs
    )
    assert drawn[0] == draw(LOGITS, configs[:1], seeds=[1])[0]
    assert drawn[2] == draw(LOGITS, configs[:1], seeds=[3], allowed=(1, 3))[0]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_broken_logits_affect_no_other_sequence(bad):
    configs = [SamplingConfig(temperature=0.7, top_k=3, top_p=0.9)] * 2
    logits = torch.cat([LOGITS, LOGITS])
    logits[1] = bad
    assert draw(logits, configs)[0] == draw(LOGITS, configs[:1])[0]


def test_does_not_modify_the_logits():
    logits = LOGITS.clone()
    for config in (SamplingConfig(temperature=0.0), SamplingConfig(top_k=2, top_p=0.5)):
        draw(logits, [config], allowed=(1, 3))
        assert torch.equal(logits, LOGITS)


class NoHostSync(TorchDispatchMode):
    """Raises where a tensor's value is read by the host or determines a shape."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
        )
        return func(*args, **(kwargs or {}))


def everything(logits):
    configs = [SamplingConfig(temperature=0.7, top_k=3, top_p=0.9), SamplingConfig(temperature=0.0)]
    sampling, ids = SamplingTensors.of(configs, [1, 2]), prepare_ids(torch.arange(logits.shape[1]))
    allowed, index = (torch.tensor([0, 1]), torch.tensor([4, 3])), torch.tensor([5, 6])
    needs = SamplerNeeds.of(configs)
    return lambda: sample(logits, allowed, sampling, index, ids, needs)


def test_does_not_synchronise():
    run = everything(LOGITS.expand(2, 4))
    with NoHostSync():
        run()
        with pytest.raises(AssertionError):
            LOGITS[0, 0].item()


# ── distribution ─────────────────────────────────────────────────────────────────────────────────


def test_samples_follow_the_distribution():
    assert frequencies(SamplingConfig()) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


def test_samples_of_many_tokens_follow_the_distribution():
    """Chi-square of 60,000 samples along one sequence of 40 tokens, within 5 std. deviations."""
    n, logits = 60_000, torch.randn(1, 40, generator=torch.Generator().manual_seed(0))
    drawn = draw(logits, [SamplingConfig()] * n, seeds=[1] * n, index=list(range(n)))
    expected = logits[0].softmax(0) * n
    chi_square = ((torch.bincount(drawn, minlength=40) - expected) ** 2 / expected).sum()
    assert abs(chi_square - 39) < 5 * math.sqrt(2 * 39)


def test_temperature_sharpens():
    # p^2 renormalised: 0.25, 0.09, 0.0225, 0.0025 over 0.365
    expected = [0.685, 0.247, 0.062, 0.007]
    assert frequencies(SamplingConfig(temperature=0.5)) == pytest.approx(expected, abs=0.03)


def test_temperature_zero_takes_the_most_likely():
    assert frequencies(SamplingConfig(temperature=0.0)) == [1, 0, 0, 0]
    assert frequencies(SamplingConfig(temperature=1e-30)) == [1, 0, 0, 0]


def test_top_k_keeps_k():
    assert frequencies(SamplingConfig(top_k=2)) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.49, 1), (0.6, 2), (0.85, 3), (1.0, 4)])
def test_top_p_keeps_the_fewest_that_reach_it(top_p, kept):
    assert sum(f > 0 for f in frequencies(SamplingConfig(top_p=top_p), n=300)) == kept


@pytest.mark.parametrize("config", [SamplingConfig(top_k=2), SamplingConfig(top_p=0.5)])
def test_ties_with_the_last_are_kept(config):
    logits = torch.tensor([[0.3, 0.3, 0.3, 0.1]]).log()
    drawn = draw(logits, [config] * 300)
    assert drawn.unique().tolist() == [0, 1, 2]


def test_forbidden_tokens_are_never_sampled():
    expected = [0, 2 / 3, 1 / 3, 0]
    assert frequencies(SamplingConfig(top_k=3), (1, 3)) == pytest.approx(expected, abs=0.03)
    assert frequencies(SamplingConfig(temperature=0.0), (1, 3)) == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [({"temperature": -1.0}, "temperature"), ({"top_k": -1}, "top_k"), ({"top_p": 0.0}, "top_p")],
)
def test_refuses_impossible_settings(values, message):
    with pytest.raises(RequestError, match=message):
        SamplingConfig(**values)


# ── noise ────────────────────────────────────────────────────────────────────────────────────────


def uniform(seeds, index, ids):
    """Return the noise mapped to numbers that should be uniform in (0, 1)."""
    seeds, index = torch.as_tensor(seeds), torch.as_tensor(index)
    return torch.exp(-torch.exp(-gumbel_noise(seeds, index, ids).double()))


IDS = prepare_ids(torch.arange(2048))
MANY = torch.arange(1000)


def test_noise_is_a_function_of_seed_index_and_id():
    both = gumbel_noise(torch.tensor([7, 8]), torch.tensor([3, 3]), IDS)
    again = gumbel_noise(torch.tensor([8]), torch.tensor([3]), IDS[5:9])
    assert torch.equal(both[1:, 5:9], again)
    assert not torch.equal(both[0], both[1])


def test_distinct_ids_are_hashed_to_distinct_numbers():
    assert len(prepare_ids(torch.arange(200_000)).unique()) == 200_000


@pytest.mark.parametrize("neighbours", ["seeds", "positions", "ids"])
def test_noise_is_uniform(neighbours):
    """Kolmogorov-Smirnov along each axis: 1.95 / sqrt(n) is exceeded once in a thousand."""
    match neighbours:
        case "seeds":
            numbers = uniform(torch.arange(40_000), torch.zeros(40_000, dtype=torch.long), IDS[:1])
        case "positions":
            numbers = uniform(torch.full((40_000,), 3), torch.arange(40_000), IDS[:1])
        case _:
            numbers = uniform([3], [5], prepare_ids(torch.arange(40_000)))
    ordered = numbers.flatten().sort().values
    steps = torch.arange(1, 40_001) / 40_000
    assert (ordered - steps).abs().max() < 1.95 / math.sqrt(40_000)


def pairs(neighbours):
    """Return noise at neighbouring inputs, equal in all but one of seed, index and id."""
    first = uniform(MANY, MANY, IDS[:-1])
    match neighbours:
        case "seeds":
            return first, uniform(MANY + 1, MANY, IDS[:-1])
        case "high bits of seeds":
            return first, uniform(MANY + 2**62, MANY, IDS[:-1])
        case "positions":
            return first, uniform(MANY, MANY + 1, IDS[:-1])
        case "seeds and positions":
            return first, uniform(MANY + 1, MANY - 1, IDS[:-1])
    return first, uniform(MANY, MANY, IDS[1:])


AXES = ["seeds", "high bits of seeds", "positions", "seeds and positions", "ids"]


@pytest.mark.parametrize("neighbours", AXES)
def test_neighbours_are_independent(neighbours):
    """Chi-square of two million pairs in 32 x 32 cells, within 5 standard deviations."""
    first, second = pairs(neighbours)
    cells = (first * 32).long() * 32 + (second * 32).long()
    expected = cells.numel() / 1024
    counts = torch.bincount(cells.flatten(), minlength=1024)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - 1023) < 5 * math.sqrt(2 * 1023)


@pytest.mark.parametrize("bit", [0, 1, 12, 15, 16, 24, 29, 30, 31])
def test_ids_whose_hashes_are_alike_are_independent(bit):
    """Hashes that differ by a power of two correlate after a single round of multiplication."""
    hashed = torch.tensor([12345, 12345 + 2**bit - 2**32 * (bit == 31)], dtype=torch.int32)
    first, second = uniform(torch.arange(100_000), torch.full((100_000,), 9), hashed).unbind(1)
    cells = (first * 16).long() * 16 + (second * 16).long()
    expected = len(cells) / 256
    chi_square = ((torch.bincount(cells, minlength=256) - expected) ** 2 / expected).sum()
    assert abs(chi_square - 255) < 5 * math.sqrt(2 * 255)


@pytest.mark.parametrize("place", ["seed", "index", "id"])
def test_each_bit_changes_half_of_the_noise(place):
    """Avalanche: whichever bit of an input flips, each upper bit of the noise flips half the time.

    Ids and positions have 18 bits here, seeds all of their 63.
    """
    seeds, index = torch.arange(100), torch.arange(100) * 5
    before = (uniform(seeds, index, IDS[:100]) * 2**8).long()
    for bit in range(63 if place == "seed" else 18):
        after = uniform(
            seeds ^ (2**bit) if place == "seed" else seeds,
            index ^ (2**bit) if place == "index" else index,
            prepare_ids(torch.arange(100) ^ (2**bit)) if place == "id" else IDS[:100],
        )
        flipped = before ^ (after * 2**8).long()
        for upper in range(8):
            share = ((flipped >> upper) & 1).double().mean()
            assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(10_000), (bit, upper)


def test_the_tail_reaches_as_far_as_it_should():
    """The largest of four million Gumbel numbers; float32 near 1 would cut off some of them."""
    ids = prepare_ids(torch.arange(2**16))
    noise = gumbel_noise(torch.full((64,), 11), torch.arange(64), ids)
    assert noise.isfinite().all()
    for height in (2, 5, 8, 11):
        expected = noise.numel() * -math.expm1(-math.exp(-height))
        assert abs((noise > height).sum() - expected) < 5 * math.sqrt(expected)
    largest = noise.flatten().sort().values[-1000:]
    assert len(largest.unique()) > 980
    assert 12 < largest[-1] < 24
