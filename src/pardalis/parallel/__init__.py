"""Several processes that train one model: who they are and what they tell each other."""

from pardalis.parallel.world import World, join

__all__ = ["World", "join"]
