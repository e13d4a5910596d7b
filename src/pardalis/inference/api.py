"""Prompts in, documents out: the functions that Python users call."""

from collections.abc import Sequence
from heapq import nlargest
from typing import Any

from pardalis.bundle import Bundle
from pardalis.documents import Document
from pardalis.errors import RequestError
from pardalis.inference.config import EngineConfig
from pardalis.inference.engine import Completion, Engine
from pardalis.inference.events import Finished
from pardalis.inference.generation import GenerationConfig, documents_options
from pardalis.inference.log_probs import Score
from pardalis.inference.prompt import Prompt, to_request, to_score_requests
from pardalis.inference.request import Request, ScoreRequest


@documents_options
def generate(
    bundle: Bundle, prompt: Prompt, config: GenerationConfig | None = None, **options: Any
) -> Document:
    """Generate the completion of one prompt.

    Args:
        bundle: what :func:`pardalis.load` returns.
        prompt: a text, an image (a path, bytes or a PIL image), a list of both, or a document.
        config: options as one object.
        options: fields of :class:`pardalis.GenerationConfig`, which replace those of ``config``.

    Options:
        {options}

    Returns:
        The completion without its prompt: text and images in order.

    Raises:
        RequestError: an option is wrong, the prompt leaves too small a token budget, or images are
            required of a model that cannot generate any.
        DataError: an image of the prompt cannot be read.
    """
    [completion] = generate_many(bundle, [prompt], config, **options)
    return completion


@documents_options
def generate_many(
    bundle: Bundle,
    prompts: Sequence[Prompt],
    config: GenerationConfig | None = None,
    **options: Any,
) -> list[Document]:
    """Generate the completions of many prompts in one batch.

    All prompts are checked before generation begins. The completion of prompt number i depends on
    the prompt, the options and (seed, i), not on the other prompts.

    Args:
        bundle: what :func:`pardalis.load` returns.
        prompts: each as :func:`pardalis.generate` takes it.
        config: options as one object.
        options: fields of :class:`pardalis.GenerationConfig`, which replace those of ``config``.

    Options:
        {options}

    Returns:
        The completions without their prompts, in the order of the prompts.

    Raises:
        RequestError, DataError: as :func:`pardalis.generate`, for any of the prompts.
    """
    config = (config or GenerationConfig()).with_options(options)
    if config.logprobs:
        raise RequestError(
            "logprobs are in no document; leave the option out, or read `log_probs` of what "
            "`Engine.submit` returns."
        )
    requests = [
        to_request(bundle, prompt, config, number=number) for number, prompt in enumerate(prompts)
    ]
    return [completion.wait() for completion in _complete(bundle, requests)]


def score(bundle: Bundle, requests: Sequence[tuple[Prompt, Prompt] | ScoreRequest]) -> list[Score]:
    """Return how likely given continuations of prompts are.

    The probability of a token is that of the model's softmax over its whole vocabulary. Neither
    the grammar nor any option of sampling changes it. Many continuations of one prompt are best
    given one after the other: the prompt is then encoded once, and computed once but for its last
    tokens, which fill no cache page.

    Args:
        bundle: what :func:`pardalis.load` returns.
        requests: pairs of a prompt, as :func:`pardalis.generate` takes it, and its continuation in
            the same form; or token ids, as :class:`pardalis.inference.ScoreRequest`.

    Returns:
        The scores, in the order of the requests. A score has the log-probability of each token
        (``log_probs``), their sum (``log_prob``), and whether each is the most likely token in its
        place (``greedy``).

    Raises:
        RequestError: a continuation is empty, or is longer with its prompt than the context.
        DataError: an image cannot be read, or token ids break the grammar.
    """
    encoded = list(to_score_requests(bundle, requests))
    return [Score.of(completion.log_probs) for completion in _complete(bundle, encoded)]


def _complete(
    bundle: Bundle, requests: Sequence[Request] | Sequence[ScoreRequest]
) -> list[Completion]:
    """Run requests together in an engine of their own; return their completions, which ended."""
    if not requests:
        return []
    completions: list[Completion] = []
    with Engine(bundle, engine_config_for(requests)) as engine:
        n_open = 0
        for request in requests:
            while n_open >= 2 * engine.config.max_slots:  # enough that no slot is ever idle
                n_open -= sum(isinstance(event, Finished) for event in engine.step())
            completions.append(engine.submit_request(request))
            n_open += 1
        for completion in completions:
            completion.wait()
        return completions


def engine_config_for(requests: Sequence[Request] | Sequence[ScoreRequest]) -> EngineConfig:
    """Return a config for one client's requests, with a cache no larger than they need."""
    default = EngineConfig()
    slots = [3 if isinstance(r, Request) and r.guidance else 1 for r in requests]
    max_slots = max(max(slots), min(sum(slots), default.max_slots))
    lengths = [
        len(r.prompt_ids)
        + (r.limits.max_new_tokens if isinstance(r, Request) else len(r.continuation_ids))
        for r in requests
    ]
    per_slot = (length for length, n in zip(lengths, slots, strict=True) for _ in range(n))
    pages = (-(-length // default.page_size) + 1 for length in nlargest(max_slots, per_slot))
    return EngineConfig(
        max_slots=max_slots,
        cache_tokens=sum(pages) * default.page_size,
        quantum_steps=max(lengths),  # no preemption: the client waits for all requests
    )
