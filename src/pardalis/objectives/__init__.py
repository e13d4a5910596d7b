"""(model, batch) → loss sums."""

from pardalis.objectives.linear_logsumexp import linear_logsumexp
from pardalis.objectives.next_token import (
    Losses,
    NextTokenConfig,
    next_token_losses,
    no_losses,
)

__all__ = ["Losses", "NextTokenConfig", "linear_logsumexp", "next_token_losses", "no_losses"]
