"""What is asked of a model: a prompt in ids, what may be written, and how to choose."""

from dataclasses import dataclass, field
from math import isfinite
from typing import TypeAlias

from pardalis.errors import RequestError
from pardalis.tokens import Limits

LARGEST_SCALE = 1e6  # of guidance; beyond, logits drown in rounding


def is_count(number: object) -> bool:
    """Whether something is a whole number from 0 on that a tensor of any type can hold."""
    return isinstance(number, int) and 0 <= number < 2**31


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How an id is chosen from the model's distribution, after the grammar has masked it."""

    temperature: float = 1.0  # divides the logits; 0 takes the most likely id
    top_k: int = 0  # keep the k most likely ids, and those as likely as the k-th; 0 keeps all
    top_p: float = 1.0  # keep the most likely ids that together reach this probability

    def __post_init__(self) -> None:
        if not (isfinite(self.temperature) and self.temperature >= 0):
            raise RequestError(f"temperature must be 0 or more, got {self.temperature}.")
        if not is_count(self.top_k):
            raise RequestError(
                f"top_k must be a whole number, 0 (off) or more and below 2^31, got {self.top_k}."
            )
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p must lie in (0, 1], got {self.top_p}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Guidance:
    """Classifier-free guidance of image codes: an extrapolation from streams that know less.

    With logits l of the whole context, u of ``bos`` and the open image alone, and i of the
    context's images without its text, a code is chosen from u + text (l - u), or, when ``image``
    is given, from u + image (i - u) + text (l - i) as in Chameleon's release. Where the context has
    no image before the open one, i is u, and the two forms agree.
    """

    text: float = 1.0  # how closely an image follows what was written; 1 as the model does
    image: float | None = None  # how closely it follows earlier images; Chameleon takes 1.2

    def __post_init__(self) -> None:
        for name, scale in (("text", self.text), ("image", self.image)):
            if scale is not None and not abs(scale) <= LARGEST_SCALE:
                raise RequestError(
                    f"The guidance scale of {name} must be a number from {-LARGEST_SCALE:g} to "
                    f"{LARGEST_SCALE:g}, got {scale}."
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrastive:
    """Contrastive decoding of image codes, CD-K of CM3Leon (arXiv 2309.02591).

    With p of the whole context and q of ``bos`` and the open image alone, a code t has the score
    log p(t) - log q(t) where p(t) >= alpha times the k-th largest p, and cannot be chosen
    elsewhere. k = 1 is plain contrastive decoding. The paper prints neither number.
    """

    alpha: float  # 0 keeps every code
    k: int

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise RequestError(f"alpha must lie in [0, 1], got {self.alpha}.")
        if not (is_count(self.k) and self.k):
            raise RequestError(f"k must be a whole number, 1 or more and below 2^31, got {self.k}.")


ImageGuidance: TypeAlias = Guidance | Contrastive


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt and how to answer it."""

    prompt_ids: tuple[int, ...]  # from bos; no eos
    limits: Limits
    text: SamplingConfig = field(default_factory=SamplingConfig)
    image: SamplingConfig = field(default_factory=SamplingConfig)
    guidance: ImageGuidance | None = None  # of image codes
    seed: int = 0  # in [0, 2^63); two requests that are equal in everything get equal answers

    def __post_init__(self) -> None:
        limits = self.limits
        if not 0 <= self.seed < 2**63:
            raise RequestError(f"A seed must lie in [0, 2^63), got {self.seed}.")
        if not is_count(limits.max_new_tokens):
            raise RequestError(f"max_new_tokens must be 0 or more, got {limits.max_new_tokens}.")
        if not (limits.max_images is None or is_count(limits.max_images)):
            raise RequestError(f"max_images must be 0 or more, got {limits.max_images}.")
