"""What keeps a codebook alive in training: a start from data, restarts, and running means for some.

This is training state: it is saved in checkpoints, never in a finished tokenizer. Here are also
the measures of how much of a codebook is in use.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pardalis.parallel import World
from pardalis.vq.quantizer import nearest_codes

# In units of the mean use per code. A new code survives ln(0.3 / 0.1) / (1 - decay) steps without
# any use, 22 at a decay of 0.95: long enough to be found, short enough to try another place.
_DEAD_BELOW = 0.1
_FRESH = 0.3
_START_ROUNDS = 8
_LEAST_COUNT = 1e-6  # of an unused code that may not restart: it stays where it is


class LiveCodebook:
    """Places a codebook on data, and places again each entry that nothing chooses any more.

    Both draw vectors of the batch in proportion to their squared distance from the nearest code,
    as k-means++ does. What is represented worst gets help first, and the many equal vectors of an
    empty background attract no codes.

    Between restarts an entry is moved by the optimizer, or (``follows_means``) to the running mean
    of the vectors that choose it, as van den Oord et al. 2017 (arXiv 1711.00937, appendix A.1) do.

    With ``normalise`` all this happens on the unit sphere, and the entries stay on it.

    Several processes that each bring the vectors of their images place the same codes in the
    same way, as one process with all vectors would.
    """

    def __init__(
        self,
        codebook: Float[Tensor, "N Z"],
        follows_means: bool,
        decay: float,
        normalise: bool = False,
        world: World | None = None,
    ) -> None:
        """Take over a codebook, changed in place; ``decay`` of a mean is kept each step."""
        self.codebook = codebook
        self.follows_means = follows_means
        self.decay = decay
        self.normalise = normalise
        self.world = world or World(device=codebook.device)
        self.counts = torch.zeros(len(codebook), device=codebook.device)
        self.sums = torch.zeros(codebook.shape, device=codebook.device)
        self.started = False

    @torch.no_grad()
    def start(self, vectors: Float[Tensor, "M Z"], generator: torch.Generator) -> None:
        """Place all codes on vectors of a batch, an eighth at a time."""
        vectors = self.world.gather(self._normalised(vectors))
        n_codes = len(self.codebook)
        n_round = -(-n_codes // _START_ROUNDS)
        chosen = vectors[_draw(torch.ones(len(vectors)), n_round, generator)]
        while len(chosen) < n_codes:
            errors = (vectors - chosen[nearest_codes(vectors, chosen)]).square().sum(1)
            drawn = _draw(errors, min(n_round, n_codes - len(chosen)), generator)
            chosen = torch.cat([chosen, vectors[drawn]])
        self._place(torch.arange(n_codes), chosen, len(vectors) / n_codes)
        self.started = True

    @torch.no_grad()
    def update(
        self,
        vectors: Float[Tensor, "M Z"],
        codes: Int[Tensor, " M"],
        generator: torch.Generator,
        restart: bool = True,
    ) -> int:
        """Count the vectors of one step, restart dead codes, follow means; return the restarts."""
        vectors = self._normalised(vectors)
        self.codebook.copy_(self._normalised(self.codebook))  # the optimizer has moved it
        ones = torch.ones(len(codes), device=codes.device)
        counts = torch.zeros_like(self.counts).index_add_(0, codes, ones)
        sums = torch.zeros_like(self.sums).index_add_(0, codes, vectors)
        self.counts.lerp_(self.world.sum(counts), 1 - self.decay)
        self.sums.lerp_(self.world.sum(sums), 1 - self.decay)
        mean_count = len(vectors) * self.world.size / len(self.codebook)
        dead = (self.counts < _DEAD_BELOW * mean_count).nonzero().flatten()
        if restart and len(dead):
            errors = (vectors - self.codebook[codes]).square().sum(1)
            drawn = _draw(self.world.gather(errors), len(dead), generator)
            self._place(dead, self._vectors_at(drawn, vectors), _FRESH * mean_count)
        if self.follows_means:
            used = (self.counts > _LEAST_COUNT)[:, None]
            means = self.sums / self.counts.clamp_min(_LEAST_COUNT)[:, None]
            self.codebook.copy_(self._normalised(torch.where(used, means, self.codebook)))
        return len(dead) if restart else 0

    def state_dict(self) -> dict[str, Tensor | bool]:
        """Return all but the codebook itself, which belongs to the network."""
        return {"counts": self.counts, "sums": self.sums, "started": self.started}

    def load_state_dict(self, state: dict[str, Tensor | bool]) -> None:
        self.counts.copy_(torch.as_tensor(state["counts"]))
        self.sums.copy_(torch.as_tensor(state["sums"]))
        self.started = bool(state["started"])

    def _normalised(self, vectors: Float[Tensor, "M Z"]) -> Float[Tensor, "M Z"]:
        return F.normalize(vectors, dim=1) if self.normalise else vectors

    def _vectors_at(
        self, places: Int[Tensor, " K"], vectors: Float[Tensor, "M Z"]
    ) -> Float[Tensor, "K Z"]:
        """Return vectors by their places among those of all processes."""
        mine = places - self.world.rank * len(vectors)
        is_mine = (mine >= 0) & (mine < len(vectors))
        own = torch.where(is_mine[:, None], vectors[mine.clamp(0, len(vectors) - 1)], 0.0)
        return self.world.sum(own)

    def _place(self, codes: Int[Tensor, " K"], vectors: Float[Tensor, "K Z"], count: float) -> None:
        self.codebook[codes] = vectors
        self.counts[codes] = count
        self.sums[codes] = vectors * count


def codebook_use(counts: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """Return the share of codes that occur at all, from how often each occurs."""
    return (counts > 0).float().mean()


def perplexity(counts: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """Return how many codes in even use carry as much: exp(entropy); NaN if none occurs."""
    probs = counts.double() / counts.sum()
    return torch.special.entr(probs).sum().exp()


def _draw(errors: Float[Tensor, " M"], n: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Draw places in proportion to their errors, on the CPU so that every device draws the same."""
    weights = errors.double().cpu()
    weights += weights.mean() * 1e-6 + 1e-30  # where nothing is wrong, any place will do
    drawn = torch.multinomial(weights, n, replacement=n > len(weights), generator=generator)
    return drawn.to(errors.device)
