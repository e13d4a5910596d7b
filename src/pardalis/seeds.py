"""Randomness as a function of names: a root seed per run, and a derived seed per purpose.

The library uses no global generator. A random number of step 7 uses ``derive(seed, "step", 7)``,
so a resumed run draws the same numbers as an uninterrupted one, and no generator state is saved.
"""

import hashlib

import numpy as np


def derive(root: int, *names: str | int) -> int:
    """Return a seed in [0, 2**63) that depends only on the root seed and the names."""
    text = "/".join([str(root), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_generator(root: int, *names: str | int) -> np.random.Generator:
    """Return a NumPy generator for one purpose, seeded by :func:`derive`."""
    return np.random.default_rng(derive(root, *names))
