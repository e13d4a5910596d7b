"""The device that a network runs on, by name."""

import torch

from pardalis.errors import ConfigError


def find_device(name: str | torch.device) -> torch.device:
    """Return the device of a name such as ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        ConfigError: there is no such device here.
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
