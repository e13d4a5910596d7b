"""LoRA: a matrix of low rank beside each frozen one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pardalis.adapters.linear import AdaptedLinear, Factor, FrozenLinear, LowRank
from pardalis.config import (
    check_above,
    check_at_least,
    check_at_most,
    check_finite,
    check_fractions,
)
from pardalis.errors import ConfigError

BaseDtype = Literal["stored", "float32", "bfloat16", "int8"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoRAConfig:
    """LoRA (arXiv 2106.09685): W x + s B A x, with s = alpha / rank, A random and B = 0 at first.

    The matrices of the head and the embedding are no targets; ``rows`` trains rows of both.
    """

    kind: Literal["lora"] = "lora"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0  # probability, on the input of A
    # Matrices to adapt: parts of the parameter table (attention, feed_forward), or names of
    # matrices (q, k, v, o, gate, up, down).
    targets: tuple[str, ...] = ("attention", "feed_forward")
    rslora: bool = False  # s = alpha / sqrt(rank) (arXiv 2312.03732)
    # Tokens whose rows of embedding and head are trained whole: "all", "special", and names of
    # modalities (image) and of special ids (begin_image).
    rows: tuple[str, ...] = ()
    rows_rate: float = 1.0  # learning rate of the rows over that of the other parameters
    # How the frozen matrices are stored: in the dtype of the bundle, or another. int8: those of
    # the blocks as 8-bit integers with a scale for each output, in a single process.
    base_dtype: BaseDtype = "stored"

    def __post_init__(self) -> None:
        check_at_least(self, rank=1)
        check_at_most(self, rank=2**16)
        check_above(self, alpha=0, rows_rate=0)
        check_finite(self, "alpha", "rows_rate")
        check_fractions(self, "dropout", below_one=True)
        if not self.targets and not self.rows:
            raise ConfigError(
                "targets and rows are both empty, so nothing would be trained; name targets, such "
                'as "attention".'
            )

    def scaling(self, rank: int) -> float:
        """Return s for a matrix of some rank."""
        return self.alpha / (math.sqrt(rank) if self.rslora else rank)

    def adapted(self, linear: nn.Linear) -> "LoRALinear":
        """Return a linear map with the parameters of another and those of the adapter."""
        made = FrozenLinear.of(linear, LoRALinear)
        assert isinstance(made, LoRALinear)
        made.add_factors(self)
        return made

    def low_rank(self, weight: Float[Tensor, "out in"], factors: Mapping[str, Tensor]) -> LowRank:
        """Return what the parameters of the adapter make of a matrix, in 32 bits."""
        a, b = factors["lora_A"].float(), factors["lora_B"].float()
        return LowRank(a, self.scaling(len(a)) * b)

    @property
    def factors(self) -> Mapping[str, Factor]:
        return LoRALinear.factors


class LoRALinear(AdaptedLinear):
    """See :class:`LoRAConfig`."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    factors: ClassVar[Mapping[str, Factor]] = {
        "lora_A": Factor("inputs", decays=True),
        "lora_B": Factor("outputs", decays=True),
    }

    def add_factors(self, config: LoRAConfig) -> None:
        """Add the parameters, uninitialised, on the device of the matrix."""
        device = self.weight.device
        for name, size in (
            ("lora_A", (config.rank, self.in_features)),
            ("lora_B", (self.out_features, config.rank)),
        ):
            self.register_parameter(name, nn.Parameter(torch.empty(size, device=device)))
        self.scaling = config.scaling(config.rank)
        self.dropout = config.dropout

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return A uniform within 1 / sqrt(inputs) of 0, as PEFT does, and B = 0."""
        bound = 1 / math.sqrt(self.in_features)
        a = torch.empty(tuple(self.lora_A.shape))
        return {
            "lora_A": a.uniform_(-bound, bound, generator=generator),
            "lora_B": torch.zeros(tuple(self.lora_B.shape)),
        }

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        return super().forward(x) + self.addition(x)

    def addition(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return s B A x."""
        dropped = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return self.scaling * F.linear(F.linear(dropped, self.lora_A), self.lora_B)
