"""DoRA: LoRA for the direction of each output's weights, and a trained magnitude."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pardalis.adapters.linear import Factor, FrozenLinear, LowRank, whole
from pardalis.adapters.lora import LoRAConfig, LoRALinear

_SMALLEST = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class DoRAConfig(LoRAConfig):
    """DoRA (arXiv 2402.09353): m / |W + s B A| * (W + s B A) x, with m = |W| at first.

    The norm is that of each output's weights, and a constant for the gradient (section 4.3). Where
    there is dropout, it applies to the product with A; PEFT applies it to a part of W x, too.
    """

    kind: Literal["dora"] = "dora"  # type: ignore[assignment]

    def adapted(self, linear: nn.Linear) -> "DoRALinear":
        """Return a linear map with the parameters of another and those of the adapter."""
        made = FrozenLinear.of(linear, DoRALinear)
        assert isinstance(made, DoRALinear)
        made.add_factors(self)
        return made

    def low_rank(self, weight: Float[Tensor, "out in"], factors: Mapping[str, Tensor]) -> LowRank:
        """Return what the parameters of the adapter make of a matrix, in 32 bits."""
        plain = LoRAConfig.low_rank(self, weight, factors)
        directions = weight.float() + plain.b @ plain.a
        scale = factors["lora_magnitude"].float() / row_norms(directions)
        return LowRank(plain.a, scale[:, None] * plain.b, scale)

    @property
    def factors(self) -> Mapping[str, Factor]:
        return DoRALinear.factors


class DoRALinear(LoRALinear):
    """See :class:`DoRAConfig`."""

    lora_magnitude: nn.Parameter
    factors: ClassVar[Mapping[str, Factor]] = {
        **LoRALinear.factors,
        "lora_magnitude": Factor("outputs", decays=False),
    }

    def add_factors(self, config: LoRAConfig) -> None:
        super().add_factors(config)
        magnitude = torch.empty(self.out_features, device=self.weight.device)
        self.lora_magnitude = nn.Parameter(magnitude)

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return those of LoRA, and the norms of the matrix."""
        norms = row_norms(whole(self.matrix())).cpu()
        return super().initial(generator) | {"lora_magnitude": norms}

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        with torch.no_grad():
            directions = self.matrix() + self.scaling * (self.lora_B @ self.lora_A)
            norms = row_norms(directions)
        product = self.product(x) + self.addition(x)
        scaled = ((self.lora_magnitude / norms) * product).to(product.dtype)
        return scaled if self.bias is None else scaled + self.bias


def row_norms(matrix: Float[Tensor, "out in"]) -> Float[Tensor, " out"]:
    """Return the norm of the weights of each output, above 0 so that it can divide."""
    return torch.linalg.vector_norm(matrix, dim=1).clamp(min=_SMALLEST)
