"""What is asked of a model: a prompt in ids, what may be written, and how to choose."""

from dataclasses import dataclass, field

from pardalis.errors import RequestError
from pardalis.tokens import Limits


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How an id is chosen from the model's distribution, after the grammar has masked it."""

    temperature: float = 1.0  # divides the logits; 0 takes the most likely id
    top_k: int = 0  # keep the k most likely ids; 0 keeps all
    top_p: float = 1.0  # keep the most likely ids that together reach this probability

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise RequestError(f"temperature must be 0 or more, got {self.temperature}.")
        if self.top_k < 0:
            raise RequestError(f"top_k must be 0 (off) or more, got {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p must lie in (0, 1], got {self.top_p}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt and how to answer it."""

    prompt_ids: tuple[int, ...]  # from bos; no eos
    limits: Limits
    text: SamplingConfig = field(default_factory=SamplingConfig)
    picture: SamplingConfig = field(default_factory=SamplingConfig)
    guidance: float = 1.0  # classifier-free guidance of picture codes; 1 is none
    seed: int = 0  # two requests that are equal in everything get equal answers
