"""Configuration of the inference engine."""

from dataclasses import dataclass
from typing import Literal

from pardalis.config import check_at_least, check_types
from pardalis.errors import ConfigError

STEPS_PER_SYNC = 8  # unless the config says otherwise


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Batch size, memory and execution of one engine.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """

    max_slots: int = 16  # sequences decoded in one pass; a guided image takes two or three
    cache_tokens: int | None = None  # capacity of the KV cache; None: max_slots full contexts
    page_size: int = 16  # tokens per page of the cache
    # Decoding steps between two host synchronisations; None: 8, and more inside images that
    # are generated so fast that this takes less than 10 ms.
    steps_per_sync: int | None = None
    prefill_tokens: int = 512  # prompt tokens read in one pass, beside a decoding step
    quantum_steps: int = 256  # steps a request may hold its slots while others wait for them
    max_waiting: int = 1024  # requests that may wait; more raise QueueFullError
    max_unread_events: int = 1024  # unread events at which a request is paused
    speculation_window: int | None = None  # codes verified per pass; 1: off, None: adaptive
    overlap: bool | None = None  # launch steps before reading the previous ones; None: on a GPU
    compile: bool = False  # compile decoding steps: takes minutes at first, then runs faster
    native: bool = True  # decode in C++ on a CPU where that can be compiled; not with compile
    # bfloat16 and int8 round the matrices: less is read in a step, and kept in memory on a CPU.
    weights: Literal["stored", "bfloat16", "int8"] = "stored"

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, max_slots=1, page_size=1, steps_per_sync=1, prefill_tokens=1)
        check_at_least(self, quantum_steps=1, max_unread_events=1, speculation_window=1)
        check_at_least(self, max_waiting=0)
        if self.cache_tokens is not None and self.cache_tokens < self.page_size:
            raise ConfigError(
                f"cache_tokens must be at least one page ({self.page_size}), got "
                f"{self.cache_tokens}."
            )
