"""AdamW and Muon with the usual parameter groups; their state is keyed by parameter names."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pardalis.config import check_at_least, check_fractions, not_deciding
from pardalis.errors import ConfigError

# Modules whose weights are decayed. The type decides and not the number of dimensions, since a norm
# may have a scale per head and an embedding is a lookup table.
_MATRIX_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)

_Named = list[tuple[str, nn.Parameter]]


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamWConfig:
    """Options of AdamW (arXiv 1711.05101) and Muon; the learning rate is that of the schedule.

    Muon (arXiv 2502.16982) updates the matrices inside blocks, AdamW all other parameters. Muon's
    updates are scaled to the rms of AdamW's, so both use the same learning rate and weight decay.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    beta1: float = 0.9  # decay rate of the mean of gradients
    beta2: float = 0.95  # decay rate of the mean of squared gradients
    eps: float = 1e-8  # added to the root of the mean square; Chameleon has 1e-5
    weight_decay: float = 0.1  # fraction of a matrix that an update subtracts, times the coupling
    # Factor of the decay: the learning rate; or the learning rate over its peak, so that the decay
    # is independent of the peak (arXiv 2309.14322, section 3.2.2, with weight_decay = 1e-4).
    weight_decay_coupling: Literal["learning_rate", "schedule"] = "learning_rate"
    # Learning rate of the scales and shifts of norms over that of other parameters. Each acts
    # on a channel of all tokens, and nothing normalises its effect.
    norm_rate: float = 1.0
    momentum: float = 0.95  # decay rate of the mean of gradients in Muon
    fused: bool = not_deciding(True)  # PyTorch's one-kernel update of AdamW

    def __post_init__(self) -> None:
        check_fractions(self, "beta1", "beta2", "momentum", below_one=True)
        check_at_least(self, eps=0, weight_decay=0, norm_rate=0)
        if self.weight_decay_coupling == "schedule" and self.weight_decay > 0.01:
            raise ConfigError(
                f"weight_decay must be at most 0.01 when it is coupled to the schedule, got "
                f"{self.weight_decay}: an update at the peak subtracts that fraction of every "
                "matrix. The usual value is 1e-4."
            )


class Optimizer:
    """AdamW, or Muon and AdamW, over the trainable parameters of a network.

    Weight decay is for the weights of linear layers and convolutions. Norms, biases, embeddings
    (tied to a head or not) and codebooks are not decayed. All state is allocated at the start, so
    that a checkpoint can be loaded in place, whatever the memory format of the parameters. The
    learning rate is 0 until it is set.

    Args:
        peak: largest learning rate of the schedule, for a decay that is coupled to it.

    Raises:
        ConfigError: ``kind`` is ``muon`` and the network has no matrix inside blocks.
    """

    def __init__(self, model: nn.Module, config: AdamWConfig, peak: float) -> None:
        learnt = sorted(
            ((name, p) for name, p in model.named_parameters() if p.requires_grad),
            key=lambda named: named[0],
        )
        matrices = _matrices(model)
        orthogonal = _inside_blocks(learnt, matrices) if config.kind == "muon" else set()
        decay = config.weight_decay
        if config.weight_decay_coupling == "schedule":
            decay /= peak
        self._learnt = dict(learnt)
        self._parts: list[torch.optim.Optimizer] = []
        if orthogonal:
            self._parts.append(_muon([x for x in learnt if id(x[1]) in orthogonal], config, decay))
        rest = [x for x in learnt if id(x[1]) not in orthogonal]
        if rest:
            self._parts.append(_adamw(rest, matrices, config, decay))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers."""
        return [group for part in self._parts for group in part.param_groups]

    def set_learning_rate(self, value: float) -> None:
        """Set the learning rate of the next update in every parameter group."""
        for group in self.param_groups:
            group["lr"] = value * group["rate"]

    def step(self) -> None:
        for part in self._parts:
            part.step()

    def zero_grad(self) -> None:
        for parameter in self._learnt.values():
            parameter.grad = None

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the state of each parameter by its name: the tensors themselves, not copies."""
        states = {id(p): state for part in self._parts for p, state in part.state.items()}
        return {name: dict(states[id(p)]) for name, p in self._learnt.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Copy a saved state into this one, which keeps its memory formats and devices.

        The fused update traverses parameter and moments in memory order, so a moment needs the
        memory format of its parameter; a checkpoint stores contiguous tensors.

        Raises:
            ValueError: the state is of other parameters or of another kind of optimizer.
        """
        own = self.state_dict()
        if _shapes(own) != _shapes(state):
            odd = sorted(dict(_shapes(own).items() ^ _shapes(state).items()))
            raise ValueError(f"the optimizer's state differs, first in {odd[0]}")
        for name, values in own.items():
            for key, value in values.items():
                value.copy_(state[name][key])


def _matrices(model: nn.Module) -> set[int]:
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, _MATRIX_MODULES)}
    return matrices - {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}


def _inside_blocks(learnt: _Named, matrices: set[int]) -> set[int]:
    inside = {id(p) for name, p in learnt if ".blocks." in name and p.ndim == 2} & matrices
    if not inside:
        raise ConfigError(
            "kind = muon needs matrices inside blocks and this network has none; use kind = adamw."
        )
    return inside


def _muon(named: _Named, config: AdamWConfig, decay: float) -> torch.optim.Optimizer:
    optimizer = torch.optim.Muon(
        [{"params": named, "rate": 1.0}],
        lr=0.0,
        weight_decay=decay,
        momentum=config.momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    for _, parameter in named:
        optimizer.state[parameter] = {"momentum_buffer": _zeros(parameter)}
    return optimizer


def _adamw(
    named: _Named, matrices: set[int], config: AdamWConfig, decay: float
) -> torch.optim.Optimizer:
    decayed = [x for x in named if id(x[1]) in matrices]
    norms = [x for x in named if _is_of_norm(x[0])]
    others = [x for x in named if id(x[1]) not in matrices and not _is_of_norm(x[0])]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": decay, "rate": 1.0},
        {"params": others, "weight_decay": 0.0, "rate": 1.0},
        {"params": norms, "weight_decay": 0.0, "rate": config.norm_rate},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=config.fused,
    )
    for _, parameter in named:
        # The fused update has its step counter on the device, the others on the CPU.
        device = parameter.device if config.fused else torch.device("cpu")
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=device),
            "exp_avg": _zeros(parameter),
            "exp_avg_sq": _zeros(parameter),
        }
    return optimizer


def _is_of_norm(name: str) -> bool:
    """Return whether the name of a parameter's module contains ``norm``."""
    return "norm" in ".".join(name.split(".")[-2:-1])


def _zeros(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter.detach(), memory_format=torch.preserve_format)


def _shapes(state: dict[str, dict[str, Tensor]]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{key}": tuple(t.shape) for name, ts in state.items() for key, t in ts.items()}
