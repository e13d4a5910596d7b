"""The kinds of objective, of which a recipe names one by ``training.objective.kind``."""

from pardalis.config import Kinds
from pardalis.objectives.next_token import NextTokenConfig

OBJECTIVES = Kinds(NextTokenConfig)
