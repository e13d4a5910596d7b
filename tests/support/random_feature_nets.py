"""Random weights for networks whose published weights the tests do not have."""

import torch
from torch import Tensor

from pardalis.feature_nets.net import Network


def random_tensors(network: type[Network], seed: int = 0) -> dict[str, Tensor]:
    """Return weights for a network whose activations neither vanish nor explode."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in network().state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            continue  # older files lack them
        if len(shape) == 4:
            tensors[name] = values * (2 / shape[1:].numel()) ** 0.5
        elif name.endswith(("running_var", "weight")):
            tensors[name] = 1 + values.abs() / 10
        else:
            tensors[name] = values / 10
    return tensors


def random_pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
