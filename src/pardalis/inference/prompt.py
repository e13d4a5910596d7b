"""From a prompt in Python to a request in token ids, checked against the model."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from pardalis.bundle import Bundle
from pardalis.documents import Document, Text
from pardalis.errors import RequestError
from pardalis.inference.generation import GenerationConfig
from pardalis.inference.prompt_parts import Prompt, to_document
from pardalis.inference.request import Request, ScoreRequest
from pardalis.retrieval import Retrieved, Retriever
from pardalis.seeds import derive
from pardalis.tokens import Limits


def to_request(
    bundle: Bundle,
    prompt: Prompt,
    config: GenerationConfig | None = None,
    *,
    number: int = 0,
    retriever: Retriever | None = None,
    **options: Any,
) -> Request:
    """Encode a prompt and check that the model can complete it.

    Args:
        number: index of the prompt among those that share the seed.
        retriever: puts documents before the prompt, as many as leave room for the completion:
            ``max_new_tokens``, or the images of mode image, or one image.
        options: fields of the config, which replace its values.

    Raises:
        RequestError, DataError: as :func:`pardalis.generate`.
    """
    config = GenerationConfig.of(config, options)
    limits = _limits(bundle, config)
    check_unconditional(bundle, config)
    document = to_document(prompt, "user" if config.chat else None)
    check_length(bundle, document)
    prompt_ids = bundle.codec.encode_prompt(document)
    context = bundle.model.config.context
    if len(prompt_ids) >= context:
        raise RequestError(
            f"The prompt has {len(prompt_ids)} tokens, which fills the model's context of "
            f"{context}; shorten it."
        )
    retrieved: tuple[Retrieved, ...] = ()
    if retriever is not None:
        room = context - len(prompt_ids) - _needed(bundle, config, limits)
        prompt_ids, retrieved = retriever.before(
            _query(document), prompt_ids, bundle.codec, max(0, room)
        )
    limits = replace(
        limits,
        max_new_tokens=min(limits.max_new_tokens, context - len(prompt_ids)),
        one_turn=bool(document.segments) and document.segments[-1].role is not None,
    )
    bundle.codec.grammar.begin(prompt_ids, limits)  # checks both
    return Request(
        prompt_ids=tuple(prompt_ids),
        limits=limits,
        text=config.text_sampling,
        image=config.image_sampling,
        guidance=config.guidance_method if limits.max_images != 0 else None,
        unconditional=config.unconditional,
        seed=derive(config.seed, "answer", number),
        logprobs=config.logprobs,
        stop=tuple(config.stop),
        adapter=config.adapter,
        retrieved=retrieved,
    )


def to_requests(
    bundle: Bundle,
    prompt: Prompt,
    configs: Sequence[GenerationConfig],
    retriever: Retriever | None = None,
) -> list[Request]:
    """Encode a prompt that gets several completions; documents are retrieved once.

    The first is what :func:`to_request` returns, and each has randomness of its own.

    Raises:
        RequestError, DataError: as :func:`pardalis.generate`.
    """
    first = to_request(bundle, prompt, configs[0], retriever=retriever)
    room = bundle.model.context - len(first.prompt_ids)
    requests = [first]
    for number, config in enumerate(configs[1:], 1):
        request = to_request(bundle, prompt, config, number=number)
        limits = replace(request.limits, max_new_tokens=min(request.limits.max_new_tokens, room))
        requests.append(
            replace(
                request,
                limits=limits,
                prompt_ids=first.prompt_ids,
                retrieved=first.retrieved,
            )
        )
    return requests


def check_length(bundle: Bundle, *documents: Document) -> None:
    """Raise RequestError if a prompt is so long that it need not be encoded to be refused."""
    segments = [segment for each in documents for segment in each.segments]
    n_bytes = sum(len(part.text.encode()) for part in segments if isinstance(part, Text))
    n_images = sum(len(each.images) for each in documents)
    codec, context = bundle.codec, bundle.model.context
    fewest = -(-n_bytes // codec.text_tokenizer.most_bytes)
    fewest += n_images * codec.grammar.tokens_per_image
    if fewest > context:
        images = f"{n_images:,} images and " if n_images else ""
        raise RequestError(
            f"The prompt has {images}{n_bytes:,} bytes of text, so at least {fewest:,} tokens, "
            f"which fills the model's context of {context}; shorten it."
        )


def check_unconditional(bundle: Bundle, config: GenerationConfig) -> None:
    """Raise RequestError if guidance asks for a mask that the model does not know."""
    if config.unconditional == "mask" and not bundle.codec.vocabulary.masks:
        raise RequestError(
            "unconditional is 'mask', but this model's vocabulary has no mask_0: it has not learnt "
            "to infill; leave it out."
        )


def _query(document: Document) -> Document:
    """Return what documents are retrieved for: the prompt, or a conversation's last user's turn."""
    turns = [list(turn) for _, turn in groupby(document.segments, lambda segment: segment.role)]
    asked = [turn for turn in turns if turn[0].role == "user"]
    return Document(tuple(asked[-1])) if asked else document


def _needed(bundle: Bundle, config: GenerationConfig, limits: Limits) -> int:
    """Return the tokens of the context that retrieved documents leave to the completion."""
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    images = limits.max_images if config.mode == "image" else min(1, limits.max_images or 1)
    return max(1, (images or 0) * bundle.codec.grammar.tokens_per_image)


def to_score_requests(
    bundle: Bundle,
    requests: Iterable[tuple[Prompt, Prompt] | ScoreRequest],
    adapter: str | None = None,
) -> Iterator[ScoreRequest]:
    """Encode prompts and continuations, for an adapter; those in token ids stay as they are.

    Each is encoded on its own, as the segments of a document are, so the score is the probability
    that the model generates these tokens after that prompt. Roles in continuations are left out.

    Raises:
        RequestError: a continuation is empty, or is longer with its prompt than the context.
        DataError: an image cannot be read.
    """
    last: tuple[Any, Document] | None = None  # a prompt and what it was converted to
    prompt_ids: tuple[int, ...] = ()
    for request in requests:
        if not isinstance(request, ScoreRequest):
            prompt, continuation = _pair(request)
            document = to_document(prompt) if last is None or last[0] is not prompt else last[1]
            after = to_document(continuation)
            check_length(bundle, document, after)
            if last is None or document != last[1]:
                prompt_ids = tuple(bundle.codec.encode_prompt(document))
            last = prompt, document
            request = ScoreRequest(
                prompt_ids=prompt_ids,
                continuation_ids=tuple(bundle.codec.encode_continuation(after)),
                adapter=adapter,
            )
        request.require_fits(bundle.model.context)
        yield request


def _pair(request: Any) -> tuple[Prompt, Prompt]:
    if isinstance(request, tuple | list) and len(request) == 2:
        return request[0], request[1]
    raise RequestError(
        f"A request for scores is of type {type(request).__name__}; it must be a pair of a prompt "
        "and its continuation, or a ScoreRequest."
    )


def _limits(bundle: Bundle, config: GenerationConfig) -> Limits:
    """Return the limits of a completion before the prompt takes its share of the context."""
    max_images = config.max_images
    if config.mode == "text":
        max_images = 0
    elif config.mode == "image" and max_images is None:
        max_images = 1
    if not bundle.codec.image_tokenizer.config.has_decoder:
        if config.mode == "image" or max_images:
            raise RequestError(
                "This model's image tokenizer has no decoder, so it reads images but cannot "
                "generate them; use mode 'text', or run `import_model` again with one that has a "
                "decoder."
            )
        max_images = 0
    return Limits(
        text=config.mode != "image",
        max_images=max_images,
        max_new_tokens=config.max_new_tokens or bundle.model.config.context,
    )
