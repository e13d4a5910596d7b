"""From a prompt as a person gives it to a request: what is asked, checked against the model."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from PIL import Image

from pardalis.bundle import Bundle
from pardalis.documents import Document, Picture, Role, Segment, Text
from pardalis.errors import RequestError
from pardalis.inference.request import (
    Contrastive,
    Guidance,
    PictureGuide,
    Request,
    SamplingConfig,
    is_count,
)
from pardalis.seeds import derive
from pardalis.tokens import Limits

Mode = Literal["text", "picture", "interleaved"]
Part = str | Path | bytes | Image.Image
# Text takes the most likely id; pictures are sampled as in Chameleon's release.
TEXT_SAMPLING = SamplingConfig(temperature=0.0)
PICTURE_SAMPLING = SamplingConfig(temperature=0.7, top_p=0.9)

Prompt = Part | Sequence[Part] | Document


def as_document(prompt: Prompt, role: Role | None = None) -> Document:
    """Read a prompt: a string is text; a path, bytes or a PIL image is a picture.

    Args:
        role: whose turn it is; a document has its own roles.
    """
    if isinstance(prompt, Document):
        return prompt
    parts = [prompt] if isinstance(prompt, str | Path | bytes | Image.Image) else prompt
    segments: list[Segment] = [
        Text(p, role=role) if isinstance(p, str) else Picture(p, role=role) for p in parts
    ]
    return Document(tuple(segments))


def to_request(
    bundle: Bundle,
    prompt: Prompt,
    *,
    mode: Mode = "interleaved",
    max_tokens: int | None = None,
    max_pictures: int | None = None,
    text: SamplingConfig | None = None,
    picture: SamplingConfig | None = None,
    guidance: float | PictureGuide = 1.0,
    chat: bool = False,
    seed: int = 0,
    number: int = 0,
) -> Request:
    """Return the request of a prompt; arguments as of :func:`pardalis.generate_many`.

    Args:
        number: of the prompt among those that share the seed.

    Raises:
        RequestError: the prompt leaves no room for what is asked, or a picture is asked of a model
            that cannot draw.
        DataError: a picture of the prompt cannot be read.
    """
    limits = _limits(bundle, mode, max_tokens, max_pictures)
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
        room=min(limits.room, context - len(prompt_ids)),
        one_turn=bool(document.segments) and document.segments[-1].role is not None,
    )
    bundle.codec.grammar.begin(prompt_ids, limits)  # checks them
    return Request(
        prompt_ids=tuple(prompt_ids),
        limits=limits,
        text=text or TEXT_SAMPLING,
        picture=picture or PICTURE_SAMPLING,
        guidance=guide,
        seed=derive(seed, "answer", number),
    )


def _limits(bundle: Bundle, mode: Mode, max_tokens: int | None, max_pictures: int | None) -> Limits:
    """Return what may be written, as if there were no prompt."""
    room = bundle.model.config.context if max_tokens is None else max_tokens
    if not (is_count(room) and room):
        raise RequestError(f"max_tokens must be a whole number, 1 or more, got {max_tokens}.")
    if not (max_pictures is None or is_count(max_pictures)):
        raise RequestError(f"max_pictures must be a whole number, 0 or more, got {max_pictures}.")
    if not bundle.codec.image_tokenizer.config.has_decoder:
        max_pictures = _no_pictures(mode, max_pictures)
    match mode:
        case "text":
            if max_pictures:
                raise RequestError(
                    "mode 'text' draws nothing; leave max_pictures out or choose another mode."
                )
            return Limits(max_pictures=0, room=room)
        case "picture":
            return Limits(
                text=False, max_pictures=1 if max_pictures is None else max_pictures, room=room
            )
        case "interleaved":
            return Limits(max_pictures=max_pictures, room=room)
    raise RequestError(f"mode must be 'text', 'picture' or 'interleaved', got {mode!r}.")


def _no_pictures(mode: Mode, max_pictures: int | None) -> int:
    """Return the limit of a model that cannot draw; raises RequestError when it is asked to."""
    if mode == "picture" or max_pictures:
        raise RequestError(
            "This model's image tokenizer has no decoder, so it reads pictures but cannot draw; "
            "ask for text, or import it again with --image-tokenizer."
        )
    return 0


def _guide(guidance: float | PictureGuide, limits: Limits) -> PictureGuide | None:
    if isinstance(guidance, int | float):
        guidance = Guidance(text=guidance)
    if not isinstance(guidance, Guidance | Contrastive):
        raise RequestError(
            f"guidance must be a number, a Guidance or a Contrastive, got {guidance!r}."
        )
    if guidance == Guidance():
        return None
    if limits.max_pictures == 0:
        raise RequestError(
            "Guidance steers how pictures are drawn, but this answer draws none; leave guidance "
            "out, or let it draw."
        )
    return guidance
