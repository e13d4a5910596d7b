"""Requests in token ids, as the scheduler reads them: a completion, or a score."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from pardalis.errors import RequestError
from pardalis.inference.generation import ImageGuidance, SamplingConfig, is_count
from pardalis.retrieval import Retrieved
from pardalis.tokens import Limits

Unconditional: TypeAlias = Literal["empty", "mask"]
"""What the unconditional branch of guidance reads in place of the prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt, what may follow it, and how to sample that."""

    prompt_ids: tuple[int, ...]  # begins with bos; has no eos
    limits: Limits
    text: SamplingConfig = field(default_factory=SamplingConfig)
    image: SamplingConfig = field(default_factory=SamplingConfig)
    guidance: ImageGuidance | None = None  # applies to image tokens
    unconditional: Unconditional = "empty"  # of the guidance
    seed: int = 0  # in [0, 2^63); equal requests get equal completions
    logprobs: int = 0  # most likely tokens reported with each token's log-probability; 0: off
    stop: tuple[str, ...] = ()  # texts that end the completion; the engine finds them
    adapter: str | None = None  # name of an adapter that the engine has loaded; None: none
    retrieved: tuple[Retrieved, ...] = ()  # documents in prompt_ids, the best first

    def __post_init__(self) -> None:
        limits = self.limits
        if not 0 <= self.seed < 2**63:
            raise RequestError(f"seed must lie in [0, 2^63), got {self.seed}.")
        if not is_count(self.logprobs):
            raise RequestError(f"logprobs must be 0 or more, got {self.logprobs}.")
        if not is_count(limits.max_new_tokens):
            raise RequestError(f"max_new_tokens must be 0 or more, got {limits.max_new_tokens}.")
        if not (limits.max_images is None or is_count(limits.max_images)):
            raise RequestError(f"max_images must be 0 or more, got {limits.max_images}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRequest:
    """A prompt and a continuation of it, whose log-probabilities are computed.

    Raises:
        RequestError: the prompt or the continuation has no tokens.
    """

    prompt_ids: tuple[int, ...]  # begins with bos
    continuation_ids: tuple[int, ...]
    adapter: str | None = None  # name of an adapter that the engine has loaded; None: none

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise RequestError("The prompt has no tokens; it must begin with <bos>.")
        if not self.continuation_ids:
            raise RequestError(
                "The continuation has no tokens, so it has no score; give at least one."
            )

    def require_fits(self, context: int) -> None:
        """Raise RequestError if the request has more tokens than the model's context."""
        n_tokens = len(self.prompt_ids) + len(self.continuation_ids)
        if n_tokens > context:
            raise RequestError(
                f"The prompt and its continuation have {n_tokens} tokens, more than the model's "
                f"context of {context}; shorten them."
            )
