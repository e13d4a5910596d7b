"""Devices by name."""

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
