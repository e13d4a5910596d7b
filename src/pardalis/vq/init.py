"""The first weights of an image tokenizer, as a function of a seed and of each parameter's name."""

import math

import torch
from torch import nn

from pardalis.seeds import derive
from pardalis.vq.tokenizer import ImageTokenizer


@torch.no_grad()
def initialise(tokenizer: ImageTokenizer, seed: int) -> ImageTokenizer:
    """Fill all parameters in place and return the tokenizer.

    =========================================  ===================================================
    convolutions                               uniform, variance 1 / fan-in; bias 0
    last convolution of a residual branch      0: the net begins as its shortcuts, nearly linear
    normalisations                             weight 1, bias 0
    codebook                                   U(-1/n, 1/n), as the original
    =========================================  ===================================================

    Each parameter is drawn on the CPU from a generator keyed by its name, so neither the order of
    construction nor the device changes it.
    """
    for name, module in tokenizer.named_modules():
        if isinstance(module, nn.Conv2d):
            bound = math.sqrt(3 / module.weight[0].numel())
            ends_branch = name.endswith((".conv2", ".proj_out"))
            _uniform(module.weight, 0.0 if ends_branch else bound, derive(seed, "init", name))
            assert module.bias is not None, "every convolution of the layout has a bias"
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            _uniform(module.weight, 1 / module.num_embeddings, derive(seed, "init", name))
    return tokenizer


def _uniform(parameter: torch.Tensor, bound: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
