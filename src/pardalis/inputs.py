"""What a result was made from: plain values by name, kept beside it and compared later."""

import re
from collections.abc import Mapping
from typing import Any

from pardalis import config as configs
from pardalis.files import plain

_SHOWN = 3
_HASH = re.compile(r"[0-9a-f]{64}")  # of the content of a file or a source


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name the values that differ: ``training.seed was 0 and is 1``; empty when none does.

    Of a hash it says only that its content changed. A field of a config that an earlier version did
    not know had its default.

    Args:
        before: what :func:`pardalis.config.deciding` gave, as read from a JSON file.
        now: configs and plain values.
    """
    old, new = _flat(configs.completed(before, now)), _flat(plain(configs.deciding(now)))
    names = [name for name in sorted(old | new) if old.get(name, _ABSENT) != new.get(name, _ABSENT)]
    found = [
        _change(name, old.get(name, _ABSENT), new.get(name, _ABSENT)) for name in names[:_SHOWN]
    ]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return "; ".join(found) + more


def _change(name: str, before: Any, now: Any) -> str:
    match before, now:
        case [kind, old], [other, new] if kind == other and _is_hash(old) and _is_hash(new):
            return f"the content of {name} changed"  # a source: its reader, and its documents
        case old, new if _is_hash(old) and _is_hash(new):
            return f"the content of {name} changed"
        case [_, hashed] | hashed, _Absent() if _is_hash(hashed):
            return f"{name} is gone"
        case _Absent(), [_, hashed] | hashed if _is_hash(hashed):
            return f"{name} is new"
    return f"{name} was {before!r} and is {now!r}"


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
