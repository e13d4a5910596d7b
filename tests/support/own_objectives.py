"""Objectives that a user could add: preferences against a reference, and a policy gradient."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pardalis.batch import Batch
from pardalis.config import not_deciding
from pardalis.model import LanguageModel
from pardalis.objectives import Loss, Objective, hidden_states, token_log_probs


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceConfig:
    """DPO (arXiv 2305.18290, equation 7): row 2i is preferred to row 2i + 1."""

    kind: Literal["preference"] = "preference"
    beta: float = 0.1
    loss_chunk: int = not_deciding(16)

    def build(
        self, modalities: Mapping[str, range], start_model: Callable[[], LanguageModel]
    ) -> "Preference":
        return Preference(self, start_model())


class Preference(Objective):
    rows_together = 2

    def __init__(self, config: PreferenceConfig, reference: LanguageModel) -> None:
        self.config = config
        self.frozen = (reference,)

    def count(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch.ids) / 2, device=batch.ids.device)

    def __call__(self, model: LanguageModel, batch: Batch) -> Loss:
        with torch.no_grad():
            before = self._log_probs(self.frozen[0], batch)
        gained = self.config.beta * (self._log_probs(model, batch) - before)
        margins, count = gained[::2] - gained[1::2], self.count(batch)
        sums = {
            "margin": (margins.detach().sum(), count),
            "accuracy": ((margins > 0).float().sum(), count),
        }
        return Loss(-F.logsigmoid(margins).sum(), count, sums)

    def _log_probs(self, model: LanguageModel, batch: Batch) -> Tensor:
        hidden = hidden_states(model, batch).flatten(0, 1)
        found = token_log_probs(
            hidden, model.head, batch.targets.flatten(), chunk=self.config.loss_chunk
        )
        return (found.view_as(batch.weights) * batch.weights).sum(1)


class PolicyGradient(Objective):
    """REINFORCE with an advantage for each row."""

    def __call__(self, model: LanguageModel, batch: Batch) -> Loss:
        hidden = hidden_states(model, batch).flatten(0, 1)
        found = token_log_probs(hidden, model.head, batch.targets.flatten(), chunk=16)
        weights = batch.weights * batch.extra["advantages"][:, None]
        return Loss(-(found.view_as(weights) * weights).sum(), batch.weights.sum(), {})
