"""Linear maps whose matrix is frozen, and what an adapter adds to them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter of any kind makes of a linear map W: scale * (W x) + b (a x).

    The engine computes it beside the product with W; merging computes the one matrix.
    """

    a: Float[Tensor, "r in"]
    b: Float[Tensor, "out r"]
    scale: Float[Tensor, " out"] | None = None  # None: 1

    def merged(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """Return the matrix of the adapted map, in the dtype of ``weight``."""
        whole = weight.float()
        if self.scale is not None:
            whole = whole * self.scale[:, None]
        return (whole + self.b @ self.a).to(weight.dtype)


@dataclass(frozen=True, slots=True)
class Factor:
    """A trained parameter that an adapter adds to a linear map.

    Attributes:
        follows: the dimension of the matrix that it has, and is divided with among ranks.
        decays: whether weight decay applies to it.
    """

    follows: Literal["inputs", "outputs"]
    decays: bool


class FrozenLinear(nn.Linear):
    """A linear map whose matrix is not trained, and may be stored in fewer bits than x has.

    Autograd keeps the matrix as it is stored, and not the copy that the product needs.

    Attributes:
        scale: with a matrix of 8-bit integers, the factor of each output.
    """

    scale: Float[Tensor, " out"] | None

    @staticmethod
    def of(linear: nn.Linear, cls: type["FrozenLinear"] | None = None) -> "FrozenLinear":
        """Return a linear map with the parameters of another, which no longer need gradients."""
        made = (cls or FrozenLinear)(
            linear.in_features, linear.out_features, linear.bias is not None, device="meta"
        )
        for name, parameter in linear.named_parameters(recurse=False):
            parameter.requires_grad_(False)
            made.register_parameter(name, parameter)
        return made

    def __init__(self, *sizes: Any, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.register_buffer("scale", None, persistent=False)

    @torch.no_grad()
    def quantise(self) -> None:
        """Store the matrix as 8-bit integers with a scale for each output."""
        weight = self.weight.float()
        del self.weight
        scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        integers: Int8[Tensor, "out in"] = (weight / scale[:, None]).round().to(torch.int8)
        self.register_buffer("weight", integers, persistent=False)
        self.scale = scale

    def matrix(self) -> Float[Tensor, "out in"]:
        """Return the matrix in 32 bits."""
        weight = self.weight.detach().float()
        return weight if self.scale is None else weight * self.scale[:, None]

    def product(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return the product without bias."""
        dtype, kind = x.dtype, x.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        if self.scale is None and self.weight.dtype == dtype == x.dtype:
            return F.linear(x, self.weight)
        product: Tensor = _FrozenProduct.apply(x, self.weight, self.scale, dtype)  # type: ignore[no-untyped-call]
        return product

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        product = self.product(x)
        return product if self.bias is None else product + self.bias


class _FrozenProduct(torch.autograd.Function):
    """The product with a matrix that is converted to the dtype of the product twice."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(weight, scale)
        with torch.autocast(x.device.type, enabled=False):
            product = F.linear(x.to(dtype), weight.to(dtype))
            return product if scale is None else product * scale.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (weight, scale) = grads, ctx.saved_tensors
        if scale is not None:
            grad = grad * scale.to(grad.dtype)
        return grad @ weight.to(grad.dtype), None, None, None


class AdaptedLinear(FrozenLinear, ABC):
    """A frozen linear map and the parameters that an adapter adds to it.

    Attributes:
        factors: the added parameters, by name.
    """

    factors: ClassVar[Mapping[str, Factor]]

    @abstractmethod
    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the initial values of the added parameters, on the CPU.

        The matrix has its values by then. Tensors may be sharded: every rank calls this.
        """


def whole(parameter: Tensor) -> Tensor:
    """Return all of a parameter that may be sharded; every rank calls this."""
    tensor: Tensor = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
    return tensor.detach()
