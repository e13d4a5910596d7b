"""Objectives: (model, batch) → loss as sums and counts."""

from pardalis.objectives.kinds import OBJECTIVES
from pardalis.objectives.linear_cross_entropy import CrossEntropy, linear_cross_entropy
from pardalis.objectives.log_probs import token_log_probs
from pardalis.objectives.loss import Loss
from pardalis.objectives.next_token import NextToken, NextTokenConfig
from pardalis.objectives.objective import (
    TEXT,
    Objective,
    ObjectiveConfig,
    hidden_states,
    learnt_roles,
    masks_by_modality,
)
from pardalis.objectives.sft import SFT, SFTConfig
