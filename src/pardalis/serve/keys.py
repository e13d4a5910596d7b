"""Keys that open a server: read from a file, and compared in constant time."""

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from pardalis.errors import ConfigError
from pardalis.files import read_text


def read_keys(path: Path) -> tuple[str, ...]:
    """Return the keys of a file, one on each line; those that are empty or begin with # are none.

    Raises:
        ConfigError: there is no such file, no key in it, or a key that no header can carry.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is no file; keys were expected there, one on each line.")
    keys = []
    for number, line in enumerate(read_text(path).removeprefix("\ufeff").splitlines(), 1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(
                f"line {number} of {path} is a key with characters that no header can carry; "
                "write keys in printable ASCII."
            )
        keys.append(key)
    if not keys:
        raise ConfigError(f"{path} has no keys; write one on each line.")
    return tuple(keys)


class Keys:
    """The keys of a server; none: it is open."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def open(self, authorization: str) -> bool:
        """Whether a header ``Authorization: Bearer KEY`` opens the server."""
        if not self._digests:
            return True
        scheme, _, given = authorization.partition(" ")
        found = _digest(given.strip())
        known = [hmac.compare_digest(found, each) for each in self._digests]  # all of them
        return scheme.lower() == "bearer" and any(known)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
