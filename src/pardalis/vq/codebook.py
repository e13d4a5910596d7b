"""Codebook training: initialisation from data, restarts of dead codes, moving averages.

This is training state: it is saved in checkpoints, never in a finished tokenizer. The module also
measures how much of a codebook is in use.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pardalis.parallel import World
from pardalis.vq.quantizer import nearest_codes

# Counts in units of the mean use per code. An unused new code is restarted after
# ln(0.3 / 0.1) / (1 - decay) steps, which is 22 at a decay of 0.95.
_DEAD_BELOW = 0.1
_RESTART_COUNT = 0.3
_INIT_ROUNDS = 8
_MIN_COUNT = 1e-6  # a code that is used less keeps its entry


class CodebookTrainer:
    """Initialises a codebook from data and restarts its dead codes.

    Both sample vectors of the batch in proportion to their squared distance from the nearest code,
    as k-means++ does. Vectors with the largest error are represented first, and the many equal
    vectors of an empty background attract no codes.

    Between restarts an entry is moved by the optimizer, or with ``ema`` to the moving average of
    the vectors assigned to it (van den Oord et al. 2017, arXiv 1711.00937, appendix A.1).

    With ``normalise`` vectors and entries are kept on the unit sphere.

    Several processes with a share of the vectors each place the same codes as one process with all
    vectors.
    """

    def __init__(
        self,
        codebook: Float[Tensor, "N Z"],
        ema: bool,
        decay: float,
        normalise: bool = False,
        world: World | None = None,
    ) -> None:
        """Take a codebook, which is changed in place; ``decay`` is that of the moving averages."""
        self.codebook = codebook
        self.ema = ema
        self.decay = decay
        self.normalise = normalise
        self.world = world or World(device=codebook.device)
        self.counts = torch.zeros(len(codebook), device=codebook.device)
        self.sums = torch.zeros(codebook.shape, device=codebook.device)
        self.started = False

    @torch.no_grad()
    def start(self, vectors: Float[Tensor, "M Z"], generator: torch.Generator) -> None:
        """Place all codes on vectors of a batch, an eighth of them per round."""
        vectors = self.world.gather(self._normalised(vectors))
        n_codes = len(self.codebook)
        per_round = -(-n_codes // _INIT_ROUNDS)
        chosen = vectors[_sample(torch.ones(len(vectors)), per_round, generator)]
        while len(chosen) < n_codes:
            errors = (vectors - chosen[nearest_codes(vectors, chosen)]).square().sum(1)
            sampled = _sample(errors, min(per_round, n_codes - len(chosen)), generator)
            chosen = torch.cat([chosen, vectors[sampled]])
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
        """Update counts and averages by one step and restart dead codes; return how many."""
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
            sampled = _sample(self.world.gather(errors), len(dead), generator)
            self._place(dead, self._vectors_at(sampled, vectors), _RESTART_COUNT * mean_count)
        if self.ema:
            used = (self.counts > _MIN_COUNT)[:, None]
            means = self.sums / self.counts.clamp_min(_MIN_COUNT)[:, None]
            self.codebook.copy_(self._normalised(torch.where(used, means, self.codebook)))
        return len(dead) if restart else 0

    def state_dict(self) -> dict[str, Tensor | bool]:
        """Return the state without the codebook itself, which belongs to the network."""
        return {"counts": self.counts, "sums": self.sums, "started": self.started}

    def load_state_dict(self, state: dict[str, Tensor | bool]) -> None:
        self.counts.copy_(torch.as_tensor(state["counts"]))
        self.sums.copy_(torch.as_tensor(state["sums"]))
        self.started = bool(state["started"])

    def _normalised(self, vectors: Float[Tensor, "M Z"]) -> Float[Tensor, "M Z"]:
        return F.normalize(vectors, dim=1) if self.normalise else vectors

    def _vectors_at(
        self, indices: Int[Tensor, " K"], vectors: Float[Tensor, "M Z"]
    ) -> Float[Tensor, "K Z"]:
        """Return vectors by their indices among those of all processes."""
        mine = indices - self.world.rank * len(vectors)
        is_mine = (mine >= 0) & (mine < len(vectors))
        own = torch.where(is_mine[:, None], vectors[mine.clamp(0, len(vectors) - 1)], 0.0)
        return self.world.sum(own)

    def _place(self, codes: Int[Tensor, " K"], vectors: Float[Tensor, "K Z"], count: float) -> None:
        self.codebook[codes] = vectors
        self.counts[codes] = count
        self.sums[codes] = vectors * count


def codebook_use(counts: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """Return the share of codes that are used at least once, from the count of each."""
    return (counts > 0).float().mean()


def perplexity(counts: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """Return the perplexity of the codes, exp(entropy), from the count of each; NaN for none."""
    probs = counts.double() / counts.sum()
    return torch.special.entr(probs).sum().exp()


def _sample(errors: Float[Tensor, " M"], n: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Sample indices in proportion to their errors, on the CPU so that devices agree."""
    weights = errors.double().cpu()
    weights += weights.mean() * 1e-6 + 1e-30  # uniform where all errors are 0
    sampled = torch.multinomial(weights, n, replacement=n > len(weights), generator=generator)
    return sampled.to(errors.device)
