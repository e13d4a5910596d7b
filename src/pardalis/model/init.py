"""The initial values of every parameter, in one function."""

import math

import torch
from torch import nn

from pardalis.model.decoder import Decoder
from pardalis.seeds import derive


@torch.no_grad()
def initialise(model: Decoder, seed: int) -> Decoder:
    """Fill all parameters in place and return the model.

    ============================================  =========================================
    embedding, head, projections into a branch    normal, std ``init_std``, cut at 3 std
    ``o_proj``, ``down_proj`` (residual outputs)  normal, std ``init_std / sqrt(2 n_layers)``
    norms                                         weight 1, bias 0
    ============================================  =========================================

    Each parameter is drawn on the CPU from a generator keyed by its name, so neither the order of
    construction, nor the presence of other parameters, nor the device changes it. On the meta
    device there is nothing to fill.
    """
    config = model.config
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            continue
        if parameter.ndim == 2 and "_norm." not in name:
            std = config.init_std
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * config.n_layers)
            generator = torch.Generator().manual_seed(derive(seed, "init", name))
            drawn = torch.empty(parameter.shape)
            nn.init.trunc_normal_(drawn, std=std, a=-3 * std, b=3 * std, generator=generator)
            parameter.copy_(drawn)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.ones_(parameter)
    return model
