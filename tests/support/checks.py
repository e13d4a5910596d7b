"""Checks of dtypes, shapes and types while tests run, light enough for every function.

jaxtyping's own wrapper binds the arguments of each call to the signature and checks them twice,
which took a third of the suite's time.
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

_typechecker = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))
_jaxtyped = jaxtyping.jaxtyped  # before it is replaced


def install() -> None:
    """Check all calls of the package's annotated functions; it must not have been imported."""
    jaxtyping.jaxtyped = _decorator
    jaxtyping.install_import_hook("pardalis", "beartype.beartype")


def _decorator(*, typechecker: object) -> Callable[[Any], Any]:
    return checked


def checked(target: Any) -> Any:
    """Return a function that checks its arguments and result; of a dataclass, check its fields.

    A letter of a shape has one value in all arguments and the result of a call. What is wrong
    raises jaxtyping's TypeCheckError, which is a TypeError.
    """
    if inspect.isclass(target):
        if dataclasses.is_dataclass(target) and "__init__" in vars(target):
            target.__init__ = checked(target.__init__)
        return target
    hints = {name: _resolved(hint, target) for name, hint in target.__annotations__.items()}
    if not hints:
        return target
    written, target.__annotations__ = target.__annotations__, hints
    inner = _typechecker(target)
    target.__annotations__ = inner.__annotations__ = written
    named = " ".join(repr(hint) for hint in hints.values())
    if "jaxtyping." not in named:
        return inner
    if "{" in named:  # a dimension that is the value of an argument
        return _jaxtyped(target, typechecker=_typechecker)

    @functools.wraps(target)
    def in_one_context(*args: Any, **kwargs: Any) -> Any:
        with _jaxtyped("context"):
            return inner(*args, **kwargs)

    return in_one_context


def _resolved(hint: Any, function: Any) -> Any:
    """Return a hint without strings; Any for one that cannot be evaluated (yet)."""

    def one(value: hint) -> None: ...

    try:
        return typing.get_type_hints(one, function.__globals__, include_extras=True)["value"]
    except Exception:  # whatever evaluating it raises
        return Any
