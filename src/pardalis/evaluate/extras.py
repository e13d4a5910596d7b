"""What to say when an optional package is missing. The scoring net, jinja2 and matplotlib come with
the extra ``demo``; they are imported where they are used, so the rest works without them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pardalis.errors import ConfigError


@contextmanager
def demo_extra(purpose: str) -> Iterator[None]:
    """Import packages of the extra ``demo`` inside this block.

    Raises:
        ConfigError: a package is missing; the message names it and the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{purpose} needs the package '{error.name}', which is not installed; "
            "install it with: pip install 'pardalis[demo]'"
        ) from error
