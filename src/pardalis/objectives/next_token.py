"""Next-token prediction over all modalities, with z-loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pardalis.batch import Batch
from pardalis.config import check_at_least, not_deciding
from pardalis.errors import ConfigError
from pardalis.model import LanguageModel
from pardalis.objectives.linear_cross_entropy import linear_cross_entropy
from pardalis.objectives.loss import Loss
from pardalis.objectives.objective import TEXT, Objective, hidden_states, masks_by_modality


@dataclass(frozen=True, kw_only=True, slots=True)
class NextTokenConfig:
    """Options of the objective."""

    kind: Literal["next_token"] = "next_token"
    z_loss: float = 1e-5  # weight of (log Z)² per target
    # Weight of the targets of a modality, by name; 1 where it is not set, 0: generating it is not
    # learnt.
    modality_weights: dict[str, float] = field(default_factory=dict)
    # Largest share of the input ids of a modality that training replaces by random ones of it, by
    # name; each row has a share between 0 and this. A model that memorises its images tells from
    # the first codes of one what follows, and need not read the caption; noise makes the codes
    # unreliable, as word dropout does for texts (arXiv 1511.06349, section 3.1). Ids that are not
    # learnt, such as an image to be described, are given as they are.
    input_noise: dict[str, float] = field(default_factory=dict)
    loss_chunk: int = not_deciding(1024)  # targets whose logits exist at a time
    document_mask: bool = True  # attention stays within a document; False: within a row

    def __post_init__(self) -> None:
        check_at_least(self, z_loss=0, loss_chunk=1)
        for name, weight in self.modality_weights.items():
            if not weight >= 0:  # also refuses NaN
                raise ConfigError(f"modality_weights.{name} must be 0 or more, got {weight}.")
        for name, share in self.input_noise.items():
            if not 0 <= share <= 1:  # also refuses NaN
                raise ConfigError(f"input_noise.{name} must lie in [0, 1], got {share}.")

    def build(
        self,
        modalities: Mapping[str, range],
        start_model: Callable[[], LanguageModel] | None = None,
    ) -> "NextToken":
        """Return the objective; there is no other model in it."""
        return NextToken(self, modalities)


class NextToken(Objective):
    """Cross-entropy of each target, plus z-loss.

    z-loss is 1e-5 (log Z)² per target in Chameleon (arXiv 2405.09818, section 2.3). It keeps the
    normaliser Z, to which softmax is invariant, from drifting. A weight of 0 for images is the
    control of figure 6b: the count still includes their targets, so the loss of text is unchanged.

    The weights of modalities apply to ``total`` only. The sums are ``loss_text``: cross-entropy;
    and with gradients ``z_loss``: (log Z)², without its weight; ``lse_text``: log Z;
    ``grad_norm_text``: |d total / d hidden|². Other modalities have the same sums.

    Args:
        modalities: token ids of each modality, by name; all others are text.

    Raises:
        ConfigError: there is a weight for an unknown modality.
    """

    def __init__(self, config: NextTokenConfig, modalities: Mapping[str, range]) -> None:
        self.config = config
        self.within_documents = config.document_mask
        self._modalities = modalities
        self._names = [TEXT, *(name for name in modalities if name != TEXT)]
        for option, names in (
            ("modality_weights", config.modality_weights),
            ("input_noise", config.input_noise),
        ):
            if unknown := [name for name in names if name not in self._names]:
                raise ConfigError(
                    f"training.objective.{option}.{unknown[0]} is of no modality of the "
                    f"vocabulary; it has {', '.join(self._names)}."
                )
        if TEXT in config.input_noise and TEXT not in modalities:
            raise ConfigError(
                f"training.objective.input_noise.{TEXT} has no range of ids to choose from."
            )

    def __call__(self, model: LanguageModel, batch: Batch) -> Loss:
        config = self.config
        if config.input_noise and model.training:
            batch = replace(batch, ids=self._noisy(batch))
        hidden = hidden_states(model, batch, within_documents=self.within_documents)
        learnt = _learnt(batch.weights)
        targets, weights = batch.targets.flatten()[learnt], batch.weights.flatten()[learnt]
        masks = masks_by_modality(targets, self._modalities)
        scaled = weights
        for name, scale in config.modality_weights.items():
            scaled = torch.where(masks[name], scale * weights, scaled)
        losses = linear_cross_entropy(
            hidden.flatten(0, 1)[learnt],
            model.head.weight,
            targets,
            scaled,
            z_loss=config.z_loss,
            chunk=config.loss_chunk,
        )
        shares = torch.stack([weights, weights * losses.nll, weights * losses.lse])
        by_modality = {name: (shares * mask).sum(1).unbind() for name, mask in masks.items()}
        count = torch.stack([counted for counted, _, _ in by_modality.values()]).sum()
        sums = {f"loss_{name}": (nll, counted) for name, (counted, nll, _) in by_modality.items()}
        if torch.is_grad_enabled():  # how training goes, which an evaluation does not show
            sums["z_loss"] = (weights * losses.lse.square()).sum(), count
            for name, (counted, _, lse) in by_modality.items():
                sums[f"lse_{name}"] = lse, counted
            for name, mask in masks.items():
                sums[f"grad_norm_{name}"] = (losses.gradient_square * mask).sum(), count
        return Loss(losses.total, count, sums)

    def _noisy(self, batch: Batch) -> Int[Tensor, "B T"]:
        """Return ids with noise, from PyTorch's global generator like that of dropout."""
        ids, learnt = batch.ids, F.pad(batch.weights[:, :-1] > 0, (1, 0))
        for name, most in self.config.input_noise.items():
            span = self._modalities[name]
            share = most * torch.rand(len(ids), 1, device=ids.device)
            chosen = torch.rand(ids.shape, device=ids.device) < share
            inside = (ids >= span.start) & (ids < span.stop)
            chosen &= inside & learnt
            ids = torch.where(chosen, torch.randint_like(ids, span.start, span.stop), ids)
        return ids

    def metrics(self, loss: Loss) -> dict[str, Tensor]:
        """Return the means of the sums; ``loss`` is cross-entropy, ``grad_norm`` a norm."""
        cross_entropy = torch.stack([loss.sums[f"loss_{name}"][0] for name in self._names]).sum()
        metrics = {"loss": cross_entropy / loss.count}
        for name, (value, count) in loss.sums.items():
            if name == "z_loss":
                value = self.config.z_loss * value
            elif name.startswith("grad_norm_"):
                value = value.sqrt()
            metrics[name] = value / count
        return metrics


def _learnt(weights: Float[Tensor, "B T"]) -> Int[Tensor, " R"] | slice:
    """Return the flat indices of targets with a weight; on a GPU all, to avoid a host sync."""
    if weights.device.type == "cpu":
        return weights.flatten().nonzero().squeeze(1)
    return slice(None)
