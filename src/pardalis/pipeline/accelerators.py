"""Devices by name: how much they hold and how fast they multiply, for plans."""

import os
import time
from dataclasses import dataclass

import torch

from pardalis.errors import ConfigError

_GIB = 2**30
_CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A device as a plan sees it."""

    name: str
    flops: float  # dense products a second, in FLOP/s; of bfloat16 on a GPU, of float32 on a CPU
    memory: int  # bytes


# Dense bfloat16 rates of the makers' datasheets (half of those "with sparsity"), SXM or OAM form
# where there are several: nvidia.com/en-us/data-center (a100, h100, h200, l40s, dgx-b200),
# NVIDIA's Ada architecture paper (rtx4090), amd.com/en/products/accelerators/instinct (mi300x).
# Memory is what PyTorch finds there, which is not the round figure of the datasheet.
_GPUS = (
    Accelerator("a100", 312e12, int(79.1 * _GIB)),
    Accelerator("h100", 989.4e12, int(79.1 * _GIB)),
    Accelerator("h200", 989.4e12, int(139.8 * _GIB)),
    Accelerator("b200", 2250e12, int(178.3 * _GIB)),
    Accelerator("l40s", 362.05e12, int(44.4 * _GIB)),
    Accelerator("rtx4090", 165.2e12, int(23.5 * _GIB)),
    Accelerator("mi300x", 1307.4e12, int(191.5 * _GIB)),
)
DEVICES = (*(gpu.name for gpu in _GPUS), _CPU)


def find_accelerator(name: str) -> Accelerator:
    """Return a GPU from the table, or what this machine's processor is measured to be.

    Raises:
        ConfigError: nothing is known of that name.
    """
    if name == _CPU:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Accelerator(_CPU, _product_rate(), memory)
    for gpu in _GPUS:
        if gpu.name == name:
            return gpu
    raise ConfigError(f"No device {name!r} is known; choose one of {', '.join(DEVICES)}.")


def _product_rate(side: int = 1024, repeats: int = 5) -> float:
    """Return the best rate of a product of two square matrices in float32, in FLOP/s."""
    a = torch.ones(side, side)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
