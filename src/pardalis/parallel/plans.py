"""How the modules of a decoder are divided among ranks, as tables of module names.

The tables know nothing of an architecture but names. A new kind of layer is a new line.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from pardalis.errors import ConfigError

_BLOCK = r"trunk\.blocks\.\d+"


@dataclass(frozen=True, slots=True)
class ModulePlan:
    """How the ranks of a tensor-parallel group divide the modules of a name.

    Each dimension is the one along which a tensor is sharded evenly; None: it is replicated.
    """

    names: str  # pattern of whole module names
    parameters: int | None
    input: int | None = None
    output: int | None = None  # partial sums are added
    handles_sharding: bool = False  # the module shards its input and output itself


# Megatron's division (arXiv 1909.08053, section 3): heads and hidden units are split, and a pair of
# matrices needs one sum. Embedding and head are split over the vocabulary.
TENSOR_PLAN = (
    ModulePlan(r"embedding", parameters=0),
    ModulePlan(rf"{_BLOCK}\.(attention|feed_forward)_norm", parameters=None),
    ModulePlan(rf"{_BLOCK}\.attention\.[qkv]_proj", parameters=0, output=-1),
    ModulePlan(rf"{_BLOCK}\.attention\.[qk]_norm", parameters=None, handles_sharding=True),
    ModulePlan(rf"{_BLOCK}\.attention\.o_proj", parameters=1, input=-1),
    ModulePlan(rf"{_BLOCK}\.feed_forward\.(gate|up)_proj", parameters=0, output=-1),
    ModulePlan(rf"{_BLOCK}\.feed_forward\.down_proj", parameters=1, input=-1),
    ModulePlan(r"trunk\.norm", parameters=None),
    ModulePlan(r"head", parameters=0),
)

# Modules whose input several split matrices read, so that its gradient is summed only once.
SHARED_INPUTS = rf"{_BLOCK}\.(attention|feed_forward)"

# The module whose output leaves the model.
OUTPUT = r"trunk"

# Modules that are each sharded, recomputed and compiled as one unit.
UNITS = _BLOCK


def check_divides(shape: Any, tensor: int) -> None:
    """Check that a model can be split evenly.

    Args:
        shape: the config of a decoder, or anything with the same sizes.

    Raises:
        ConfigError: ``tensor`` does not divide the heads, the hidden width or the vocabulary.
    """
    for name in ("n_kv_heads", "n_heads", "d_ff", "vocab_size"):
        if (size := getattr(shape, name)) % tensor:
            raise ConfigError(
                f"tensor = {tensor} does not divide {name} = {size}; change tensor in [parallel] "
                "or the shape of the model."
            )


def plan_of(module_name: str) -> ModulePlan:
    """Return the line of the table for a module that has parameters of its own.

    Raises:
        ConfigError: no line, or more than one, matches the name.
    """
    found = [plan for plan in TENSOR_PLAN if re.fullmatch(plan.names, module_name)]
    if len(found) != 1:
        raise ConfigError(
            f"{len(found)} lines of parallel.plans.TENSOR_PLAN match {module_name!r} and one is "
            "needed; add or correct a line."
        )
    return found[0]


def plans_of(model: nn.Module) -> Iterator[tuple[nn.Module, ModulePlan]]:
    """Yield each module that has parameters of its own, with its line of the table."""
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            yield module, plan_of(name)


def modules_named(model: nn.Module, pattern: str) -> list[nn.Module]:
    """Return the modules whose whole name matches a pattern."""
    named: Iterable[tuple[str, nn.Module]] = model.named_modules()
    return [module for name, module in named if re.fullmatch(pattern, name)]
