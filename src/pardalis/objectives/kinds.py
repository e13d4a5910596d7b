"""The kinds of objective, of which a recipe names one by ``training.objective.kind``."""

from pardalis.config import Kinds
from pardalis.objectives.next_token import NextTokenConfig
from pardalis.objectives.sft import SFTConfig

OBJECTIVES = Kinds(NextTokenConfig, SFTConfig)
