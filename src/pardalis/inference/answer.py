"""Prompts in, documents out: what Python users call."""

from collections.abc import Sequence
from heapq import nlargest

from pardalis.bundle import Bundle
from pardalis.documents import Document
from pardalis.inference.config import EngineConfig
from pardalis.inference.engine import Completion, Engine
from pardalis.inference.events import Finished
from pardalis.inference.prompt import GenerationMode, Prompt, to_request
from pardalis.inference.request import ImageGuidance, Request, SamplingConfig


def generate(
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
) -> Document:
    """Answer one prompt; arguments as of :func:`generate_many`."""
    [answer] = generate_many(
        bundle,
        [prompt],
        mode=mode,
        max_new_tokens=max_new_tokens,
        max_images=max_images,
        text=text,
        image=image,
        guidance=guidance,
        chat=chat,
        seed=seed,
    )
    return answer


def generate_many(
    bundle: Bundle,
    prompts: Sequence[Prompt],
    *,
    mode: GenerationMode = "interleaved",
    max_new_tokens: int | None = None,
    max_images: int | None = None,
    text: SamplingConfig | None = None,
    image: SamplingConfig | None = None,
    guidance: float | ImageGuidance = 1.0,
    chat: bool = False,
    seed: int = 0,
) -> list[Document]:
    """Answer prompts, many at once; each is checked before the first is answered.

    Args:
        mode: ``text`` writes text only, ``image`` draws ``max_images`` (default 1) and writes
            nothing, ``interleaved`` lets the model decide when to draw. A model whose image
            tokenizer has no decoder (an imported one may not) only writes text.
        max_new_tokens: ids an answer may have; default: what the model's context leaves.
        max_images: images an answer may have; default: 1 for ``image``, no limit otherwise.
        text: how text is sampled; default: the most likely id.
        image: how codes are sampled; default: temperature 0.7, top-p 0.9.
        guidance: of images. A number is the scale of classifier-free guidance: 1 is none, more
            follows the prompt closer. :class:`Guidance` and :class:`Contrastive` say more.
        chat: read a prompt as a user's turn, which the model answers in its own; otherwise it goes
            on with the prompt. A prompt that is a document has its own roles.
        seed: the answer to prompt number i depends on (seed, i) and the prompt, not on the others.

    Returns:
        The answers, without their prompts.

    Raises:
        RequestError: a prompt leaves no room for what is asked, or an image is asked of a model
            that cannot draw.
        DataError: an image of a prompt cannot be read.
    """
    requests = [
        to_request(
            bundle,
            prompt,
            mode=mode,
            max_new_tokens=max_new_tokens,
            max_images=max_images,
            text=text,
            image=image,
            guidance=guidance,
            chat=chat,
            seed=seed,
            number=number,
        )
        for number, prompt in enumerate(prompts)
    ]
    if not requests:
        return []
    answers: list[Completion] = []
    with Engine(bundle, fitting(requests)) as engine:
        n_open = 0
        for request in requests:
            while n_open >= 2 * engine.config.max_slots:  # enough that no row is ever free
                n_open -= _finished(engine)
            answers.append(engine.submit_request(request))
            n_open += 1
        return [answer.wait() for answer in answers]


def _finished(engine: Engine) -> int:
    """Run a step; return how many answers it completed."""
    return sum(isinstance(event, Finished) for event in engine.step())


def fitting(requests: Sequence[Request]) -> EngineConfig:
    """Return a configuration for requests of one client, with no larger a cache than they need."""
    default = EngineConfig()
    rows = [1 if r.guidance is None else 3 for r in requests]
    max_slots = max(max(rows), min(sum(rows), default.max_slots))
    whole = [len(r.prompt_ids) + r.limits.max_new_tokens for r in requests]
    lengths = (n for n, n_rows in zip(whole, rows, strict=True) for _ in range(n_rows))
    pages = (-(-n // default.page_size) + 1 for n in nlargest(max_slots, lengths))
    return EngineConfig(
        max_slots=max_slots,
        cache_tokens=sum(pages) * default.page_size,
        quantum_steps=max(whole),  # whoever waits for all gains nothing when one gives way
    )
