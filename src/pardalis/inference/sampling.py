"""Sampling of a token from logits: allowed range, temperature, top-k, top-p, Gumbel-argmax.

The Gumbel noise depends only on (request seed, index of the token in its sequence, token id), so a
completion does not depend on its batch neighbours or on how it is computed. Nothing here
synchronises with the host.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor

from pardalis.inference.generation import SamplingConfig

# An odd number near 2^64 over the golden ratio, as signed: small multiples of it lie far apart.
GOLDEN = -0x61C8864680B583EB
EXCLUDED = -1e30  # added to a logit to exclude its token; finite, so that nothing becomes NaN
# Top-p bins tokens by the bits of 1 + distance, where distance is that below the largest logit.
MAX_DISTANCE = 31.0  # nats; a token farther below the largest logit has no weight
ONE = 0x3F800000  # the bits of 1.0
FINE_BITS = 13
FINE_CLASSES = 2**FINE_BITS
COARSE_CLASSES = ((0x42000000 - ONE) >> FINE_BITS) + 1  # up to the bits of 32.0


@dataclass(frozen=True, slots=True)
class SamplerNeeds:
    """The parts of the sampler that a batch uses, known on the host; the others are skipped."""

    random: bool  # some temperature is above 0
    top_k: int  # upper bound of the largest k; 0 where nothing uses top-k
    top_p: bool  # some top-p is below 1

    @staticmethod
    def of(configs: Iterable[SamplingConfig]) -> "SamplerNeeds":
        """Return the needs of a batch; k is a power of two, so that compiled code is reused."""
        random = [c for c in configs if c.temperature > 0]
        return SamplerNeeds(
            random=bool(random),
            top_k=power_of_two(max((c.top_k for c in random), default=0)),
            top_p=any(c.top_p < 1 for c in random),
        )


@dataclass(frozen=True, slots=True)
class SamplingTensors:
    """The :class:`SamplingConfig` and the seed of each sequence of a batch."""

    temperature: Float[Tensor, " B"]
    top_k: Int64[Tensor, " B"]
    top_p: Float[Tensor, " B"]
    seed: Int64[Tensor, " B"]

    @staticmethod
    def of(
        configs: Sequence[SamplingConfig],
        seeds: Sequence[int],
        device: torch.device | str | None = None,
    ) -> "SamplingTensors":
        """Put configurations, and seeds in [0, 2^63), on a device."""
        return SamplingTensors(
            torch.tensor([c.temperature for c in configs], dtype=torch.float32, device=device),
            torch.tensor([c.top_k for c in configs], dtype=torch.int64, device=device),
            torch.tensor([c.top_p for c in configs], dtype=torch.float32, device=device),
            torch.tensor(list(seeds), dtype=torch.int64, device=device),
        )


def sample(
    logits: Float[Tensor, "B n"],
    allowed: tuple[Int[Tensor, " B"], Int[Tensor, " B"]] | None,
    sampling: SamplingTensors,
    index: Int64[Tensor, " B"],
    ids: Int32[Tensor, " n"],
    needs: SamplerNeeds,
) -> Int64[Tensor, " B"]:
    """Sample one of n candidate tokens for each sequence; return its number.

    Args:
        allowed: the first candidate that a sequence may take, and the one after its last; None
            allows all. An empty range returns an arbitrary candidate.
        index: of the sampled token in its sequence.
        ids: ids of the candidates, from :func:`prepare_ids`.
        needs: at least those of the batch; more cost time and change nothing.
    """
    logits = logits.float()
    if not needs.random:
        return _clamped(_masked(logits, allowed).argmax(-1), allowed)
    random = sampling.temperature > 0
    scaled = logits / torch.where(random, sampling.temperature.clamp(min=1e-6), 1.0)[:, None]
    scaled = _masked(scaled, allowed)
    if needs.top_k:
        threshold = kth_largest(scaled, sampling.top_k, needs.top_k)
        scaled = scaled.add((threshold - scaled).gt_(0), alpha=EXCLUDED)
    if needs.top_p:
        scaled = scaled.add(_outside_top_p(scaled, sampling.top_p), alpha=EXCLUDED)
    noise = gumbel_noise(sampling.seed, index, ids)
    chosen = torch.addcmul(scaled, noise, random[:, None].float()).argmax(-1)
    return _clamped(chosen, allowed)


def _clamped(
    chosen: Int64[Tensor, " B"], allowed: tuple[Int[Tensor, " B"], Int[Tensor, " B"]] | None
) -> Int64[Tensor, " B"]:
    """Clamp choices to the allowed range, which they leave where logits are NaN."""
    if allowed is None:
        return chosen
    first, end = allowed
    return torch.maximum(torch.minimum(chosen, end - 1), first)


def _masked(
    logits: Float[Tensor, "B n"], allowed: tuple[Int[Tensor, " B"], Int[Tensor, " B"]] | None
) -> Float[Tensor, "B n"]:
    """Exclude candidates outside the allowed range."""
    if allowed is None:
        return logits
    first, end = (bound[:, None].float() for bound in allowed)
    number = torch.arange(logits.shape[1], dtype=torch.float32, device=logits.device)
    # Arithmetic on the distance from the middle is several times as fast as a boolean mask.
    outside = (2 * number - (first + end - 1)).abs_().ge_(end - first)
    return logits.add(outside, alpha=EXCLUDED)


def kth_largest(
    logits: Float[Tensor, "B n"], k: Int64[Tensor, " B"], largest_k: int
) -> Float[Tensor, "B 1"]:
    """Return the k-th largest logit of each sequence; -inf for k = 0, the smallest for k > n."""
    ranked = logits.topk(min(largest_k, logits.shape[1])).values
    kth = ranked.gather(1, (k.clamp(1, ranked.shape[1]) - 1)[:, None])
    return kth.masked_fill(k[:, None] == 0, -torch.inf)


def _outside_top_p(
    logits: Float[Tensor, "B n"], top_p: Float[Tensor, " B"]
) -> Int32[Tensor, "B n"]:
    """Return 1 for tokens that top-p excludes, else 0; top-p 1 keeps all.

    Top-p keeps the likeliest tokens that reach p together, ties included: all up to some distance
    below the largest logit. Two histograms of probability over the bits of that distance find it,
    a coarse one and then a fine one of the right coarse class. They add integers, whose sum does
    not depend on the order, and cost a fraction of sorting.
    """
    distance = logits.amax(-1, keepdim=True) - logits
    distance.nan_to_num_(MAX_DISTANCE, MAX_DISTANCE)  # keeps NaN from other sequences
    distance.clamp_(max=MAX_DISTANCE)
    weight = distance.neg().exp_().mul_(2.0**40).long()
    bits = distance.add_(1.0).view(torch.int32).sub_(ONE)
    cumulative = _cumulative_weight((bits >> FINE_BITS).long(), weight, COARSE_CLASSES)
    wanted = (cumulative[:, -1:] * top_p[:, None].double()).ceil().long()
    start = (cumulative < wanted).sum(-1, keepdim=True, dtype=torch.int32) << FINE_BITS
    # Class 0 is everything below the coarse class, and the last class everything above it.
    fine = (bits - start).clamp_(-1, FINE_CLASSES).add_(1).long()
    cumulative = _cumulative_weight(fine, weight, FINE_CLASSES + 2)
    farthest = start + (cumulative < wanted).sum(-1, keepdim=True, dtype=torch.int32) - 1
    return bits.gt_(farthest.masked_fill(top_p[:, None] >= 1, COARSE_CLASSES << FINE_BITS))


def _cumulative_weight(
    classes: Int64[Tensor, "B n"], weight: Int64[Tensor, "B n"], n_classes: int
) -> Int64[Tensor, "B classes"]:
    """Return the weight of each class and all classes before it."""
    sums = weight.new_zeros(weight.shape[0], n_classes)
    return sums.scatter_add_(1, classes, weight).cumsum(-1)


def prepare_ids(ids: Int64[Tensor, " n"]) -> Int32[Tensor, " n"]:
    """Hash token ids for :func:`gumbel_noise`, once for all steps, by MurmurHash3's finaliser.

    Distinct ids below 2^32 stay distinct.
    """
    low = 0xFFFFFFFF
    x = (ids + 1) & low
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & low
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & low
    return (x ^ (x >> 16)).to(torch.int32)


def gumbel_noise(
    seeds: Int64[Tensor, " B"], index: Int64[Tensor, " B"], ids: Int32[Tensor, " n"]
) -> Float[Tensor, "B n"]:
    """Return standard Gumbel noise, each number a function of its seed, index and id only.

    The seed and index of a sequence are mixed to 64 bits: an odd factor and a summand for the
    hashed ids, whose bits are then mixed once more. The arithmetic is in 32 bits and in place,
    since there are many numbers.

    Args:
        ids: from :func:`prepare_ids`.
    """
    mixed = seeds + index * GOLDEN
    # SplitMix64 (Steele, Lea and Flood 2014), with arithmetic shifts.
    mixed = (mixed ^ (mixed >> 30)) * -0x40A7B892E31B1A47
    mixed = (mixed ^ (mixed >> 27)) * -0x6B2FB644ECCEEE15
    key = (mixed ^ (mixed >> 31))[:, None].view(torch.int32)  # two halves
    x = torch.addcmul(key[:, :1], ids, key[:, 1:] | 1)
    # Two rounds with the factors of Wellons' lowbias32; after one, some pairs of ids correlate.
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= -0x7B935975
    x ^= x >> 16  # the arithmetic shift clears the sign, so 31 bits are left
    # Uniform in (0, 1), never 1 after rounding, and dense near 0, which gives the largest noise.
    uniform = x.float().mul_(2.0**-31 * (1 - 2.0**-24)).add_(2.0**-33)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def power_of_two(n: int) -> int:
    """Round up to a power of two; 0 stays 0."""
    return 1 << (n - 1).bit_length() if n else 0
