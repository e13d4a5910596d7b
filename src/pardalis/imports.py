"""Importing modules of others by the names that a user gives."""

import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from pardalis.errors import ConfigError, PardalisError


def import_named(name: str) -> ModuleType:
    """Import a module that is installed, or a Python file by its path.

    Raises:
        ConfigError: there is none, it fails when it is imported, or another module has its name.
    """
    path = Path(name)
    if path.suffix == ".py":
        if not path.is_file():
            raise ConfigError(f"There is no file {name} to import.")
        sys.path.insert(0, str(path.resolve().parent))
    try:
        module = importlib.import_module(path.stem if path.suffix == ".py" else name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error}; give a module that is installed, or the path of a Python file."
        ) from error
    except PardalisError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"{name} cannot be imported: {type(error).__name__}: {error} "
            f"({last.filename}, line {last.lineno})."
        ) from error
    loaded = getattr(module, "__file__", None)
    if path.suffix == ".py" and Path(loaded or "").resolve() != path.resolve():
        raise ConfigError(
            f"{name} cannot be imported: a module {path.stem} is loaded already, from "
            f"{loaded or 'Python itself'}; rename the file."
        )
    return module


@contextmanager
def optional_package(purpose: str, extra: str) -> Iterator[None]:
    """Import packages of an extra inside this block.

    Raises:
        ConfigError: a package is missing; the message names it and the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{purpose} needs the package '{error.name}', which is not installed; "
            f"install it with: pip install 'pardalis[{extra}]'"
        ) from error
