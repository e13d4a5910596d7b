"""What a result was made from: plain values by name, kept beside it and compared later."""

import json
from collections.abc import Mapping
from typing import Any

_SHOWN = 3


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name the values that differ: ``training.seed was 0 and is 1``; empty when none does.

    Args:
        before: as read from a JSON file.
        now: anything that can be written as JSON.
    """
    old, new = _flat(before), _flat(json.loads(json.dumps(now)))
    names = [name for name in sorted(old | new) if old.get(name, _ABSENT) != new.get(name, _ABSENT)]
    found = [
        f"{name} was {old.get(name, _ABSENT)!r} and is {new.get(name, _ABSENT)!r}"
        for name in names[:_SHOWN]
    ]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return "; ".join(found) + more


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
