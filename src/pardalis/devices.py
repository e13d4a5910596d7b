"""Devices by name, and how many processors there are."""

import os

import torch

from pardalis.errors import ConfigError


def find_device(name: str | torch.device) -> torch.device:
    """Return the device of a name such as ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        ConfigError: the device does not exist or cannot be used.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        available = "cuda" if torch.cuda.is_available() else "cpu only"
        raise ConfigError(
            f"No device {str(name)!r} can be used here (available: {available}); choose another."
        ) from error
    return device


def n_processors() -> int:
    """Return how many processors this process may use; where the system cannot say, all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
