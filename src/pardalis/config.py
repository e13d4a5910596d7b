"""Recipes: TOML → dotted overrides → frozen dataclasses, strictly.

A config is a frozen dataclass beside the thing it describes, with plain values, paths and other
configs as fields. This module converts the tables of a TOML file to configs. Its errors name the
place, the value found, what was needed and the nearest name that exists.

Where one of several configs may stand, the key ``kind`` of the table chooses among them. The field
is a union of configs, or :class:`Kinds` lists them::

    optimizer: AdamWConfig | MuonConfig
    objective: Annotated[Objective, OBJECTIVES]

Each of them has a field ``kind: Literal["its_name"] = "its_name"``. A table without ``kind`` is of
the first.
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
import logging
import math
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomli_w

from pardalis.errors import ConfigError, PardalisError
from pardalis.files import parse_toml, read_text

Config = TypeVar("Config")

logger = logging.getLogger(__name__)
_warn_once = functools.cache(logger.warning)

_DECIDES = "decides_results"
_MOST_PLACES = 3  # that a message suggests
_LONGEST_SHOWN = 200  # characters of a value in a message


class Kinds(dict[str, type[Any]]):
    """The configs that a field may hold, by ``kind``; :meth:`add` enters one more.

    Raises:
        ConfigError: a config has no ``kind`` with a default, or one that another config has.
    """

    __hash__ = object.__hash__  # type: ignore[assignment]  # as metadata of an annotation

    def __init__(self, *members: type[Any]) -> None:
        super().__init__()
        for member in members:
            self.add(member)

    def add(self, member: type[Config]) -> type[Config]:
        """Enter a config and return it, so that this can decorate its class."""
        kind = {field.name: field.default for field in dataclasses.fields(member)}.get("kind")  # type: ignore[arg-type]
        if not isinstance(kind, str):
            raise ConfigError(
                f"{member.__name__} needs a field `kind` with its name as the default, such as "
                'kind: Literal["name"] = "name".'
            )
        if self.get(kind, member) is not member:
            raise ConfigError(
                f"{member.__name__} has the kind {kind!r}, as {self[kind].__name__} has; kinds "
                "must differ."
            )
        self[kind] = member
        return member


class OneOf:
    """Says that a field holds a key of a table: ``reader: Annotated[str, OneOf(READERS)]``."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self.table = table


def load(
    cls: type[Config],
    path: Path,
    overrides: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
    upgrade: Callable[[dict[str, Any]], Iterable[str]] = lambda values: (),
) -> Config:
    """Read a recipe.

    Args:
        cls: the dataclass that the whole file describes.
        renamed: dotted keys of earlier versions and what they are called now. They are read under
            their new name, with a warning.
        upgrade: what else earlier versions wrote in another form, changed in place; comes first,
            and returns what to warn of.
        overrides: ``"training_loop.steps=20"``; the value is TOML, or a bare string. A number in
            the path picks an item of a list: ``"sources.0.weight=2"``.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown or missing, a value has the
            wrong type or is out of range.
    """
    try:
        values = parse_toml(read_text(path))
    except FileNotFoundError:
        raise ConfigError(f"No recipe at {path}; give the path of a TOML file.") from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); give the path of a TOML file."
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not a TOML file that can be read: {error}.") from error
    renamed = renamed or {}
    if found := [*upgrade(values), *rename(values, renamed, str(path))]:
        _warn_once(f"{path} has names of an earlier version: {'; '.join(found)}.")
    for override in overrides:
        _apply(values, _renamed(override, renamed))
    try:
        return from_dict(cls, values)
    except _UnknownKeyError as error:
        if error.is_near or not (places := sorted(_places(cls, error.key))):
            raise
        shown = " or ".join(repr(f"{place}{error.key}") for place in places[:_MOST_PLACES])
        raise ConfigError(f"Unknown key {error.path!r}; did you mean {shown}?") from None


class _UnknownKeyError(ConfigError):
    """A key that a table does not have, at a dotted path."""

    def __init__(self, path: str, key: str, known: Iterable[str]) -> None:
        self.path, self.key = path, key
        near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
        self.is_near = bool(difflib.get_close_matches(key, near, cutoff=0.8))
        hint = (
            f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(sorted(known))}."
        )
        super().__init__(f"Unknown key {path!r}; {hint}")


def _places(hint: Any, key: str, where: str = "") -> set[str]:
    """Return the tables that have a key, each with a dot after it; those of lists are left out."""
    found = {where} if dataclasses.is_dataclass(hint) and key in _hints(hint) else set()
    members = _hints(hint).items() if dataclasses.is_dataclass(hint) else ()
    for name, of_member in members:
        for each in _configs_in(of_member):
            if each is not hint:
                found |= _places(each, key, f"{where}{name}.")
    return found


