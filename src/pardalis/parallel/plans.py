"""Tables of module names: what each part of a decoder is to the ranks that share it.

Names are all that is known here of an architecture. A new kind of layer is a new line.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from pardalis.errors import ConfigError

_BLOCK = r"trunk\.blocks\.\d+"


@dataclass(frozen=True, slots=True)
class Split:
    """How the ranks of a tensor-parallel group share the modules of a name.

    A dimension is cut into equal parts, one a rank; None: each rank has the whole.
    """

    names: str  # a pattern of whole names
    parameters: int | None  # the dimension that is cut
    reads: int | None = None  # of the input
    gives: int | None = None  # of the output; partial sums are added
    knows: bool = False  # the module itself finds its part, in and out


# Megatron's division (arXiv 1909.08053, section 3): heads and hidden units are split, and a pair of
# matrices needs one sum. Embedding and head are split over the vocabulary.
TENSOR_PLAN = (
    Split(r"embedding", parameters=0),
    Split(rf"{_BLOCK}\.(attention|feed_forward)_norm", parameters=None),
    Split(rf"{_BLOCK}\.attention\.[qkv]_proj", parameters=0, gives=-1),
    Split(rf"{_BLOCK}\.attention\.[qk]_norm", parameters=None, knows=True),
    Split(rf"{_BLOCK}\.attention\.o_proj", parameters=1, reads=-1),
    Split(rf"{_BLOCK}\.feed_forward\.(gate|up)_proj", parameters=0, gives=-1),
    Split(rf"{_BLOCK}\.feed_forward\.down_proj", parameters=1, reads=-1),
    Split(r"trunk\.norm", parameters=None),
    Split(r"head", parameters=0),
)

# Modules whose input several split matrices read: its gradient is summed once for all of them.
_SHARED_INPUTS = re.compile(rf"{_BLOCK}\.(attention|feed_forward)")

# What it returns goes out of the model.
_OUTPUT = re.compile(r"trunk")

# What is gathered, computed again and compiled as one.
_UNITS = re.compile(_BLOCK)


@runtime_checkable
class Shape(Protocol):
    """What must divide among tensor-parallel ranks."""

    @property
    def n_heads(self) -> int: ...
    @property
    def n_kv_heads(self) -> int: ...
    @property
    def d_ff(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...


def check_divides(shape: Shape, tensor: int) -> None:
    """Refuse a model that cannot be split evenly.

    Raises:
        ConfigError: ``tensor`` does not divide the heads, the hidden width or the vocabulary.
    """
    for name in ("n_kv_heads", "n_heads", "d_ff", "vocab_size"):
        if (size := getattr(shape, name)) % tensor:
            raise ConfigError(
                f"tensor = {tensor} does not divide {name} = {size}; change tensor in [parallel] "
                "or the shape of the model."
            )


def split_of(module_name: str) -> Split:
    """Return the line of the table that a module with parameters of its own stands in.

    Raises:
        ConfigError: no line, or more than one, is about that name.
    """
    found = [split for split in TENSOR_PLAN if re.fullmatch(split.names, module_name)]
    if len(found) != 1:
        raise ConfigError(
            f"{len(found)} lines of parallel.plans.TENSOR_PLAN are about {module_name!r} and one "
            "is needed; add or correct a line."
        )
    return found[0]


def splits_of(model: nn.Module) -> Iterator[tuple[nn.Module, Split]]:
    """Yield each module that has parameters of its own, with its line of the table."""
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            yield module, split_of(name)


def shared_inputs_of(model: nn.Module) -> list[nn.Module]:
    """Return the modules whose input several split matrices read."""
    return _named(model, _SHARED_INPUTS)


def outputs_of(model: nn.Module) -> list[nn.Module]:
    """Return the modules whose output leaves the model."""
    return _named(model, _OUTPUT)


def units_of(model: nn.Module) -> list[nn.Module]:
    """Return the modules that are each gathered, computed again and compiled as one."""
    return _named(model, _UNITS)


def _named(model: nn.Module, pattern: re.Pattern[str]) -> list[nn.Module]:
    named: Iterable[tuple[str, nn.Module]] = model.named_modules()
    return [module for name, module in named if pattern.fullmatch(name)]
