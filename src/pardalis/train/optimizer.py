"""AdamW and Muon with the usual parameter groups; their state is keyed by parameter names."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pardalis.config import check_at_least, check_fractions, not_deciding
from pardalis.errors import ConfigError
from pardalis.parameters import ParameterSpec, specs_of

_Named = list[tuple[str, nn.Parameter]]


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamWConfig:
    """Options of AdamW (arXiv 1711.05101); the learning rate is that of the schedule."""

    kind: Literal["adamw"] = "adamw"
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
    fused: bool = not_deciding(True)  # PyTorch's one-kernel update of AdamW

    def __post_init__(self) -> None:
        check_fractions(self, "beta1", "beta2", below_one=True)
        check_at_least(self, eps=0, weight_decay=0, norm_rate=0)
        if self.weight_decay_coupling == "schedule" and self.weight_decay > 0.01:
            raise ConfigError(
                f"weight_decay must be at most 0.01 when it is coupled to the schedule, got "
                f"{self.weight_decay}: an update at the peak subtracts that fraction of every "
                "matrix. The usual value is 1e-4."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class MuonConfig(AdamWConfig):
    """Muon (arXiv 2502.16982) for the matrices between hidden states, AdamW for all others.

    Muon's updates are scaled to the rms of AdamW's, so both use the same learning rate and weight
    decay.
    """

    kind: Literal["muon"] = "muon"  # type: ignore[assignment]
    momentum: float = 0.95  # decay rate of the mean of gradients in Muon

    def __post_init__(self) -> None:
        AdamWConfig.__post_init__(self)
        check_fractions(self, "momentum", below_one=True)


OptimizerConfig = AdamWConfig | MuonConfig


class Optimizer:
    """AdamW, or Muon and AdamW, over the trainable parameters of a network.

    The network's table of parameters says which of them decay and which are norms
    (:mod:`pardalis.parameters`). All state is allocated at the start, so
    that a checkpoint can be loaded in place, whatever the memory format of the parameters. The
    learning rate is 0 until it is set.

    Args:
        peak: largest learning rate of the schedule, for a decay that is coupled to it.

    Raises:
        ConfigError: ``kind`` is ``muon`` and the network has no matrix between hidden states; or a
            parameter has no line in its table.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig, peak: float) -> None:
        learnt = sorted(
            ((name, p) for name, p in model.named_parameters() if p.requires_grad),
            key=lambda named: named[0],
        )
        specs = specs_of(model)
        decay = config.weight_decay
        if config.weight_decay_coupling == "schedule":
            decay /= peak
        self._learnt = dict(learnt)
        self._parts: list[torch.optim.Optimizer] = []
        rest = learnt
        if isinstance(config, MuonConfig):
            inside = [x for x in learnt if specs[x[0]].is_hidden_matrix and x[1].ndim == 2]
            if not inside:
                raise ConfigError(
                    "kind = muon needs matrices between hidden states and this network has none; "
                    "use kind = adamw."
                )
            self._parts.append(_muon(inside, config, decay))
            names = {name for name, _ in inside}
            rest = [x for x in learnt if x[0] not in names]
        if rest:
            self._parts.append(_adamw(rest, specs, config, decay))

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


def _muon(named: _Named, config: MuonConfig, decay: float) -> torch.optim.Optimizer:
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
    named: _Named, specs: dict[str, ParameterSpec], config: AdamWConfig, decay: float
) -> torch.optim.Optimizer:
    groups: dict[tuple[float, float], _Named] = {}
    for name, parameter in named:
        spec = specs[name]
        rate = config.norm_rate if spec.is_norm else spec.rate
        groups.setdefault((decay if spec.decays else 0.0, rate), []).append((name, parameter))
    optimizer = torch.optim.AdamW(
        [
            {"params": some, "weight_decay": of_group, "rate": rate}
            for (of_group, rate), some in groups.items()
        ],
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


def _zeros(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter.detach(), memory_format=torch.preserve_format)


def _shapes(state: dict[str, dict[str, Tensor]]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{key}": tuple(t.shape) for name, ts in state.items() for key, t in ts.items()}
