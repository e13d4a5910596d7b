"""The request of one completion in token ids, as the scheduler reads it."""

from dataclasses import dataclass, field

from pardalis.errors import RequestError
from pardalis.inference.generation import ImageGuidance, SamplingConfig, is_count
from pardalis.tokens import Limits


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt, what may follow it, and how to sample that."""

    prompt_ids: tuple[int, ...]  # begins with bos; has no eos
    limits: Limits
    text: SamplingConfig = field(default_factory=SamplingConfig)
    image: SamplingConfig = field(default_factory=SamplingConfig)
    guidance: ImageGuidance | None = None  # applies to image tokens
    seed: int = 0  # in [0, 2^63); equal requests get equal completions

    def __post_init__(self) -> None:
        limits = self.limits
        if not 0 <= self.seed < 2**63:
            raise RequestError(f"seed must lie in [0, 2^63), got {self.seed}.")
        if not is_count(limits.max_new_tokens):
            raise RequestError(f"max_new_tokens must be 0 or more, got {limits.max_new_tokens}.")
        if not (limits.max_images is None or is_count(limits.max_images)):
            raise RequestError(f"max_images must be 0 or more, got {limits.max_images}.")
