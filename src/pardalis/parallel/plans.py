"""How the modules of a model are divided among ranks.

The table of parameters says how each tensor is split (:mod:`pardalis.parameters`). What a module
does with its input and output follows from its weight. Modules that are units are found by name.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from pardalis.parameters import Split, specs_of

# Modules that are each sharded, recomputed and compiled as one unit.
UNITS = r"(?:.*[._])?blocks\.\d+"

# Modules whose output leaves the model.
OUTPUTS = r"(?:.*[._])?trunk"


@dataclass(frozen=True, slots=True)
class ModulePlan:
    """How the ranks of a tensor-parallel group divide a module.

    Each dimension is the one along which a tensor is sharded evenly; None: it is replicated.
    """

    parameters: dict[str, int | None]  # of each parameter
    input: int | None = None
    output: int | None = None  # partial sums are added
    handles_sharding: bool = False  # the module shards its input and output itself


_DIMENSION: dict[Split, int | None] = {
    "vocabulary": 0,
    "outputs": 0,
    "inputs": 1,
    "heads": None,
    "none": None,
}


def plans_of(model: nn.Module) -> Iterator[tuple[nn.Module, ModulePlan]]:
    """Yield each module that has parameters of its own, or another's, with its plan.

    Raises:
        ConfigError: a parameter has no line in the model's table, or two.
    """
    specs = specs_of(model)
    for module_name, module in model.named_modules():
        prefix = f"{module_name}." if module_name else ""
        splits = {
            name: specs[prefix + name].split for name, _ in module.named_parameters(recurse=False)
        }
        if not splits and getattr(module, "weight", None) is not None:  # a head that is tied
            yield module, ModulePlan({})
        if splits:
            whole = set(splits.values())
            yield (
                module,
                ModulePlan(
                    {name: _DIMENSION[split] for name, split in splits.items()},
                    input=-1 if "inputs" in whole else None,
                    output=-1 if "outputs" in whole else None,
                    handles_sharding="heads" in whole,
                ),
            )


def shared_inputs(model: nn.Module) -> list[nn.Module]:
    """Return the modules whose input several split matrices read.

    The gradient of such an input is summed over the ranks once, and not for each matrix.
    """
    parents: dict[str, None] = {}
    for name, spec in specs_of(model).items():
        if spec.split == "outputs":
            parents[name.rsplit(".", 2)[0]] = None
    return [model.get_submodule(name) for name in parents]


def modules_named(model: nn.Module, pattern: str) -> list[nn.Module]:
    """Return the modules whose whole name matches a pattern."""
    named: Iterable[tuple[str, nn.Module]] = model.named_modules()
    return [module for name, module in named if re.fullmatch(pattern, name)]
