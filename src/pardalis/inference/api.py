"""Prompts in, documents out: the functions that Python users call."""

from collections.abc import Iterable, Mapping, Sequence
from heapq import nlargest
from pathlib import Path
from typing import Any, Literal, overload

from pardalis.bundle import Bundle, as_bundle
from pardalis.errors import PardalisError, RequestError
from pardalis.inference.adapters import Adapters
from pardalis.inference.config import EngineConfig
from pardalis.inference.engine import Completion, Engine
from pardalis.inference.events import Finished
from pardalis.inference.generation import GenerationConfig, documents_options
from pardalis.inference.log_probs import Score
from pardalis.inference.prompt import to_request, to_score_requests
from pardalis.inference.prompt_parts import Prompt, is_part
from pardalis.inference.request import Request, ScoreRequest
from pardalis.inference.response import Response
from pardalis.retrieval import Retriever

# Where nothing is generated: tokens of a cache page, the most slots, and the tokens that they hold
# beyond those of the default.
_SCORE_PAGE, _SCORE_SLOTS, _SCORE_TOKENS = 1, 64, 4096


@documents_options
def generate(
    bundle: Bundle | Path | str,
    prompt: Prompt,
    config: GenerationConfig | None = None,
    *,
    adapters: Adapters | None = None,
    retriever: Retriever | None = None,
    **options: Any,
) -> Response:
    """Generate the completion of one prompt.

        bundle = pardalis.load("runs/quickstart/bundle")
        owl = pardalis.generate(bundle, "owl", mode="image", seed=7)
        owl.images[0].source.save("owl.png")

    Args:
        bundle: what :func:`pardalis.load` returns, or the path of a bundle, which is then loaded
            for this call only.
        prompt: one part, or a list of parts in order. A part is a text (str); an image (a Path,
            bytes, an open binary file, a PIL image, or an array or tensor: uint8, or floats in
            [0, 1], of height x width with 1, 3 or 4 channels last or first, or none); a Text or
            Image segment; a document; or a part of a chat message. Or a chat message,
            {"role": ..., "content": ...} as OpenAI has it, or a list of messages; their images
            are data URLs, because nothing is fetched from a network.
        config: options as one object.
        adapters: folders of adapters by name, of which the option ``adapter`` names one.
        retriever: puts documents of an index before each prompt.
        options: fields of :class:`pardalis.GenerationConfig`, which replace those of ``config``.

    Options:
        {options}

    Returns:
        The completion without its prompt, as a :class:`pardalis.Document` of text and images in
        order. It also has ``reason`` (why it ended), ``truncated`` (whether the token budget ended
        it), ``usage`` (tokens and time), ``log_probs`` (with the option ``logprobs``) and
        ``retrieved`` (the documents that a retriever put before the prompt).

    Raises:
        RequestError: the prompt or an option is wrong, the prompt leaves too small a token budget,
            or images are required of a model that cannot generate any.
        DataError: an image of the prompt cannot be read.
        BundleError: there is no bundle at the path.
    """
    bundle = as_bundle(bundle)
    request = to_request(bundle, prompt, GenerationConfig.of(config, options), retriever=retriever)
    [completion] = complete(bundle, [request], adapters)
    return completion.wait()


@overload
def generate_many(
    bundle: Bundle | Path | str,
    prompts: Iterable[Prompt],
    config: GenerationConfig | None = None,
    *,
    errors: Literal["raise"] = "raise",
    adapters: Adapters | None = None,
    retriever: Retriever | None = None,
    **options: Any,
) -> list[Response]: ...


@overload
def generate_many(
    bundle: Bundle | Path | str,
    prompts: Iterable[Prompt],
    config: GenerationConfig | None = None,
    *,
    errors: Literal["return"],
    adapters: Adapters | None = None,
    retriever: Retriever | None = None,
    **options: Any,
) -> list[Response | PardalisError]: ...


