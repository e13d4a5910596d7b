"""The initial values of all parameters."""

import math

import torch
from torch import Tensor, nn

from pardalis.model.decoder import Decoder
from pardalis.parallel import held_indices, local_part
from pardalis.seeds import derive

# Values that one generator draws, so that a rank draws little beyond its part of a large matrix.
_DRAWN_AT_ONCE = 1 << 20


@torch.no_grad()
def initialise(model: Decoder, seed: int) -> Decoder:
    """Fill all parameters in place and return the model.

    ============================================  =========================================
    embedding, head, projections into a branch    normal, std ``init_std``, truncated at 3 std
    ``o_proj``, ``down_proj`` (residual outputs)  normal, std ``init_std / sqrt(2 n_layers)``
    norms                                         weight 1, bias 0
    ============================================  =========================================

    Each parameter is drawn on the CPU from generators seeded by its name and, after the first
    million values, by the offset in it. Its values therefore depend neither on the order of
    construction, nor on other parameters, the device or the sharding. Parameters on the meta device
    are left out.
    """
    config = model.config
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            continue
        if parameter.ndim == 2 and "_norm." not in name:
            std = config.init_std
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * config.n_layers)
            _draw(parameter, std, derive(seed, "init", name))
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.ones_(parameter)
    return model


def _draw(parameter: Tensor, std: float, seed: int) -> None:
    """Fill a matrix, or this rank's part of it, in chunks of matrix rows."""
    part = local_part(parameter)
    rows, columns = held_indices(parameter, 0), held_indices(parameter, 1)
    n_rows, width = parameter.shape
    step = max(1, _DRAWN_AT_ONCE // width)
    for start in range(0, n_rows, step):
        held = ((rows >= start) & (rows < start + step)).nonzero()
        if not len(held):
            continue
        generator = torch.Generator().manual_seed(derive(seed, start) if start else seed)
        drawn = torch.empty(min(step, n_rows - start), width)
        nn.init.trunc_normal_(drawn, std=std, a=-3 * std, b=3 * std, generator=generator)
        first, last = int(held[0]), int(held[-1])
        part[first : last + 1] = drawn[rows[first : last + 1] - start][:, columns]
