"""From logits to an id: grammar mask, guidance, temperature, top-k, top-p, then one draw.

The draw is Gumbel-argmax with noise that depends on nothing but (request seed, index of the id), so
an answer does not depend on which other requests share its batch or on how it is computed.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pardalis.inference.request import SamplingConfig
from pardalis.seeds import derive


def guide(
    conditional: Float[Tensor, "B V"],
    unconditional: Float[Tensor, "B V"],
    scale: Float[Tensor, " B"],
) -> Float[Tensor, "B V"]:
    """Classifier-free guidance: u + s (c - u). A scale of 1 returns c, a scale of 0 returns u."""
    return unconditional + scale[:, None] * (conditional - unconditional)


def gumbel_noise(
    seeds: Sequence[int], index: Sequence[int], vocab_size: int
) -> Float[Tensor, "B V"]:
    """Return standard Gumbel noise, row b a function of ``(seeds[b], index[b])`` alone."""
    noise = torch.empty(len(seeds), vocab_size)
    for row, seed, i in zip(noise, seeds, index, strict=True):
        row.exponential_(generator=torch.Generator().manual_seed(derive(seed, "sample", i)))
    return noise.log_().neg_()


def sample(
    logits: Float[Tensor, "B V"],
    allowed: Bool[Tensor, "B V"],
    sampling: Sequence[SamplingConfig],
    seeds: Sequence[int],
    index: Sequence[int],
) -> Int[Tensor, " B"]:
    """Choose one id a row.

    Args:
        allowed: ids that the grammar admits; at least one a row.
        sampling: how each row chooses; temperature 0 takes the most likely id.
        seeds: of the rows' requests.
        index: of the id that is chosen, in its sequence.
    """
    logits = logits.float().masked_fill(~allowed, -torch.inf)
    greedy = logits.argmax(-1)
    if all(s.temperature == 0 for s in sampling):
        return greedy
    temperature = logits.new_tensor([s.temperature for s in sampling])
    scaled = logits / temperature.clamp(min=1e-6)[:, None]
    scaled = _keep_top_k(scaled, [s.top_k for s in sampling])
    scaled = _keep_top_p(scaled, [s.top_p for s in sampling])
    noise = gumbel_noise(seeds, index, logits.shape[-1])
    drawn = (scaled + noise.to(scaled.device)).argmax(-1)
    return torch.where(temperature == 0, greedy, drawn)


def _keep_top_k(logits: Float[Tensor, "B V"], top_k: list[int]) -> Float[Tensor, "B V"]:
    if not any(top_k):
        return logits
    size = logits.shape[-1]
    k = torch.tensor([min(k, size) or size for k in top_k], device=logits.device)
    ordered = logits.sort(-1, descending=True).values
    return logits.masked_fill(logits < ordered.gather(1, k[:, None] - 1), -torch.inf)


def _keep_top_p(logits: Float[Tensor, "B V"], top_p: list[float]) -> Float[Tensor, "B V"]:
    if all(p == 1 for p in top_p):
        return logits
    ordered, order = logits.sort(-1, descending=True)
    probs = ordered.softmax(-1)
    before = probs.cumsum(-1) - probs  # mass of what is more likely than this id
    limit = logits.new_tensor(top_p)[:, None]
    dropped = (before >= limit) & (
        limit < 1
    )  # rounding must not drop the tail of a row that keeps all
    return logits.masked_fill(torch.zeros_like(dropped).scatter(1, order, dropped), -torch.inf)