def _configs_in(hint: Any) -> Iterable[Any]:
    """Return the configs that may stand in a field that holds one."""
    if dataclasses.is_dataclass(hint):
        return [hint]
    if typing.get_origin(hint) is Annotated:
        kinds = next((each for each in typing.get_args(hint)[1:] if isinstance(each, Kinds)), None)
        return _configs_in(typing.get_args(hint)[0]) if kinds is None else kinds.values()
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [config for each in typing.get_args(hint) for config in _configs_in(each)]
    return []


def from_dict(cls: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """Build a config from plain values; raises ConfigError as :func:`load` does.

    ``where`` is the place of the values with a dot after it, such as ``"training."``. Messages of
    a config's ``__post_init__`` begin with the bare name of the field, or are a sentence; the place
    is prepended here.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = _hints(cls)
    for key in values:
        if key not in fields:
            raise _UnknownKeyError(where + key, key, fields)
    for name, field in fields.items():
        has_no_default = field.default is field.default_factory is dataclasses.MISSING
        if name not in values and has_no_default:
            raise ConfigError(f"{where}{name} is missing; it has no default, so set it.")
    built = {key: _convert(hints[key], value, where + key) for key, value in values.items()}
    try:
        return cls(**built)
    except PardalisError as error:
        # A message that is a whole sentence, of several fields, does not continue the place.
        is_sentence = bool(where) and str(error)[:1].isupper()
        raise ConfigError(f"{where[:-1]}: {error}" if is_sentence else f"{where}{error}") from error


def check_types(config: Any) -> None:
    """Check the values of a config that was built in Python; raises ConfigError."""
    for name, hint in _hints(type(config)).items():
        _convert(hint, getattr(config, name), name)


def check_at_least(config: Any, **bounds: int) -> None:
    """Raise ConfigError unless each field is at least its bound, or None."""
    for name, bound in bounds.items():
        if (value := getattr(config, name)) is not None and not value >= bound:
            needed = f"at least {bound}" if bound else "0 or more"
            raise ConfigError(f"{name} must be {needed}, got {value}.")


def check_at_most(config: Any, **bounds: int) -> None:
    """Raise ConfigError unless each field is at most its bound, or None.

    Such a bound is far above all use. It keeps a damaged or hostile file from asking for endless
    time or memory.
    """
    for name, bound in bounds.items():
        if (value := getattr(config, name)) is not None and not value <= bound:
            raise ConfigError(f"{name} must be at most {bound}, got {value}.")


def check_finite(config: Any, *names: str) -> None:
    """Raise ConfigError unless each field is a finite number, or None."""
    for name in names:
        if (value := getattr(config, name)) is not None and not math.isfinite(value):
            raise ConfigError(f"{name} must be a finite number, got {value}.")


def check_above(config: Any, **bounds: int) -> None:
    """Raise ConfigError unless each field is above its bound, or None."""
    for name, bound in bounds.items():
        if (value := getattr(config, name)) is not None and not value > bound:
            raise ConfigError(f"{name} must be above {bound}, got {value}.")


def check_fractions(config: Any, *names: str, below_one: bool = False) -> None:
    """Raise ConfigError unless each field lies in [0, 1], or in [0, 1) if ``below_one``."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1 or (below_one and value == 1):
            raise ConfigError(f"{name} must lie in [0, 1{')' if below_one else ']'}, got {value}.")


def shown(value: Any) -> str:
    """Return a value of a file for a message, cut if it is long."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers of thousands of digits
        return f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."


def to_dict(config: Any) -> dict[str, Any]:
    """Return the plain values of a config, defaults included."""
    return {
        field.name: _plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if getattr(config, field.name) is not None  # TOML has no null: absent means None
    }


def not_deciding(default: Any = dataclasses.MISSING) -> Any:
    """Return a field that changes speed, memory or what is reported, but no result.

    Results are the same up to floating-point rounding, so a run may continue with another value.
    Use it in place of the default: ``batch_documents: int = not_deciding(64)``.
    """
    return dataclasses.field(default=default, metadata={_DECIDES: False})


def deciding(config: Any) -> Any:
    """Return the plain values that decide results: all but the :func:`not_deciding` fields."""
    if dataclasses.is_dataclass(config):
        values = {
            field.name: deciding(getattr(config, field.name))
            for field in dataclasses.fields(config)
            if field.metadata.get(_DECIDES, True)
        }
        return {name: value for name, value in values.items() if value is not None}
    if isinstance(config, Mapping):
        return {name: deciding(value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return [deciding(item) for item in config]
    return str(config) if isinstance(config, Path) else config


def completed(before: Any, config: Any) -> Any:
    """Return plain values that :func:`deciding` gave, with the fields that were added since.

    A field that an earlier version did not know has its default. It stays absent where that would
    be a guess: in a field that may be None, which is stored as absent too, and in the ``kind`` of a
    config that may have been of another kind.

    Args:
        before: values of an earlier version.
        config: the config or the mapping that has their place now.
    """
    if dataclasses.is_dataclass(config) and isinstance(before, Mapping):
        found = dict(before)
        for field in dataclasses.fields(config):
            if field.name in before:
                found[field.name] = completed(before[field.name], getattr(config, field.name))
            elif field.metadata.get(_DECIDES, True) and field.name != "kind":
                default = deciding(_default(field))
                may_be_none = type(None) in typing.get_args(_hints(type(config))[field.name])
                if default is not dataclasses.MISSING and not may_be_none:
                    found[field.name] = default
        return found
    if isinstance(config, Mapping) and isinstance(before, Mapping):
        return {name: completed(value, config.get(name)) for name, value in before.items()}
    if isinstance(config, list | tuple) and isinstance(before, list):
        pairs = itertools.zip_longest(before, config[: len(before)])
        return [completed(value, item) for value, item in pairs]
    return before


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values with others laid over them, table by table.

    Values of a table whose ``kind`` changes are left out: they belong to the other kind.
    """
    result = dict(base)
    for name, value in changes.items():
        below = result.get(name)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            same = value.get("kind", below.get("kind")) == below.get("kind")
            result[name] = merged(below, value) if same else dict(value)
        else:
            result[name] = value
    return result


def from_dotted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested tables for values by dotted key."""
    tables: dict[str, Any] = {}
    for name, value in values.items():
        *parents, last = name.split(".")
        table = tables
        for parent in parents:
            table = table.setdefault(parent, {})
        table[last] = value
    return tables


def rename(values: dict[str, Any], renamed: Mapping[str, str], where: str = "") -> list[str]:
    """Move the values of old dotted keys to their new names, in place; return what was moved.

    Raises:
        ConfigError: a value stands under both names.
    """
    found = []
    for old, new in renamed.items():
        parent, _, last = old.rpartition(".")
        table = table_at(values, parent)
        if last not in table:
            continue
        value = table.pop(last)
        *parents, last = new.split(".")
        table = values
        for name in parents:
            table = table.setdefault(name, {})
        if isinstance(value, dict) and isinstance(table.get(last), dict):
            table[last] |= value
        elif last in table:
            raise ConfigError(f"{where} has {old} and {new}, which are the same; leave {old} out.")
        else:
            table[last] = value
        found.append(f"{old} is now {new}")
    return found


def located(config: Any, folder: Path, stays: Callable[[Path], bool] = lambda path: False) -> Any:
    """Return a config whose relative paths, at any depth, begin at a folder.

    Args:
        stays: whether a path is left as it is.
    """
    return replaced_paths(config, lambda path: path if stays(path) else folder / path)


def replaced_paths(config: Any, replacement: Callable[[Path], Path]) -> Any:
    """Return a config with every path, at any depth, replaced by what a function makes of it."""
    if isinstance(config, Path):
        return replacement(config)
    if isinstance(config, tuple):
        return tuple(replaced_paths(item, replacement) for item in config)
    if isinstance(config, dict):
        return {name: replaced_paths(value, replacement) for name, value in config.items()}
    if not dataclasses.is_dataclass(config):
        return config
    changes = {
        field.name: replaced_paths(getattr(config, field.name), replacement)
        for field in dataclasses.fields(config)
    }
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def to_toml(config: Any) -> str:
    """Write a resolved config as TOML; :func:`load` reads it back to an equal config."""
    return tomli_w.dumps(to_dict(config))


def fingerprint(*configs: Any) -> str:
    """Return a short hash that changes when any value of any of the configs (or strings) does."""
    plain = [to_dict(c) if dataclasses.is_dataclass(c) else c for c in configs]
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def _hints(cls: Any) -> dict[str, Any]:
    return _cached_hints(cls)


@functools.cache
def _cached_hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        kinds = next((each for each in arguments[1:] if isinstance(each, Kinds)), None)
        if kinds is not None:
            return _of_kind(kinds, value, where)
        names = next((each.table for each in arguments[1:] if isinstance(each, OneOf)), None)
        if names is not None:
            return _convert(Literal[tuple(names)], value, where)
        return _convert(arguments[0], value, where)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(
                f"{where} must be one of {', '.join(map(repr, arguments))}, got {shown(value)}."
            )
        return value
    if dataclasses.is_dataclass(hint) or origin is dict:
        return _convert_table(hint, value, where)
    if origin is tuple:
        return _convert_list(arguments, value, where)
    return _convert_plain(hint, value, where)


def _convert_union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    members = [a for a in arguments if a is not type(None)]
    if value is None and len(members) < len(arguments):
        return None
    return (
        _convert(members[0], value, where)
        if len(members) == 1
        else _of_kind(Kinds(*members), value, where)
    )


def _convert_table(hint: Any, value: Any, where: str) -> Any:
    is_config = dataclasses.is_dataclass(hint)
    if is_config and isinstance(value, hint):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a table, got {shown(value)}.")
    if is_config:
        return from_dict(hint, value, f"{where}.")
    of_values = typing.get_args(hint)[1]
    return {name: _convert(of_values, each, f"{where}.{name}") for name, each in value.items()}


def _convert_plain(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if hint is Path:
        if not isinstance(value, str | Path) or not str(value):
            raise ConfigError(f"{where} must be a path, got {shown(value)}.")
        return Path(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _convert_float(value, where)
    if type(value) is not hint:
        raise ConfigError(f"{where} must be of type {hint.__name__}, got {shown(value)}.")
    if hint is int and not -(2**63) <= value < 2**64:
        raise ConfigError(f"{where} must be an integer of 64 bits, got {shown(value)}.")
    return value


def _of_kind(kinds: Kinds, value: Any, where: str) -> Any:
    """Convert a table to the config of its kind."""
    if isinstance(value, tuple(kinds.values())):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a table, got {shown(value)}.")
    kind = value.get("kind", next(iter(kinds)))
    if not isinstance(kind, str) or kind not in kinds:
        near = difflib.get_close_matches(str(kind), kinds, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(
            f"{where}.kind must be one of {', '.join(map(repr, kinds))}, got {shown(kind)}{hint}"
        )
    for key in value:
        owners = [k for k, each in kinds.items() if key in _hints(each)]
        if kind not in owners and owners:
            raise ConfigError(
                f"Unknown key {where + '.' + key!r} for kind {kind!r}; it is a key of "
                f"{' and '.join(map(repr, owners))}."
            )
    return from_dict(kinds[kind], value, f"{where}.")


def _convert_float(value: Any, where: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        raise ConfigError(f"{where} is too large for a floating-point number.") from None
    if math.isnan(number):
        raise ConfigError(f"{where} must be a number, got nan.")
    return number


def _convert_list(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        hint = f"; write [[{where}]] in TOML" if isinstance(value, Mapping) else ""
        raise ConfigError(f"{where} must be a list, got {shown(value)}{hint}.")
    if arguments[-1] is not Ellipsis and len(arguments) != len(value):
        raise ConfigError(f"{where} must have {len(arguments)} items, got {len(value)}.")
    return tuple(_convert(arguments[0], item, f"{where}.{i}") for i, item in enumerate(value))


def table_at(values: dict[str, Any], place: str) -> dict[str, Any]:
    """Return the table at a dotted key; an empty one if there is none."""
    for name in filter(None, place.split(".")):
        inner = values.get(name)
        values = inner if isinstance(inner, dict) else {}
    return values


def _renamed(override: str, renamed: Mapping[str, str]) -> str:
    """Return an override of an old key as one of the new key."""
    for old, new in renamed.items():
        if override.startswith((f"{old}=", f"{old}.")):
            return new + override[len(old) :]
    return override


def _apply(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"An override has the form key.key=value, got {override!r}.")
    *parents, last = path.strip().split(".")
    table: Any = values
    for depth, key in enumerate(parents):
        table = _step_into(table, key, ".".join(parents[: depth + 1]))
    value: Any = text.strip()
    with contextlib.suppress(tomllib.TOMLDecodeError):
        value = tomllib.loads(f"value = {value}")["value"]
    if isinstance(table, list):
        table[_list_index(table, last, path)] = value
    else:
        table[last] = value


def _step_into(table: Any, key: str, path: str) -> Any:
    if isinstance(table, list):
        return table[_list_index(table, key, path)]
    inner = table.setdefault(key, {})
    if not isinstance(inner, dict | list):
        raise ConfigError(
            f"{path} is the value {inner!r}, not a table; an override cannot enter it."
        )
    return inner


def _list_index(items: list[Any], key: str, path: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise ConfigError(f"{path}: expected an index below {len(items)}, got {key!r}.")
    return int(key)
