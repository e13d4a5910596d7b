"""Kinds of feed-forward layer. Another kind is a config with its layer and a line in the table.

Parameters of a new layer need lines in :data:`pardalis.model.parameters.PARAMETERS`, unless they
have the names of those here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pardalis.config import Kinds, check_at_least, check_at_most

# Makes one linear map of several with the same input: their outputs are concatenated.
JoinLinear = Callable[[Sequence[nn.Module]], nn.Module]


@runtime_checkable
class FeedForwardConfig(Protocol):
    """The config of a kind of feed-forward layer."""

    @property
    def width(self) -> int:
        """Hidden width, which tensor-parallel ranks divide."""
        ...

    def build(self, d_model: int) -> nn.Module:
        """Return the layer, which maps (B, T, d_model) to the same shape."""
        ...

    @property
    def n_products(self) -> int:
        """Matrix products whose outputs have the hidden width."""
        ...

    def saved_vectors(self, compiled: bool) -> int:
        """Return how many hidden vectors of a token are kept for the backward pass."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SwiGLUConfig:
    """down(silu(gate(x)) * up(x)), without biases (arXiv 2002.05202)."""

    kind: Literal["swiglu"] = "swiglu"
    width: int

    def __post_init__(self) -> None:
        check_at_least(self, width=1)
        check_at_most(self, width=2**24)

    def build(self, d_model: int) -> nn.Module:
        """Return the layer."""
        return SwiGLU(d_model, self.width)

    @property
    def n_products(self) -> int:
        return 2

    def saved_vectors(self, compiled: bool) -> int:
        """Return 3 (gate, up, their product), and silu(gate) if that is not recomputed."""
        return 3 if compiled else 4


@dataclass(frozen=True, kw_only=True, slots=True)
class MLPConfig:
    """down(activation(up(x))), with biases as an option: GPT-2's (gelu_tanh) and OPT's (relu)."""

    kind: Literal["mlp"] = "mlp"
    width: int
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    bias: bool = True

    def __post_init__(self) -> None:
        check_at_least(self, width=1)
        check_at_most(self, width=2**24)

    def build(self, d_model: int) -> nn.Module:
        """Return the layer."""
        return MLP(d_model, self)

    @property
    def n_products(self) -> int:
        return 1

    def saved_vectors(self, compiled: bool) -> int:
        """Return 2: before and after the activation."""
        return 2


FEED_FORWARDS = Kinds(SwiGLUConfig, MLPConfig)


class SwiGLU(nn.Module):
    """See :class:`SwiGLUConfig`."""

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, width, bias=False)
        self.up_proj = nn.Linear(d_model, width, bias=False)
        self.down_proj = nn.Linear(width, d_model, bias=False)
        self.gate_up_proj: nn.Module | None = None

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        if self.gate_up_proj is not None:
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        output: Tensor = self.down_proj(F.silu(gate) * up)
        return output

    def fuse(self, join: JoinLinear) -> None:
        """Compute gate and up in one product."""
        self.gate_up_proj = join([self.gate_proj, self.up_proj])
        del self.gate_proj, self.up_proj


class MLP(nn.Module):
    """See :class:`MLPConfig`."""

    def __init__(self, d_model: int, config: MLPConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.up_proj = nn.Linear(d_model, config.width, bias=config.bias)
        self.down_proj = nn.Linear(config.width, d_model, bias=config.bias)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        hidden = self.up_proj(x)
        if self.activation == "relu":
            hidden = F.relu(hidden)
        else:
            approximate = "tanh" if self.activation == "gelu_tanh" else "none"
            hidden = F.gelu(hidden, approximate=approximate)
        output: Tensor = self.down_proj(hidden)
        return output
