"""From a prompt as a person gives it to a request: what is asked, checked against the model."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import PIL.Image

from pardalis.bundle import Bundle
from pardalis.documents import Document, Image, Role, Segment, Text
from pardalis.errors import RequestError
from pardalis.inference.request import (
    Contrastive,
    Guidance,
    ImageGuidance,
    Request,
    SamplingConfig,
    is_count,
)
from pardalis.seeds import derive
from pardalis.tokens import Limits

GenerationMode = Literal["text", "image", "interleaved"]
Part = str | Path | bytes | PIL.Image.Image
# Text takes the most likely id; images are sampled as in Chameleon's release.
TEXT_SAMPLING = SamplingConfig(temperature=0.0)
IMAGE_SAMPLING = SamplingConfig(temperature=0.7, top_p=0.9)

Prompt = Part | Sequence[Part] | Document


def as_document(prompt: Prompt, role: Role | None = None) -> Document:
    """Read a prompt: a string is text; a path, bytes or a PIL image is an image.

    Args:
        role: whose turn it is; a document has its own roles.
    """
    if isinstance(prompt, Document):
        return prompt
    parts = [prompt] if isinstance(prompt, str | Path | bytes | PIL.Image.Image) else prompt
    segments: list[Segment] = [
        Text(p, role=role) if isinstance(p, str) else Image(p, role=role) for p in parts
    ]
    return Document(tuple(segments))


def to_request(
    bundle: Bundle,
    prompt: Prompt,
    *,
    mode: GenerationMode = "interleaved",
    max_new_tokens: int | None = None,
    max_images: int | None = None,
    text: SamplingConfig | None = None,
    image: SamplingConfig | None = None,
    guidance: float | ImageGuidance = 1.0,
    chat: bool = False,
    seed: int = 0,
    number: int = 0,
) -> Request:
    """Return the request of a prompt; arguments as of :func:`pardalis.generate_many`.

    Args:
        number: of the prompt among those that share the seed.

    Raises:
        RequestError: the prompt leaves no room for what is asked, or an image is asked of a model
            that cannot draw.
        DataError: an image of the prompt cannot be read.
    """
    limits = _limits(bundle, mode, max_new_tokens, max_images)
    guide = _guide(guidance, limits)
    document = as_document(prompt, "user" if chat else None)
    prompt_ids = bundle.codec.encode_prompt(document)
    context = bundle.model.config.context
    if len(prompt_ids) >= context:
        raise RequestError(
            f"The prompt has {len(prompt_ids)} ids, which fills the model's context of {context}; "
            "shorten it."
        )
    limits = replace(
        limits,
        max_new_tokens=min(limits.max_new_tokens, context - len(prompt_ids)),
        one_turn=bool(document.segments) and document.segments[-1].role is not None,
    )
    bundle.codec.grammar.begin(prompt_ids, limits)  # checks them
    return Request(
        prompt_ids=tuple(prompt_ids),
        limits=limits,
        text=text or TEXT_SAMPLING,
        image=image or IMAGE_SAMPLING,
        guidance=guide,
        seed=derive(seed, "answer", number),
    )


def _limits(
    bundle: Bundle, mode: GenerationMode, max_new_tokens: int | None, max_images: int | None
) -> Limits:
    """Return what may be written, as if there were no prompt."""
    budget = bundle.model.config.context if max_new_tokens is None else max_new_tokens
    if not (is_count(budget) and budget):
        raise RequestError(
            f"max_new_tokens must be a whole number, 1 or more, got {max_new_tokens}."
        )
    if not (max_images is None or is_count(max_images)):
        raise RequestError(f"max_images must be a whole number, 0 or more, got {max_images}.")
    if not bundle.codec.image_tokenizer.config.has_decoder:
        max_images = _no_images(mode, max_images)
    match mode:
        case "text":
            if max_images:
                raise RequestError(
                    "mode 'text' draws nothing; leave max_images out or choose another mode."
                )
            return Limits(max_images=0, max_new_tokens=budget)
        case "image":
            return Limits(
                text=False,
                max_images=1 if max_images is None else max_images,
                max_new_tokens=budget,
            )
        case "interleaved":
            return Limits(max_images=max_images, max_new_tokens=budget)
    raise RequestError(f"mode must be 'text', 'image' or 'interleaved', got {mode!r}.")


def _no_images(mode: GenerationMode, max_images: int | None) -> int:
    """Return the limit of a model that cannot draw; raises RequestError when it is asked to."""
    if mode == "image" or max_images:
        raise RequestError(
            "This model's image tokenizer has no decoder, so it reads images but cannot generate "
            "them; use mode 'text', or run `import_model` again with one that has a decoder."
        )
    return 0


def _guide(guidance: float | ImageGuidance, limits: Limits) -> ImageGuidance | None:
    if isinstance(guidance, int | float):
        guidance = Guidance(text=guidance)
    if not isinstance(guidance, Guidance | Contrastive):
        raise RequestError(
            f"guidance must be a number, a Guidance or a Contrastive, got {guidance!r}."
        )
    if guidance == Guidance():
        return None
    if limits.max_images == 0:
        raise RequestError(
            "Guidance steers how images are drawn, but this answer draws none; leave guidance "
            "out, or let it draw."
        )
    return guidance
