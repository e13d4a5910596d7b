"""The protocol between training and what is minimised."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pardalis.batch import Batch
from pardalis.model import LanguageModel, attention_mask
from pardalis.objectives.loss import Loss

TEXT = "text"  # the modality of all token ids that are of no other


class Objective(ABC):
    """What a model is trained for.

    Attributes:
        rows_together: rows that belong together, such as the two of a pair. A micro-batch has a
            multiple of them.
        within_documents: whether attention stays within a document.
        frozen: models that it reads and training does not change, such as a reference. They are
            moved to the device, and are no part of checkpoints, so they are the same at every start
            of the run. On several ranks they are sharded before.
    """

    rows_together: ClassVar[int] = 1
    within_documents: bool = True
    frozen: Sequence[nn.Module] = ()

    @abstractmethod
    def __call__(self, model: LanguageModel, batch: Batch) -> Loss:
        """Return the loss of some rows: a part of a rank's share of a batch."""

    def count(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the count of the loss of some rows, which training needs before the first loss."""
        return batch.weights.sum()

    def metrics(self, loss: Loss) -> dict[str, Tensor]:
        """Return what a step reports, from the sums over the whole batch; ``loss`` is required."""
        return loss.means()


@runtime_checkable
class ObjectiveConfig(Protocol):
    """The config of an objective.

    One that learns only some turns of conversations has an attribute ``learnt_roles`` too: see
    :func:`learnt_roles`.
    """

    @property
    def kind(self) -> str:
        """Its name in a recipe."""
        ...

    @property
    def loss_chunk(self) -> int:
        """Targets whose logits exist at a time."""
        ...

    def build(
        self, modalities: Mapping[str, range], start_model: Callable[[], LanguageModel]
    ) -> Objective:
        """Return the objective.

        Args:
            modalities: token ids of each modality, by name; all others are text.
            start_model: returns a copy of the model that training starts from, sharded as it is,
                for an objective with a reference.

        Raises:
            ConfigError: an option names a modality that does not exist.
        """
        ...


def learnt_roles(config: ObjectiveConfig) -> tuple[str, ...]:
    """Return the roles whose turns an objective learns, and nothing else; (): all of a document.

    Documents are prepared accordingly, so that no target of another role reaches the objective.
    """
    roles: tuple[str, ...] = getattr(config, "learnt_roles", ())
    return roles


def hidden_states(
    model: LanguageModel, batch: Batch, *, within_documents: bool = True
) -> Float[Tensor, "B T D"]:
    """Return the final hidden states of the rows, which the head reads.

    Args:
        within_documents: attention and positions stay within a document; False: each row is one
            sequence.
    """
    if not within_documents:
        return model.hidden(batch.ids, soft=batch.soft)
    mask = attention_mask(batch.documents)
    return model.hidden(batch.ids, batch.positions, mask, soft=batch.soft)


def masks_by_modality(
    ids: Int[Tensor, "..."], modalities: Mapping[str, range]
) -> dict[str, Bool[Tensor, "..."]]:
    """Return where token ids are of each modality: first text, which is all outside the others."""
    others = torch.zeros_like(ids, dtype=torch.bool)
    masks = {TEXT: others}
    for name, span in modalities.items():
        if name != TEXT:
            masks[name] = (ids >= span.start) & (ids < span.stop)
            others = others | masks[name]
    return masks | {TEXT: ~others}
