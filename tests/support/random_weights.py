"""Random weights of an image tokenizer that keep the variance of activations."""

import torch
from torch import nn


@torch.no_grad()
def randomised(module: nn.Module) -> nn.Module:
    """Fill a module and return it: convolutions keep variance, norms are not the identity."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
        if parameter.ndim == 4:
            parameter.div_(parameter[0].numel() ** 0.5)
        elif parameter.ndim == 1:
            parameter.mul_(0.3).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return module.eval()
