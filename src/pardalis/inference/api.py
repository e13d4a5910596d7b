"""Prompts in, documents out: the functions that Python users call."""

from collections.abc import Sequence
from heapq import nlargest
from typing import Any

from pardalis.bundle import Bundle
from pardalis.documents import Document
from pardalis.inference.config import EngineConfig
from pardalis.inference.engine import Completion, Engine
from pardalis.inference.events import Finished
from pardalis.inference.generation import GenerationConfig, documents_options
from pardalis.inference.prompt import Prompt, to_request
from pardalis.inference.request import Request


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
    requests = [
        to_request(bundle, prompt, config, number=number) for number, prompt in enumerate(prompts)
    ]
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
        return [completion.wait() for completion in completions]


def engine_config_for(requests: Sequence[Request]) -> EngineConfig:
    """Return a config for one client's requests, with a cache no larger than they need."""
    default = EngineConfig()
    slots = [1 if r.guidance is None else 3 for r in requests]
    max_slots = max(max(slots), min(sum(slots), default.max_slots))
    lengths = [len(r.prompt_ids) + r.limits.max_new_tokens for r in requests]
    per_slot = (length for length, n in zip(lengths, slots, strict=True) for _ in range(n))
    pages = (-(-length // default.page_size) + 1 for length in nlargest(max_slots, per_slot))
    return EngineConfig(
        max_slots=max_slots,
        cache_tokens=sum(pages) * default.page_size,
        quantum_steps=max(lengths),  # no preemption: the client waits for all requests
    )
