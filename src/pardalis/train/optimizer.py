"""AdamW with the usual parameter groups: which parameters decay, and in which order they stand."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pardalis.errors import ConfigError

# What multiplies: weight decay is for these, by their type and not by the number of dims, since a
# norm may have a scale per head and an embedding is a table.
_MATRIX_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamWConfig:
    """Options of AdamW (arXiv 1711.05101); the learning rate comes from the schedule."""

    beta1: float = 0.9  # decay of the mean of gradients
    beta2: float = 0.95  # decay of the mean of squared gradients
    eps: float = 1e-8  # added to the root of the mean square; Chameleon has 1e-5
    weight_decay: float = 0.1  # per update, times the learning rate
    fused: bool = False  # PyTorch's one-kernel update

    def __post_init__(self) -> None:
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= value < 1:
                raise ConfigError(f"{name} must lie in [0, 1), got {value}.")
        for name, value in (("eps", self.eps), ("weight_decay", self.weight_decay)):
            if not value >= 0:
                raise ConfigError(f"{name} must be 0 or more, got {value}.")


def adamw(model: nn.Module, config: AdamWConfig) -> torch.optim.AdamW:
    """Return AdamW over the parameters that learn, with weight decay on matrices only.

    Matrices are the weights of linear layers and convolutions. Norms, biases, embeddings (tied to a
    head or not) and codebooks are not decayed. PyTorch numbers parameters in a saved state, so
    they stand in the order of their names: the order of construction changes nothing. The learning
    rate is 0 until someone sets it.
    """
    learnt = sorted(
        ((name, p) for name, p in model.named_parameters() if p.requires_grad), key=lambda x: x[0]
    )
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, _MATRIX_MODULES)}
    matrices -= {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed = [(name, p) for name, p in learnt if id(p) in matrices]
    others = [(name, p) for name, p in learnt if id(p) not in matrices]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=config.fused,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give every parameter group the learning rate of the coming update."""
    for group in optimizer.param_groups:
        group["lr"] = value


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a saved state, giving each moment the memory layout of its parameter.

    A checkpoint stores tensors row by row. The fused update walks parameter and moments in memory
    order, so beside a channels-last weight a row-by-row moment would meet the wrong elements.
    """
    optimizer.load_state_dict(state)
    for parameter, moments in optimizer.state.items():
        for name, moment in moments.items():
            if isinstance(moment, torch.Tensor) and moment.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(moment)
