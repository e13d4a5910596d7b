"""The first weights of an image tokenizer, as a function of a seed and of each parameter's name."""

import math

import torch
from torch import nn

from pardalis.seeds import derive
from pardalis.vq.config import QuantizerKind
from pardalis.vq.tokenizer import ImageTokenizer


@torch.no_grad()
def initialise(tokenizer: ImageTokenizer, seed: int) -> ImageTokenizer:
    """Fill all parameters in place and return the tokenizer.

    =========================================  ===================================================
    convolutions                               uniform, variance 1 / fan-in; bias 0
    last convolution of a residual branch      0: the net begins as its shortcuts, nearly linear
    normalisations                             weight 1, bias 0
    linear maps of the quantizer               as convolutions
    codebook of kinds vq, ema, l2              U(-1/n, 1/n), as the original
    codebook of simvq; of ibq                  N(0, 1/width); N(0, 1), as their authors
    =========================================  ===================================================

    Each parameter is drawn on the CPU from a generator keyed by its name, so neither the order of
    construction nor the device changes it.
    """
    for name, module in tokenizer.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = math.sqrt(3 / module.weight[0].numel())
            ends_branch = name.endswith((".conv2", ".proj_out"))
            _uniform(module.weight, 0.0 if ends_branch else bound, derive(seed, "init", name))
            assert module.bias is not None, "every linear map of the layout has a bias"
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            _codebook(module.weight, tokenizer.config.quantizer.kind, derive(seed, "init", name))
    return tokenizer


def _codebook(codebook: torch.Tensor, kind: QuantizerKind, seed: int) -> None:
    n_codes, width = codebook.shape
    if kind not in ("simvq", "ibq"):
        return _uniform(codebook, 1 / n_codes, seed)
    generator = torch.Generator().manual_seed(seed)
    std = width**-0.5 if kind == "simvq" else 1.0
    codebook.copy_(torch.randn(codebook.shape, generator=generator) * std)


def _uniform(parameter: torch.Tensor, bound: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
