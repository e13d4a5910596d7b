"""Prompts in, documents out: what Python users call."""

from collections.abc import Sequence
from heapq import nlargest

from pardalis.bundle import Bundle
from pardalis.documents import Document
from pardalis.inference.config import EngineConfig
from pardalis.inference.engine import Answer, Engine
from pardalis.inference.events import Finished
from pardalis.inference.prompt import Mode, Prompt, to_request
from pardalis.inference.request import PictureGuide, Request, SamplingConfig


def generate(
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
    guidance: float | PictureGuide = 1.0,
    chat: bool = False,
    seed: int = 0,
) -> list[Document]:
    """Answer prompts, many at once; each is checked before the first is answered.

    Args:
        mode: ``text`` writes text only, ``picture`` draws ``max_pictures`` (default 1) and writes
            nothing, ``interleaved`` lets the model decide when to draw. A model whose image
            tokenizer has no decoder (an imported one may not) only writes text.
        max_tokens: ids an answer may have; default: what the model's context leaves.
        max_pictures: pictures an answer may have; default: 1 for ``picture``, no limit otherwise.
        text: how text is sampled; default: the most likely id.
        picture: how codes are sampled; default: temperature 0.7, top-p 0.9.
        guidance: of pictures. A number is the scale of classifier-free guidance: 1 is none, more
            follows the prompt closer. :class:`Guidance` and :class:`Contrastive` say more.
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
    requests = [
        to_request(
            bundle,
            prompt,
            mode=mode,
            max_tokens=max_tokens,
            max_pictures=max_pictures,
            text=text,
            picture=picture,
            guidance=guidance,
            chat=chat,
            seed=seed,
            number=number,
        )
        for number, prompt in enumerate(prompts)
    ]
    if not requests:
        return []
    answers: list[Answer] = []
    with Engine(bundle, fitting(requests)) as engine:
        n_open = 0
        for request in requests:
            while n_open >= 2 * engine.config.max_rows:  # enough that no row is ever free
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
    max_rows = max(max(rows), min(sum(rows), default.max_rows))
    whole = [len(r.prompt_ids) + r.limits.room for r in requests]
    lengths = (n for n, n_rows in zip(whole, rows, strict=True) for _ in range(n_rows))
    pages = (-(-n // default.page_size) + 1 for n in nlargest(max_rows, lengths))
    return EngineConfig(
        max_rows=max_rows,
        cache_ids=sum(pages) * default.page_size,
        quantum=max(whole),  # whoever waits for all gains nothing when one gives way
    )
