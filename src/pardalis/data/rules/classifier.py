"""Rule ``classifier``: documents that a function of the user does not want.

A recipe may come from anybody, and so may a run or a bundle with a recipe in it. So a recipe alone
runs no code: its function is called only if the user of this machine has allowed it by its name, in
the environment variable ``PARDALIS_CLASSIFIERS`` or by :func:`allow_classifier`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pardalis.config import shown
from pardalis.data.rules.rule import Removal
from pardalis.documents import Document
from pardalis.errors import ConfigError
from pardalis.imports import import_named

ALLOWED = "PARDALIS_CLASSIFIERS"  # names of functions, with commas between them

_allowed: set[str] = set()


def allow_classifier(function: str) -> None:
    """Allow this process to call a function that a recipe names as ``module:function``."""
    _allowed.add(function)


def allowed_classifiers() -> set[str]:
    """Return the names of the functions that this process may call."""
    environment = (name.strip() for name in os.environ.get(ALLOWED, "").split(","))
    return _allowed.union(environment)


@dataclass(frozen=True, kw_only=True, slots=True)
class Classifier:
    """Removes the documents for which a function returns False or a reason.

    The function gets a :class:`~pardalis.documents.Document`, and returns True or None to keep it,
    False to remove it, or a sentence that says why. It is called once for each document, in the
    order of the source, and must return the same for the same document. A document at which it
    fails is removed.
    """

    kind: Literal["classifier"] = "classifier"
    function: str  # "module:function"; the module may be the path of a Python file

    def __post_init__(self) -> None:
        module, colon, name = self.function.rpartition(":")
        if not (module and colon and name):
            raise ConfigError(
                f"function must read module:function, got {shown(self.function)}; name a function "
                "that takes a document."
            )

    def begin(self) -> "_Asked":
        if self.function not in allowed_classifiers():
            raise ConfigError(
                f"The rule 'classifier' calls {shown(self.function)}, and a recipe alone runs no "
                f"code. If you trust that function, set the environment variable {ALLOWED} to "
                f"{shown(self.function)}, or call `allow_classifier` with it."
            )
        module, _, name = self.function.rpartition(":")
        function = getattr(import_named(module), name, None)
        if not callable(function):
            raise ConfigError(f"The module {module} has no function {name!r}.")
        return _Asked(self.function, function)


class _Asked:
    def __init__(self, name: str, function: Callable[[Document], Any]) -> None:
        self._name, self._function = name, function

    def removal(self, document: Document) -> Removal | None:
        try:
            answer = self._function(document)
        except Exception as error:
            return Removal(f"{self._name} fails at it: {type(error).__name__}: {error}.")
        if answer is None or answer is True:
            return None
        return Removal(
            answer if isinstance(answer, str) and answer else f"{self._name} removes it."
        )
