"""Several completions of one prompt, the best of them first.

A pool says how the candidates are sampled, and a scorer which one is better. CM3Leon (arXiv
2309.02591, section 4) samples half of its candidates with top-p and classifier-free guidance and
half with CD-K: together they go on getting better with their number, where each alone stagnates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pardalis.bundle import Bundle, as_bundle
from pardalis.documents import Document, Image, Text
from pardalis.errors import RequestError
from pardalis.inference.adapters import Adapters
from pardalis.inference.api import complete
from pardalis.inference.generation import GenerationConfig, documents_options, is_count
from pardalis.inference.log_probs import Score
from pardalis.inference.prompt import to_requests, to_score_requests
from pardalis.inference.prompt_parts import Prompt, to_document
from pardalis.inference.request import ScoreRequest
from pardalis.inference.response import Response
from pardalis.retrieval import Retriever

# ── pools ────────────────────────────────────────────────────────────────────────────────────────

Pool = Callable[[int, GenerationConfig, Mapping[str, Any]], list[GenerationConfig]]
"""(number of candidates, options, those of contrastive decoding) to the options of each."""


def same(
    n: int, config: GenerationConfig, contrastive: Mapping[str, Any]
) -> list[GenerationConfig]:
    """All candidates have the same options."""
    return [config] * n


def half_top_p_half_cd_k(
    n: int, config: GenerationConfig, contrastive: Mapping[str, Any]
) -> list[GenerationConfig]:
    """Half of them have the options as given, the others contrastive decoding in place of guidance.

    Of an odd number the first half has one more.
    """
    other = config.with_options({"guidance": 1.0, "image_guidance": None, **contrastive})
    return [config] * (n - n // 2) + [other] * (n // 2)


POOLS: dict[str, Pool] = {"same": same, "half_top_p_half_cd_k": half_top_p_half_cd_k}

# ── scorers ──────────────────────────────────────────────────────────────────────────────────────

Judge = Callable[[Sequence[tuple[Prompt, Prompt] | ScoreRequest]], list[Score]]
"""What :func:`pardalis.score` gives for one request for each completion, by the model with the
adapter that generated it."""

Scorer = Callable[[Bundle, Document, tuple[int, ...], Sequence[Response], Judge], list[float]]
"""(model, prompt, the token ids that were continued, completions, what gives log-probabilities) to
a score of each completion; more is better."""


def prompt_log_prob(
    bundle: Bundle,
    prompt: Document,
    prompt_ids: tuple[int, ...],
    responses: Sequence[Response],
    judge: Judge,
) -> list[float]:
    """Return the mean log-probability of the prompt's text after each completion's images.

    The model judges as one that names what it sees.
    """
    text = Text(prompt.text)
    if not text.text or not all(response.images for response in responses):
        raise RequestError(
            "rank_by 'prompt' needs a prompt with text and completions with images; use "
            "'likelihood', or mode 'image'."
        )
    pairs = [(Document(tuple(map(_plain, response.images))), text) for response in responses]
    return [each.log_prob / len(each.log_probs) for each in judge(pairs)]


def likelihood(
    bundle: Bundle,
    prompt: Document,
    prompt_ids: tuple[int, ...],
    responses: Sequence[Response],
    judge: Judge,
) -> list[float]:
    """Return the mean log-probability of the tokens of each completion after what it continues."""
    continuations = [bundle.codec.encode_continuation(response) for response in responses]
    requests = [
        ScoreRequest(prompt_ids=prompt_ids, continuation_ids=tuple(ids)) for ids in continuations
    ]
    return [each.log_prob / len(each.log_probs) for each in judge(requests)]


def _plain(image: Image) -> Image:
    return Image(image.source)


SCORERS: dict[str, Scorer] = {"prompt": prompt_log_prob, "likelihood": likelihood}

# ── candidates ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of several completions of a prompt."""

    response: Response
    score: float  # by the scorer; more is better
    config: GenerationConfig  # the options it was sampled with
    number: int  # its place in the pool


@documents_options
def generate_ranked(
    bundle: Bundle | Path | str,
    prompt: Prompt,
    config: GenerationConfig | None = None,
    *,
    candidates: int = 8,
    pool: str = "same",
    rank_by: str = "prompt",
    pool_alpha: float = 0.1,
    pool_k: int = 10,
    adapters: Adapters | None = None,
    retriever: Retriever | None = None,
    engine_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[Candidate]:
    """Generate several completions of a prompt and return them ranked, the best first.

    Args:
        bundle, prompt, config, adapters, retriever, options: as :func:`pardalis.generate` takes
            them; documents are retrieved once.
        candidates: how many; each has randomness of its own.
        pool: a name of :data:`POOLS`.
        rank_by: a name of :data:`SCORERS`.
        pool_alpha: ``contrastive_alpha`` of the half of a pool that has it. CM3Leon's is unknown.
        pool_k: ``contrastive_k``, likewise.
        engine_options: fields of :class:`pardalis.EngineConfig`.

    Options:
        {options}

    Raises:
        RequestError: a name is unknown, or as :func:`pardalis.generate`.
    """
    for what, name, known in (("pool", pool, POOLS), ("rank_by", rank_by, SCORERS)):
        if name not in known:
            raise RequestError(f"{what} must be one of {', '.join(known)}, got {name!r}.")
    if not (is_count(candidates) and candidates):
        raise RequestError(f"candidates must be a whole number, 1 or more, got {candidates}.")
    bundle = as_bundle(bundle)
    contrastive = {"contrastive_alpha": pool_alpha, "contrastive_k": pool_k}
    configs = POOLS[pool](candidates, GenerationConfig.of(config, options), contrastive)
    requests = to_requests(bundle, prompt, configs, retriever)
    completions = complete(bundle, requests, adapters, engine_options)
    responses = [completion.wait() for completion in completions]

    def judge(of_each: Sequence[tuple[Prompt, Prompt] | ScoreRequest]) -> list[Score]:
        encoded = [
            replace(asked, adapter=request.adapter)
            for asked, request in zip(to_score_requests(bundle, of_each), requests, strict=True)
        ]
        judged = complete(bundle, encoded, adapters, engine_options)
        return [Score.of(completion.log_probs) for completion in judged]

    prompt_ids = requests[0].prompt_ids
    scores = SCORERS[rank_by](bundle, to_document(prompt), prompt_ids, responses, judge)
    found = map(Candidate, responses, scores, configs, range(candidates))
    return sorted(found, key=lambda candidate: -candidate.score)
