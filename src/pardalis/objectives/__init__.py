"""Objectives: (model, batch) → sums of losses."""

from pardalis.objectives.linear_cross_entropy import CrossEntropy, linear_cross_entropy
from pardalis.objectives.log_probs import token_log_probs
from pardalis.objectives.next_token import (
    Losses,
    NextTokenConfig,
    next_token_losses,
    zero_losses,
)
