"""Initialisation of an image tokenizer, a function of a seed and of each parameter's name."""

import math

import torch
from torch import nn

from pardalis.seeds import derive
from pardalis.vq.tokenizer import ImageTokenizer


@torch.no_grad()
def initialise(tokenizer: ImageTokenizer, seed: int) -> ImageTokenizer:
    """Initialise all parameters in place and return the tokenizer.

    =========================================  ===================================================
    convolutions                               uniform, variance 1 / fan-in; bias 0
    last convolution of a residual branch      0
    normalisations                             weight 1, bias 0
    linear layers of the quantizer             as convolutions
    codebook of kinds vq, ema, l2              U(-1/n, 1/n), as VQ-GAN
    codebook of simvq; of ibq                  N(0, 1/width); N(0, 1), as released
    =========================================  ===================================================

    Each parameter is sampled on the CPU from a generator keyed by its name, so its values depend
    neither on the order of construction nor on the device.
    """
    for name, module in tokenizer.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = math.sqrt(3 / module.weight[0].numel())
            ends_branch = name.endswith((".conv2", ".proj_out"))
            _uniform(module.weight, 0.0 if ends_branch else bound, derive(seed, "init", name))
            assert module.bias is not None, "every layer of the network has a bias"
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            _codebook(module.weight, tokenizer.config.quantizer.kind, derive(seed, "init", name))
    return tokenizer


def _codebook(codebook: torch.Tensor, kind: str, seed: int) -> None:
    n_codes, width = codebook.shape
    if kind not in ("simvq", "ibq"):
        return _uniform(codebook, 1 / n_codes, seed)
    generator = torch.Generator().manual_seed(seed)
    std = width**-0.5 if kind == "simvq" else 1.0
    codebook.copy_(torch.randn(codebook.shape, generator=generator) * std)


def _uniform(parameter: torch.Tensor, bound: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
