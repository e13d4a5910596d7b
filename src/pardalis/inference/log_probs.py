"""Log-probabilities of tokens under the model's softmax over its whole vocabulary.

They are those of the model itself: before temperature, top-k, top-p, guidance and the grammar.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pardalis.inference.weights import Head

_LOGITS_AT_ONCE = 2**22  # numbers in the logits of one chunk of positions


@dataclass(frozen=True, slots=True)
class TokenLogProb:
    """A token with its log-probability, and the most likely tokens at its place with theirs."""

    token_id: int
    log_prob: float
    top: tuple[tuple[int, float], ...]  # token ids and log-probabilities, the most likely first


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a given continuation is."""

    log_probs: tuple[float, ...]  # of each token, given all before it
    greedy: bool  # whether every token is the most likely one at its place

    @property
    def log_prob(self) -> float:
        """The log-probability of the whole continuation, in nats."""
        return fsum(self.log_probs)

    @staticmethod
    def of(tokens: Sequence[TokenLogProb]) -> "Score":
        """Return the score of a continuation of these tokens."""
        greedy = all(token.top[0][0] == token.token_id for token in tokens)
        return Score(tuple(token.log_prob for token in tokens), greedy)


@dataclass(frozen=True, slots=True)
class LogProbTensors:
    """Log-probabilities of T tokens of L sequences, and the n most likely tokens at each place."""

    log_probs: Float[Tensor, "L T"]
    top_ids: Int[Tensor, "L T n"]
    top: Float[Tensor, "L T n"]

    @staticmethod
    def joined(parts: "Sequence[LogProbTensors]") -> "LogProbTensors":
        """Concatenate successive tokens of the same sequences."""
        return LogProbTensors(
            torch.cat([part.log_probs for part in parts], dim=1),
            torch.cat([part.top_ids for part in parts], dim=1),
            torch.cat([part.top for part in parts], dim=1),
        )

    def on_host(self) -> "LogProbTensors":
        """Copy to the host; from a GPU, the copy is complete once the host has synchronised."""
        tensors = (self.log_probs, self.top_ids, self.top)
        return LogProbTensors(*(x.to("cpu", non_blocking=True) for x in tensors))

    def tokens(self, sequence: int, ids: Sequence[int], n_top: int) -> list[TokenLogProb]:
        """Return the tokens of one sequence; those with an id below 0 are left out."""
        numbers = zip(
            ids,
            self.log_probs[sequence].tolist(),
            self.top_ids[sequence, :, :n_top].tolist(),
            self.top[sequence, :, :n_top].tolist(),
            strict=True,
        )
        return [
            TokenLogProb(token_id, log_prob, tuple(zip(top_ids, top, strict=True)))
            for token_id, log_prob, top_ids, top in numbers
            if token_id >= 0
        ]


def log_probs_of(
    hidden: Float[Tensor, "L T D"], head: Head, ids: Int[Tensor, "L T"], n_top: int
) -> LogProbTensors:
    """Return the log-probability of each token, given the hidden state before it.

    Only the logits of a few positions exist at a time.

    Args:
        ids: the tokens; the result is arbitrary where an id is below 0.
        n_top: how many of the most likely tokens to return; at most the whole vocabulary.
    """
    n_top = min(n_top, len(head.ids))
    chunk = max(_LOGITS_AT_ONCE // len(head.ids), 1)
    targets = head.index[ids.clamp(min=0)].flatten()
    parts = []
    for states, target in zip(
        torch.split(hidden.flatten(0, 1), chunk), torch.split(targets, chunk), strict=True
    ):
        log_probs = head.whole(states).float().log_softmax(-1)
        top, number = log_probs.topk(n_top)
        parts.append((log_probs.gather(1, target[:, None])[:, 0], head.ids[number], top))
    chosen, top_ids, top = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    shape = ids.shape
    return LogProbTensors(chosen.view(shape), top_ids.view(*shape, n_top), top.view(*shape, n_top))
