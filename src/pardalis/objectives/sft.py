"""Supervised fine-tuning: next-token prediction of the assistant's turns alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pardalis.batch import Batch
from pardalis.model import LanguageModel
from pardalis.objectives.loss import Loss
from pardalis.objectives.next_token import NextToken, NextTokenConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTConfig(NextTokenConfig):
    """Options of the objective: those of next-token prediction, and how targets are averaged."""

    kind: Literal["sft"] = "sft"  # type: ignore[assignment]
    # "token": each target counts the same, so long answers weigh more; "conversation": each
    # conversation does, whatever the length of its answers.
    average: Literal["token", "conversation"] = "token"

    @property
    def learnt_roles(self) -> tuple[str, ...]:
        return ("assistant",)

    def build(
        self,
        modalities: Mapping[str, range],
        start_model: Callable[[], LanguageModel] | None = None,
    ) -> "SFT":
        """Return the objective; there is no other model in it."""
        return SFT(self, modalities)


class SFT(NextToken):
    """Cross-entropy of the assistant's tokens and of the ends of its turns, plus z-loss.

    Which targets these are stands in the weights of the rows: for a recipe with this objective,
    documents are encoded with the weight 0 for all else (Chameleon, arXiv 2405.09818, section 3).
    With ``average = "conversation"`` the weights of each document of a row are divided by their
    sum, so the count is the number of conversations, and so are the counts of the sums.
    """

    def __init__(self, config: SFTConfig, modalities: Mapping[str, range]) -> None:
        super().__init__(config, modalities)
        self._average = config.average

    def __call__(self, model: LanguageModel, batch: Batch) -> Loss:
        return super().__call__(model, replace(batch, weights=self._weights(batch)))

    def count(self, batch: Batch) -> Float[Tensor, ""]:
        return self._weights(batch).sum()

    def _weights(self, batch: Batch) -> Float[Tensor, "B T"]:
        if self._average == "token":
            return batch.weights
        documents = batch.documents.clamp(min=0)  # padding, which has no weight
        sums = torch.zeros_like(batch.weights).scatter_add(1, documents, batch.weights)
        share = batch.weights / sums.gather(1, documents)
        return share.where(batch.weights > 0, 0.0)
