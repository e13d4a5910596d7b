"""From a prompt in Python to a request in token ids, checked against the model."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import PIL.Image

from pardalis.bundle import Bundle
from pardalis.documents import Document, Image, Role, Text
from pardalis.errors import RequestError
from pardalis.inference.generation import GenerationConfig
from pardalis.inference.request import Request, ScoreRequest
from pardalis.seeds import derive
from pardalis.tokens import Limits

Part = str | Path | bytes | PIL.Image.Image
Prompt = Part | Sequence[Part] | Document


def to_document(prompt: Prompt, role: Role | None = None) -> Document:
    """Convert a prompt: a string is text; a path, bytes or a PIL image is an image.

    Args:
        role: role of every segment; a document keeps its own roles.
    """
    if isinstance(prompt, Document):
        return prompt
    parts = [prompt] if isinstance(prompt, str | Path | bytes | PIL.Image.Image) else prompt
    return Document(
        tuple(Text(p, role=role) if isinstance(p, str) else Image(p, role=role) for p in parts)
    )


def to_request(
    bundle: Bundle,
    prompt: Prompt,
    config: GenerationConfig | None = None,
    *,
    number: int = 0,
    **options: Any,
) -> Request:
    """Encode a prompt and check that the model can complete it.

    Args:
        number: index of the prompt among those that share the seed.
        options: fields of the config, which replace its values.

    Raises:
        RequestError, DataError: as :func:`pardalis.generate`.
    """
    config = (config or GenerationConfig()).with_options(options)
    limits = _limits(bundle, config)
    guidance = config.guidance_method
    if guidance is not None and limits.max_images == 0:
        name = "guidance" if config.contrastive_alpha is None else "contrastive_alpha"
        raise RequestError(
            f"{name} applies to images, but this request generates none; leave it out, or change "
            "`mode` or `max_images`."
        )
    document = to_document(prompt, "user" if config.chat else None)
    prompt_ids = bundle.codec.encode_prompt(document)
    context = bundle.model.config.context
    if len(prompt_ids) >= context:
        raise RequestError(
            f"The prompt has {len(prompt_ids)} tokens, which fills the model's context of "
            f"{context}; shorten it."
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
        guidance=guidance,
        seed=derive(config.seed, "answer", number),
        logprobs=config.logprobs,
        stop=tuple(config.stop),
    )


def to_score_requests(
    bundle: Bundle, requests: Iterable[tuple[Prompt, Prompt] | ScoreRequest]
) -> Iterator[ScoreRequest]:
    """Encode prompts and continuations; those in token ids stay as they are.

    Each is encoded on its own, as the segments of a document are, so the score is the probability
    that the model generates these tokens after that prompt. Roles in continuations are left out.

    Raises:
        RequestError: a continuation is empty, or is longer with its prompt than the context.
        DataError: an image cannot be read.
    """
    groups = groupby(requests, lambda r: r if isinstance(r, ScoreRequest) else r[0])
    for prompt, group in groups:  # successive requests with the same prompt
        prompt_ids: tuple[int, ...] | None = None
        for request in group:
            if not isinstance(request, ScoreRequest):
                prompt, continuation = request
                if prompt_ids is None:
                    prompt_ids = tuple(bundle.codec.encode_prompt(to_document(prompt)))
                document = to_document(continuation)
                plain = Document(tuple(replace(s, role=None) for s in document.segments))
                request = ScoreRequest(
                    prompt_ids=prompt_ids,
                    continuation_ids=tuple(bundle.codec.encode(plain).ids[1:-1].tolist()),
                )
            request.require_fits(bundle.model.context)
            yield request


def _limits(bundle: Bundle, config: GenerationConfig) -> Limits:
    """Return the limits of a completion before the prompt takes its share of the context."""
    max_images = config.max_images
    if config.mode == "text":
        if max_images:
            raise RequestError(
                f"max_images must be 0 or left out in mode 'text', got {max_images}; or choose "
                "another `mode`."
            )
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
