"""From logits to an id, in tensors alone: range, temperature, top-k, top-p, then one draw.

The draw is Gumbel-argmax with noise that depends on nothing but (request seed, index of the id in
its sequence, the id), so an answer does not depend on which other requests share its batch or on
how it is computed. Nothing here reads a tensor on the host.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor

from pardalis.inference.request import SamplingConfig

# An odd number near 2^64 over the golden ratio, as signed: small multiples of it lie far apart.
GOLDEN = -0x61C8864680B583EB
NEVER = -1e30  # what is added to a logit that must not win; finite, so that nothing is NaN
# Top-p counts by the bits of 1 + distance, which rise with the distance below the largest logit.
FAINT = 31.0  # nats; an id that lies farther below has no weight
ONE = 0x3F800000  # the bits of 1.0
FINE_BITS = 13
FINE_CLASSES = 2**FINE_BITS
COARSE_CLASSES = ((0x42000000 - ONE) >> FINE_BITS) + 1  # up to the bits of 32.0


@dataclass(frozen=True, slots=True)
class Needs:
    """What any row of a batch asks of the sampler; the host knows it and leaves out the rest."""

    draw: bool  # a temperature above 0
    top_k: int  # at least the largest k; 0 when no row has one
    top_p: bool  # a top-p below 1

    @staticmethod
    def of(samplings: Iterable[SamplingConfig]) -> "Needs":
        """Collect the needs of some rows, k as a power of two for the sake of compiled steps."""
        drawn = [s for s in samplings if s.temperature > 0]
        return Needs(
            draw=bool(drawn),
            top_k=power_of_two(max((s.top_k for s in drawn), default=0)),
            top_p=any(s.top_p < 1 for s in drawn),
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """How each row chooses: a :class:`SamplingConfig` and a seed a row."""

    temperature: Float[Tensor, " B"]
    top_k: Int64[Tensor, " B"]
    top_p: Float[Tensor, " B"]
    seed: Int64[Tensor, " B"]

    @staticmethod
    def of(
        samplings: Sequence[SamplingConfig],
        seeds: Sequence[int],
        device: torch.device | str | None = None,
    ) -> "Choice":
        """Put settings, and seeds in [0, 2^63), on a device."""
        return Choice(
            torch.tensor([s.temperature for s in samplings], dtype=torch.float32, device=device),
            torch.tensor([s.top_k for s in samplings], dtype=torch.int64, device=device),
            torch.tensor([s.top_p for s in samplings], dtype=torch.float32, device=device),
            torch.tensor(list(seeds), dtype=torch.int64, device=device),
        )


def sample(
    logits: Float[Tensor, "B n"],
    allowed: tuple[Int[Tensor, " B"], Int[Tensor, " B"]] | None,
    choice: Choice,
    index: Int64[Tensor, " B"],
    ids: Int32[Tensor, " n"],
    needs: Needs,
) -> Int64[Tensor, " B"]:
    """Choose one column a row.

    Args:
        allowed: the first column that a row may take, and the one after its last; all columns when
            left out. A row with an empty range returns any column.
        index: of the id that is chosen, in its sequence.
        ids: what each column stands for, from :func:`prepare_ids`.
        needs: what the rows ask for; more than that changes nothing but the time.
    """
    logits = logits.float()
    if not needs.draw:
        return _bounded(_within(logits, allowed).argmax(-1), allowed)
    drawn = choice.temperature > 0
    scaled = logits / torch.where(drawn, choice.temperature.clamp(min=1e-6), 1.0)[:, None]
    scaled = _within(scaled, allowed)
    if needs.top_k:
        least = kth_largest(scaled, choice.top_k, needs.top_k)
        scaled = scaled.add((least - scaled).gt_(0), alpha=NEVER)
    if needs.top_p:
        scaled = scaled.add(_beyond_top_p(scaled, choice.top_p), alpha=NEVER)
    noise = gumbel_noise(choice.seed, index, ids)
    chosen = torch.addcmul(scaled, noise, drawn[:, None].float()).argmax(-1)
    return _bounded(chosen, allowed)


def _bounded(
    chosen: Int64[Tensor, " B"], allowed: tuple[Int[Tensor, " B"], Int[Tensor, " B"]] | None
) -> Int64[Tensor, " B"]:
    """Keep the choices of rows whose logits are not numbers within what they may take."""
    if allowed is None:
        return chosen
    first, end = allowed
    return torch.maximum(torch.minimum(chosen, end - 1), first)


def _within(
    logits: Float[Tensor, "B n"], allowed: tuple[Int[Tensor, " B"], Int[Tensor, " B"]] | None
) -> Float[Tensor, "B n"]:
    """Take what lies outside a range out of the choice."""
    if allowed is None:
        return logits
    first, end = (bound[:, None].float() for bound in allowed)
    column = torch.arange(logits.shape[1], dtype=torch.float32, device=logits.device)
    # By the distance from the middle: arithmetic, which is several times as fast as a mask.
    outside = (2 * column - (first + end - 1)).abs_().ge_(end - first)
    return logits.add(outside, alpha=NEVER)


def kth_largest(
    logits: Float[Tensor, "B n"], k: Int64[Tensor, " B"], bound: int
) -> Float[Tensor, "B 1"]:
    """Return each row's k-th largest logit, the smallest when there are fewer; -inf for k = 0.

    Args:
        bound: at least the largest k.
    """
    ranked = logits.topk(min(bound, logits.shape[1])).values
    kth = ranked.gather(1, (k.clamp(1, ranked.shape[1]) - 1)[:, None])
    return kth.masked_fill(k[:, None] == 0, -torch.inf)


def _beyond_top_p(logits: Float[Tensor, "B n"], top_p: Float[Tensor, " B"]) -> Int32[Tensor, "B n"]:
    """Return 1 for ids that top-p leaves out, else 0; a row with top-p 1 keeps all.

    Kept are the likeliest ids that reach p together, and those as likely as the last of them: all
    up to some distance below the row's largest logit. Two counts of weight by the bits of that
    distance find it, first in coarse classes and then inside the right one. They add integers,
    whose sum does not depend on their order, and cost a fraction of sorting.
    """
    distance = logits.amax(-1, keepdim=True) - logits
    distance.nan_to_num_(FAINT, FAINT).clamp_(max=FAINT)  # a broken model shall not break others
    weight = distance.neg().exp_().mul_(2.0**40).long()
    bits = distance.add_(1.0).view(torch.int32).sub_(ONE)
    upto = _weight_upto((bits >> FINE_BITS).long(), weight, COARSE_CLASSES)
    wanted = (upto[:, -1:] * top_p[:, None].double()).ceil().long()
    start = (upto < wanted).sum(-1, keepdim=True, dtype=torch.int32) << FINE_BITS
    # All below the coarse class is class 0 here, and all above it the last.
    fine = (bits - start).clamp_(-1, FINE_CLASSES).add_(1).long()
    upto = _weight_upto(fine, weight, FINE_CLASSES + 2)
    farthest = start + (upto < wanted).sum(-1, keepdim=True, dtype=torch.int32) - 1
    return bits.gt_(farthest.masked_fill(top_p[:, None] >= 1, COARSE_CLASSES << FINE_BITS))


def _weight_upto(
    classes: Int64[Tensor, "B n"], weight: Int64[Tensor, "B n"], n_classes: int
) -> Int64[Tensor, "B classes"]:
    """Return the weight in each class and those before it."""
    sums = weight.new_zeros(weight.shape[0], n_classes)
    return sums.scatter_add_(1, classes, weight).cumsum(-1)


def prepare_ids(ids: Int64[Tensor, " n"]) -> Int32[Tensor, " n"]:
    """Hash ids to what :func:`gumbel_noise` takes, once for all draws: MurmurHash3's finaliser.

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
    """Return standard Gumbel noise, each number a function of its seed, index and id alone.

    A row's seed and index become 64 scrambled bits: an odd factor and a summand for the hashed ids,
    whose bits are then scrambled once more. All is 32-bit arithmetic in place, since the numbers
    are many.

    Args:
        ids: from :func:`prepare_ids`.
    """
    row = _scrambled(seeds + index * GOLDEN)[:, None].view(torch.int32)  # two halves
    x = torch.addcmul(row[:, :1], ids, row[:, 1:] | 1)
    # Two rounds, with the factors of Wellons' lowbias32; after one, some pairs of ids go together.
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= -0x7B935975
    x ^= x >> 16  # shifting in the sign clears it, so 31 bits are left
    # Uniform in (0, 1), never 1 after rounding, and fine near 0, where the largest noise is.
    uniform = x.float().mul_(2.0**-31 * (1 - 2.0**-24)).add_(2.0**-33)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _scrambled(x: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
    """Mix 64 bits as SplitMix64 does (Steele, Lea and Flood 2014), but for the shifts' sign."""
    x = (x ^ (x >> 30)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31)


def power_of_two(n: int) -> int:
    """Return the least power of two that is n or more; 0 for 0."""
    return 1 << (n - 1).bit_length() if n else 0