@documents_options
def generate_many(
    bundle: Bundle | Path | str,
    prompts: Iterable[Prompt],
    config: GenerationConfig | None = None,
    *,
    errors: Any = "raise",
    adapters: Adapters | None = None,
    retriever: Retriever | None = None,
    **options: Any,
) -> Any:
    """Generate the completions of many prompts in one batch.

    All prompts are checked before generation begins. The completion of prompt number i depends on
    the prompt, the options and (seed, i), not on the other prompts.

    Args:
        bundle: as :func:`pardalis.generate` takes it.
        prompts: each as :func:`pardalis.generate` takes it.
        config: options as one object.
        errors: ``"raise"`` ends the call at the first wrong prompt, before any is completed;
            ``"return"`` completes the others and returns the error in place of its completion.
        adapters: folders of adapters by name, of which the option ``adapter`` names one.
        retriever: puts documents of an index before each prompt.
        options: fields of :class:`pardalis.GenerationConfig`, which replace those of ``config``.

    Options:
        {options}

    Returns:
        The completions as :func:`pardalis.generate` returns them, in the order of the prompts.

    Raises:
        RequestError, DataError, BundleError: as :func:`pardalis.generate`; the message names the
            prompt as ``prompts[i]``.
    """
    if errors not in ("raise", "return"):
        raise RequestError(f"errors must be 'raise' or 'return', got {errors!r}.")
    bundle = as_bundle(bundle)
    config = GenerationConfig.of(config, options)
    requests: list[Request | PardalisError] = []
    for number, prompt in enumerate(_as_list(prompts)):
        try:
            request = to_request(bundle, prompt, config, number=number, retriever=retriever)
            requests.append(request)
        except PardalisError as error:
            if errors == "raise":
                error.args = (f"prompts[{number}]: {error}",)
                raise
            requests.append(error)
    valid = [r for r in requests if isinstance(r, Request)]
    completions = iter(complete(bundle, valid, adapters))
    return [_result(next(completions), errors) if isinstance(r, Request) else r for r in requests]


def _result(completion: Completion, errors: str) -> Response | PardalisError:
    try:
        return completion.wait()
    except PardalisError as error:
        if errors == "raise":
            raise
        return error


def _as_list(prompts: Any) -> list[Prompt]:
    """Return many prompts as a list; one prompt, which may look like many, is refused."""
    if is_part(prompts) or not isinstance(prompts, Iterable):
        raise RequestError(
            f"prompts must be a list of prompts, got one of type {type(prompts).__name__}; put it "
            "in a list, or call `generate`."
        )
    return list(prompts)


def score(
    bundle: Bundle | Path | str,
    requests: Iterable[tuple[Prompt, Prompt] | ScoreRequest],
    *,
    adapters: Adapters | None = None,
    adapter: str | None = None,
) -> list[Score]:
    """Return how likely given continuations of prompts are.

    The probability of a token is that of the model's softmax over its whole vocabulary. Neither
    the grammar nor any option of sampling changes it. Many continuations of one prompt are best
    given one after the other: the prompt is then encoded once, and computed once but for its last
    tokens, which fill no cache page.

    Args:
        bundle: as :func:`pardalis.generate` takes it.
        requests: pairs of a prompt, as :func:`pardalis.generate` takes it, and its continuation in
            the same form; or token ids, as :class:`pardalis.inference.ScoreRequest`.
        adapters: folders of adapters by name.
        adapter: the one that the pairs are scored with; default: none.

    Returns:
        The scores, in the order of the requests. A score has the log-probability of each token
        (``log_probs``), their sum (``log_prob``), and whether each is the most likely token in its
        place (``greedy``).

    Raises:
        RequestError: a request is no such pair, or a continuation is empty, or is longer with its
            prompt than the context.
        DataError: an image cannot be read, or token ids break the grammar.
    """
    if not isinstance(requests, Iterable):
        raise RequestError(f"requests must be a list of pairs, got {type(requests).__name__}.")
    bundle = as_bundle(bundle)
    encoded = list(to_score_requests(bundle, requests, adapter))
    return [Score.of(completion.log_probs) for completion in complete(bundle, encoded, adapters)]


