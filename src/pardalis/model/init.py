"""The initial values of all parameters."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from pardalis.model.language_model import LanguageModel
from pardalis.parallel import held_indices, local_part
from pardalis.parameters import ParameterSpec, specs_of
from pardalis.seeds import derive

# Values that one generator draws, so that a rank draws little beyond its part of a large matrix.
_DRAWN_AT_ONCE = 1 << 20


@torch.no_grad()
def initialise(model: LanguageModel, seed: int) -> LanguageModel:
    """Fill all parameters in place, as the model's table of parameters says; return the model.

    ``normal`` is N(0, ``init.std``), truncated at 3 std. ``output`` is that of a matrix at the end
    of a branch, whose std is divided by sqrt(2 n_layers), unless ``init.outputs`` is ``same``; if
    that is ``zero``, so is the matrix. ``position`` has the std ``init.positions``, if given.

    Each parameter is drawn on the CPU from generators seeded by its name and, after the first
    million values, by the offset in it. Its values therefore depend neither on the order of
    construction, nor on other parameters, the device or the sharding. Parameters on the meta device
    are left out.

    Raises:
        ConfigError: a parameter has no line in the table, or two.
    """
    specs = specs_of(model)
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:
            initial_values(parameter, name, specs[name], model.config, seed)
    return model


@torch.no_grad()
def initial_values(
    parameter: Tensor, name: str, spec: ParameterSpec, config: Any, seed: int
) -> Tensor:
    """Fill one parameter of a model as :func:`initialise` does, in place; return it."""
    outputs = config.init.outputs if spec.init == "output" else "same"
    if spec.init == "zeros" or outputs == "zero":
        nn.init.zeros_(parameter)
    elif spec.init == "ones":
        nn.init.ones_(parameter)
    else:
        std = config.init.std
        if spec.init == "position" and config.init.positions is not None:
            std = config.init.positions
        if outputs == "by_depth":
            std /= math.sqrt(2 * config.n_layers)
        _draw(parameter, std, derive(seed, "init", name))
    return parameter


def _draw(parameter: Tensor, std: float, seed: int) -> None:
    """Fill a parameter, or this rank's part of it, in chunks of its first dimension."""
    part, (n_rows, *others) = local_part(parameter), parameter.shape
    rows = held_indices(parameter, 0)
    step = max(1, _DRAWN_AT_ONCE // math.prod(others))
    for start in range(0, n_rows, step):
        held = ((rows >= start) & (rows < start + step)).nonzero()
        if not len(held):
            continue
        generator = torch.Generator().manual_seed(derive(seed, start) if start else seed)
        drawn = torch.empty(min(step, n_rows - start), *others)
        nn.init.trunc_normal_(drawn, std=std, a=-3 * std, b=3 * std, generator=generator)
        first, last = int(held[0]), int(held[-1])
        drawn = drawn[rows[first : last + 1] - start]
        for dimension in range(1, parameter.ndim):
            drawn = drawn.index_select(dimension, held_indices(parameter, dimension))
        part[first : last + 1] = drawn
