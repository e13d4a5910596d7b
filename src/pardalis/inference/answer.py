"""Prompts in, documents out: what the command line and Python users call."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from PIL import Image

from pardalis.bundle import Bundle
from pardalis.documents import Document, Picture, Role, Segment, Text
from pardalis.errors import RequestError
from pardalis.inference.cached import generate_cached
from pardalis.inference.request import Request, SamplingConfig
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


def generate(
    bundle: Bundle,
    prompt: Prompt,
    *,
    mode: Mode = "interleaved",
    max_tokens: int | None = None,
    max_pictures: int | None = None,
    text: SamplingConfig | None = None,
    picture: SamplingConfig | None = None,
    guidance: float = 1.0,
    chat: bool = False,
    seed: int = 0,
) -> Document:
    """Answer one prompt; arguments as of :func:`generate_many`."""
    [answer] = generate_many(
        bundle,
        [prompt],
        mode=mode,
        max_tokens=max_tokens,
        max_pictures=max_pictures,
        text=text,
        picture=picture,
        guidance=guidance,
        chat=chat,
        seed=seed,
    )
    return answer


def generate_many(
    bundle: Bundle,
    prompts: Sequence[Prompt],
    *,
    mode: Mode = "interleaved",
    max_tokens: int | None = None,
    max_pictures: int | None = None,
    text: SamplingConfig | None = None,
    picture: SamplingConfig | None = None,
    guidance: float = 1.0,
    chat: bool = False,
    seed: int = 0,
) -> list[Document]:
    """Answer prompts in one batch.

    Args:
        mode: ``text`` writes text only, ``picture`` draws ``max_pictures`` (default 1) and writes
            nothing, ``interleaved`` lets the model decide when to draw. A model whose image
            tokenizer has no decoder (an imported one may not) only writes text.
        max_tokens: ids an answer may have; default: what the model's context leaves.
        max_pictures: pictures an answer may have; default: 1 for ``picture``, no limit otherwise.
        text: how text is sampled; default: the most likely id.
        picture: how codes are sampled; default: temperature 0.7, top-p 0.9.
        guidance: classifier-free guidance of pictures; 1 is none, more follows the prompt closer.
        chat: read a prompt as a user's turn, which the model answers in its own; otherwise it goes
            on with the prompt. A prompt that is a document has its own roles.
        seed: the answer to prompt number i depends on (seed, i) and the prompt, not on the others.

    Returns:
        The answers, without their prompts.

    Raises:
        RequestError: a prompt leaves no room for what is asked, or a picture is asked of a model
            that cannot draw.
        DataError: a picture of a prompt cannot be read.
    """
    if not bundle.codec.image_tokenizer.config.has_decoder:
        max_pictures = _no_pictures(mode, max_pictures)
    documents = [as_document(prompt, "user" if chat else None) for prompt in prompts]
    requests = []
    for i, document in enumerate(documents):
        prompt_ids = bundle.codec.encode_prompt(document)
        room = bundle.model.config.context - len(prompt_ids)
        if room < 1:
            raise RequestError(
                f"The prompt has {len(prompt_ids)} ids, which fills the model's context of "
                f"{bundle.model.config.context}; shorten it."
            )
        room = room if max_tokens is None else min(max_tokens, room)
        limits = _limits(mode, room, max_pictures)
        requests.append(
            Request(
                prompt_ids=tuple(prompt_ids),
                limits=replace(limits, one_turn=_is_conversation(document)),
                text=text or TEXT_SAMPLING,
                picture=picture or PICTURE_SAMPLING,
                guidance=guidance,
                seed=derive(seed, "answer", i),
            )
        )
    answers = generate_cached(bundle.model, bundle.codec.grammar, requests)
    return [
        _as_answer(bundle, ids, _is_conversation(document))
        for ids, document in zip(answers, documents, strict=True)
    ]


def _is_conversation(document: Document) -> bool:
    return bool(document.segments) and document.segments[-1].role is not None


def _as_answer(bundle: Bundle, token_ids: list[int], conversation: bool) -> Document:
    """Decode what was written; in a conversation it is the assistant's turn, without its end."""
    vocabulary = bundle.codec.vocabulary
    if conversation and token_ids[-1:] == [vocabulary.end_turn_id]:
        token_ids = token_ids[:-1]
    answer = bundle.codec.decode([vocabulary.bos_id, *token_ids])
    if not conversation:
        return answer
    return replace(answer, segments=tuple(replace(s, role="assistant") for s in answer.segments))


def _no_pictures(mode: Mode, max_pictures: int | None) -> int:
    """Return the limit of a model that cannot draw; raises RequestError when it is asked to."""
    if mode == "picture" or max_pictures:
        raise RequestError(
            "This model's image tokenizer has no decoder, so it reads pictures but cannot draw; "
            "ask for text, or import it again with --image-tokenizer."
        )
    return 0


def _limits(mode: Mode, room: int, max_pictures: int | None) -> Limits:
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