def complete(
    bundle: Bundle,
    requests: Sequence[Request] | Sequence[ScoreRequest],
    adapters: Adapters | None = None,
    engine_options: Mapping[str, Any] | None = None,
) -> list[Completion]:
    """Run requests together in an engine of their own; return their completions, which ended.

    Args:
        engine_options: fields of :class:`pardalis.EngineConfig` that differ from what suits the
            requests.
    """
    with KeptEngine(bundle, adapters, engine_options) as kept:
        return kept.complete(requests)


class KeptEngine:
    """An engine for one client, whose requests come in groups.

    It is kept from one group to the next, with its packed weights and the keys and values of
    prompts, and made anew when a group needs a larger cache or more slots.

    Args:
        bundle, adapters: as :class:`pardalis.Engine` takes them.
        engine_options: fields of :class:`pardalis.EngineConfig` that differ from what suits the
            requests.
    """

    def __init__(
        self,
        bundle: Bundle,
        adapters: Adapters | None = None,
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.bundle, self.adapters = bundle, adapters
        self._options = engine_options or {}
        self._engine: Engine | None = None
        self._config: EngineConfig | None = None

    def __enter__(self) -> "KeptEngine":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the engine; the next group gets another one."""
        if self._engine is not None:
            self._engine.close()
        self._engine = self._config = None

    def engine_for(self, requests: Sequence[Request | ScoreRequest]) -> Engine:
        """Return an engine for a group of requests; what it has not completed is given up."""
        config = engine_config_for(requests)
        if self._config is not None:
            config = _larger(self._config, config)
        if self._engine is None or config != self._config or not self._engine.idle:
            self.close()
            self._engine = Engine(self.bundle, config, adapters=self.adapters, **self._options)
            self._config = config
        return self._engine

    def complete(self, requests: Sequence[Request | ScoreRequest]) -> list[Completion]:
        """Run a group of requests together; return their completions, which ended."""
        if not requests:
            return []
        engine, n_open = self.engine_for(requests), 0
        completions: list[Completion] = []
        for request in requests:
            while n_open >= 2 * engine.config.max_slots:  # enough that no slot is ever idle
                n_open -= sum(isinstance(event, Finished) for event in engine.step())
            completions.append(engine.submit_request(request))
            n_open += 1
        for completion in completions:
            for _ in completion:
                pass
        return completions


def _larger(config: EngineConfig, needed: EngineConfig) -> EngineConfig:
    """Return a config that suits the requests of two others."""
    page_size = max(config.page_size, needed.page_size)

    def tokens(each: EngineConfig) -> int:  # with what larger pages leave empty
        return (each.cache_tokens or 0) + 2 * each.max_slots * (page_size - each.page_size)

    return EngineConfig(
        max_slots=max(config.max_slots, needed.max_slots),
        cache_tokens=max(tokens(config), tokens(needed)),
        page_size=page_size,
        quantum_steps=max(config.quantum_steps, needed.quantum_steps),
    )


def engine_config_for(requests: Sequence[Request | ScoreRequest]) -> EngineConfig:
    """Return a config for one client's requests, with a cache no larger than they need."""
    default = EngineConfig()
    slots = [3 if isinstance(r, Request) and r.guidance else 1 for r in requests]
    lengths = [
        len(r.prompt_ids)
        + (r.limits.max_new_tokens if isinstance(r, Request) else len(r.continuation_ids))
        for r in requests
    ]
    # Continuations of one prompt share its whole pages only, and compute the rest of it each. They
    # are short once it is computed, so many of them make a pass as large as the processor likes.
    only_scores = all(isinstance(request, ScoreRequest) for request in requests)
    page_size, most_slots = default.page_size, default.max_slots
    if only_scores:
        page_size = _SCORE_PAGE
        most_slots = max(most_slots, min(_SCORE_SLOTS, _SCORE_TOKENS // max(lengths)))
    max_slots = max(max(slots), min(sum(slots), most_slots))
    per_slot = (length for length, n in zip(lengths, slots, strict=True) for _ in range(n))
    pages = (-(-length // page_size) + 1 for length in nlargest(max_slots, per_slot))
    return EngineConfig(
        max_slots=max_slots,
        cache_tokens=sum(pages) * page_size,
        page_size=page_size,
        quantum_steps=max(lengths),  # no preemption: the client waits for all requests
    )
