"""One table says what each parameter of a network is: what it is counted as, how it begins,
whether it decays and how tensor-parallel ranks divide it.

A language model carries its table as ``parameter_table``. Each parameter needs exactly one line.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from torch import nn

from pardalis.errors import ConfigError

# How tensor-parallel ranks divide a parameter (Megatron, arXiv 1909.08053, section 3). A pair of
# matrices, of which the first is split by its outputs and the second by its inputs, needs one sum.
Split = Literal[
    "vocabulary",  # dimension 0, one vector per token
    "outputs",  # dimension 0, and with it the output of the matrix
    "inputs",  # dimension 1, and with it the input of the matrix; its outputs are added
    "heads",  # whole in every rank; the layer takes what its heads need
    "none",  # whole in every rank
]
Init = Literal[
    "normal",  # N(0, std), truncated at 3 std
    "output",  # the same, for a matrix whose output is added to the residual stream
    "position",  # the same, for the vectors of positions
    "ones",
    "zeros",
]


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One line of the table.

    Attributes:
        pattern: regular expression of the end of a parameter's name, from a dot or the beginning.
        part: what ``show``, ``plan`` and the statistics count it as.
        init: its initial values; None: the network has a function of its own for them.
        decays: whether weight decay applies to it.
        split: how tensor-parallel ranks divide it.
        rate: its learning rate in AdamW over that of other parameters.
    """

    pattern: str
    part: str
    init: Init | None
    decays: bool = False
    split: Split = "none"
    rate: float = 1.0

    @property
    def is_norm(self) -> bool:
        return self.part == "norms"

    @property
    def is_hidden_matrix(self) -> bool:
        """Whether it is a matrix between hidden states, which Muon can update."""
        return self.decays and self.split in ("outputs", "inputs")


_MATRIX_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)

ParameterTable = Sequence[ParameterSpec]


def spec_of(name: str, table: ParameterTable) -> ParameterSpec:
    """Return the line of a table for a parameter.

    Raises:
        ConfigError: no line, or more than one, matches the name.
    """
    return _spec_of(name, tuple(table))


@lru_cache(maxsize=1 << 16)
def _spec_of(name: str, table: tuple[ParameterSpec, ...]) -> ParameterSpec:
    found = [spec for spec in table if re.search(rf"(?:^|\.)(?:{spec.pattern})$", name)]
    if len(found) != 1:
        which = ": " + ", ".join(repr(spec.pattern) for spec in found) if found else ""
        raise ConfigError(
            f"The parameter {name!r} matches {len(found)} lines of the table of parameters{which}. "
            "It needs exactly one; add or correct a ParameterSpec."
        )
    return found[0]


def specs_of(network: nn.Module) -> dict[str, ParameterSpec]:
    """Return what each parameter of a network is, by its name.

    For a network without a table this follows from the types of its modules: the weights of linear
    layers and convolutions decay; norms, recognised by the name of their module, biases, embeddings
    (tied to a linear layer or not) and codebooks do not.

    Raises:
        ConfigError: as :func:`spec_of`.
    """
    table: ParameterTable | None = getattr(network, "parameter_table", None)
    if table is None:
        return _specs_by_type(network)
    return {name: spec_of(name, table) for name, _ in network.named_parameters()}


def _specs_by_type(network: nn.Module) -> dict[str, ParameterSpec]:
    matrices = {id(m.weight) for m in network.modules() if isinstance(m, _MATRIX_MODULES)}
    matrices -= {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    specs = {}
    for name, parameter in network.named_parameters():
        module = ".".join(name.split(".")[-2:-1])
        part = "norms" if "norm" in module else "matrices" if id(parameter) in matrices else "rest"
        specs[name] = ParameterSpec(re.escape(name), part, None, decays=part == "matrices")
    return specs


def by_part(
    model: nn.Module, parts: Iterable[str] = ()
) -> Mapping[str, list[tuple[str, nn.Parameter]]]:
    """Return the named parameters of a network by part.

    Args:
        parts: parts that come first, even if they are empty.
    """
    specs = specs_of(model)
    found: dict[str, list[tuple[str, nn.Parameter]]] = {part: [] for part in parts}
    for name, parameter in model.named_parameters():
        found.setdefault(specs[name].part, []).append((name, parameter))
    return found
