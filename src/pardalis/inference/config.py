"""How an engine divides a machine among requests."""

from dataclasses import dataclass
from typing import Literal

from pardalis.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Rows, memory and speed of one engine.

    Raises:
        ConfigError: a number is out of range.
    """

    max_slots: int = 16  # sequences that share a pass; a guided image takes two or three
    cache_tokens: int | None = None  # ids whose keys and values fit; None: max_slots whole contexts
    page_size: int = 16  # ids that share a page of the cache
    steps: int = 8  # decoding steps between two looks of the host at what was written
    prefill: int = 512  # prompt ids that are read in one pass, beside what is being written
    quantum: int = 256  # steps a request may hold its row while others wait for one
    max_waiting: int = 1024  # requests that may wait; more are refused
    max_unread: int = 1024  # events a client may leave unread before its request pauses
    window: int | None = None  # codes guessed ahead in an image; 1: none, None: where it pays
    overlap: bool | None = None  # begin steps before the last are looked at; None: on a GPU
    compiled: bool = False  # compile the steps: minutes to begin with, faster from then on
    weights: Literal["stored", "int8"] = "stored"  # int8 halves or quarters what a step reads

    def __post_init__(self) -> None:
        for name in ("max_slots", "page_size", "steps", "prefill", "quantum", "max_unread"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.max_waiting < 0:
            raise ConfigError(f"max_waiting must be 0 or more, got {self.max_waiting}.")
        if self.window is not None and self.window < 1:
            raise ConfigError(f"window must be at least 1, got {self.window}.")
        if self.weights not in ("stored", "int8"):
            raise ConfigError(f"weights must be 'stored' or 'int8', got {self.weights!r}.")
        if self.cache_tokens is not None and self.cache_tokens < self.page_size:
            raise ConfigError(
                f"cache_tokens must be at least one page ({self.page_size}), got "
                f"{self.cache_tokens}."
            )
