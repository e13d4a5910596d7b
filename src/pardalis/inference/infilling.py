"""Infilling: a document with masks in, the whole document out.

The model reads the document with the masks, and then writes what stands in the place of each
(:mod:`pardalis.tokens.infilling`). Captions and images are special cases: a mask before an image,
and an image to be filled before or behind its text.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pardalis.bundle import Bundle, as_bundle
from pardalis.documents import Document, Image, Segment, Text
from pardalis.errors import RequestError
from pardalis.inference.adapters import Adapters
from pardalis.inference.api import complete
from pardalis.inference.engine import Completion
from pardalis.inference.events import Usage
from pardalis.inference.generation import GenerationConfig, Guidance, documents_options
from pardalis.inference.mask import Mask, is_mask, to_mask
from pardalis.inference.prompt import check_length, check_unconditional
from pardalis.inference.prompt_parts import is_part, to_document
from pardalis.inference.request import Request
from pardalis.inference.response import Response
from pardalis.seeds import derive
from pardalis.tokens import Limits


@documents_options
def infill(
    bundle: Bundle | Path | str,
    prompt: Sequence[Any],
    config: GenerationConfig | None = None,
    *,
    adapters: Adapters | None = None,
    engine_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Response:
    """Fill in the masks of a document, for models that have learnt it (the transform ``cm3``).

        page = pardalis.infill(bundle, ["An owl", Mask(), "by night.", Path("owl.png")])
        page.text, page.filled[0].text

    A space before a mask belongs to what is filled in.

    Args:
        bundle: as :func:`pardalis.generate` takes it.
        prompt: parts in order, as :func:`pardalis.generate` takes them, and :class:`Mask`, which
            may be written as in a file of prompts, such as {"mask": true}.
        config: options as one object; ``mode`` and ``chat`` do not apply.
        adapters: folders of adapters by name.
        engine_options: fields of :class:`pardalis.EngineConfig`.
        options: fields of :class:`pardalis.GenerationConfig`, which replace those of ``config``.

    Options:
        {options}

    Returns:
        The whole document. Its field ``filled`` has what was filled in for each mask, in order.

    Raises:
        RequestError: the model has not learnt to infill, or so many masks; there is no mask; the
            prompt or an option is wrong, or the document leaves too small a token budget.
        DataError: an image cannot be read.
    """
    how = {"adapters": adapters, "engine_options": engine_options}
    [response] = infill_many(bundle, [prompt], config, **how, **options)
    return response


def infill_many(
    bundle: Bundle | Path | str,
    prompts: Iterable[Sequence[Any]],
    config: GenerationConfig | None = None,
    *,
    adapters: Adapters | None = None,
    engine_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[Response]:
    """Fill in the masks of many documents in one batch; as :func:`infill` for each."""
    bundle = as_bundle(bundle)
    config = GenerationConfig.of(config, options)
    documents = [Infilling(bundle, each, config, number=n) for n, each in enumerate(prompts)]
    while waiting := [each for each in documents if each.is_open]:
        requests = [each.request() for each in waiting]
        completions = complete(bundle, requests, adapters, engine_options)
        for each, completion in zip(waiting, completions, strict=True):
            each.add(completion)
    return [each.response() for each in documents]


class Infilling:
    """A document with masks that are filled one after the other, in token ids.

    Args:
        prompt: as :func:`infill` takes it.
        number: index of the prompt among those that share the seed.
    """

    def __init__(
        self, bundle: Bundle, prompt: Sequence[Any], config: GenerationConfig, *, number: int = 0
    ) -> None:
        self._bundle, self._config, self._number = bundle, config, number
        self._parts = _parts(prompt)
        self._masks = [part for part in self._parts if isinstance(part, Mask)]
        _check(bundle, config, self._masks)
        texts = (part for part in self._parts if isinstance(part, Text))
        check_length(bundle, Document(tuple(texts)))
        self._completions: list[Completion] = []
        self._filled: list[Document] = []
        self._ids = self._rotated_body()

    @property
    def is_open(self) -> bool:
        """Whether a mask is left to be filled."""
        return len(self._filled) < len(self._masks)

    def request(self) -> Request:
        """Return the request that fills the next mask.

        Raises:
            RequestError: the document leaves too small a token budget.
        """
        config, grammar = self._config, self._bundle.codec.grammar
        number = len(self._filled)
        mask, ids = self._masks[number], [*self._ids, grammar.vocabulary.masks[number]]
        context = self._bundle.model.context
        taken = len(ids) + sum(map(self._needed, self._masks[number + 1 :]))
        budget = context - taken
        if budget < 1:
            raise RequestError(
                f"The document takes {taken} tokens with its masks, which fill the model's context "
                f"of {context}; shorten it."
            )
        may_draw = mask.is_image or mask.holds == "any"
        if not mask.is_image and config.max_new_tokens is not None:
            budget = min(budget, config.max_new_tokens)
        limits = Limits(
            max_new_tokens=budget,
            text=not mask.is_image,
            max_images=config.max_images if mask.holds == "any" and not mask.is_image else 0,
            one_gap=True,
        )
        grammar.begin(ids, limits)  # checks both
        names = ("answer", self._number) if number == 0 else ("answer", self._number, "gap", number)
        return Request(
            prompt_ids=tuple(ids),
            limits=limits,
            text=config.text_sampling,
            image=config.image_sampling,
            guidance=config.guidance_method if may_draw else None,
            unconditional=config.unconditional,
            seed=derive(config.seed, *names),
            logprobs=config.logprobs,
            stop=config.stop,
            adapter=config.adapter,
        )

    def add(self, completion: Completion) -> None:
        """Take the completion of :meth:`request`; raises RequestError if an image failed."""
        vocabulary = self._bundle.codec.vocabulary
        mask = vocabulary.masks[len(self._filled)]
        ends = (vocabulary.end_mask_id, vocabulary.eos_id, vocabulary.end_image_id)
        ids = list(completion.token_ids)
        if ids and ids[-1] in ends[: 3 if self._masks[len(self._filled)].is_image else 2]:
            ids.pop()
        end = [] if vocabulary.end_mask_id is None else [vocabulary.end_mask_id]
        self._ids += [mask, *ids, *end]
        self._filled.append(Document(completion.wait().segments))
        self._completions.append(completion)

    def response(self) -> Response:
        """Return the whole document, once no mask is left."""
        segments: list[Segment] = []
        filled = iter(self._filled)
        for part in self._parts:
            for segment in next(filled).segments if isinstance(part, Mask) else [part]:
                if isinstance(segment, Text) and segments and isinstance(segments[-1], Text):
                    segments[-1] = replace(segments[-1], text=segments[-1].text + segment.text)
                else:
                    segments.append(segment)
        documents = [completion.wait() for completion in self._completions]
        reasons = [document.reason for document in documents]
        return Response(
            tuple(segments),
            reason="length" if "length" in reasons else reasons[-1],
            usage=_sum([document.usage for document in documents]),
            log_probs=tuple(token for document in documents for token in document.log_probs),
            filled=tuple(self._filled),
        )

    def _needed(self, mask: Mask) -> int:
        """Return the fewest tokens of a later mask: the end before it, the mask, its content."""
        if not mask.is_image:
            return 3
        side = self._bundle.codec.image_tokenizer.config.grid
        start, stop = _rows_of_codes(mask, side)
        return 3 + (stop - start) * side

    def _rotated_body(self) -> list[int]:
        codec = self._bundle.codec
        masks = iter(codec.vocabulary.masks)
        ids = list(codec.grammar.opening)
        for part in self._parts:
            if not isinstance(part, Mask):
                ids += codec.encode_continuation(Document((part,)))
            elif not part.is_image:
                ids.append(next(masks))
            elif part.image is None:
                begin, end = codec.vocabulary.begin_image_id, codec.vocabulary.end_image_id
                ids += [begin, next(masks), end]
            else:
                whole = codec.encode_continuation(Document((part.image,)))
                side = codec.image_tokenizer.config.grid
                first, stop = (1 + side * row for row in _rows_of_codes(part, side))
                ids += [*whole[:first], next(masks), *whole[stop:]]
        return ids


def _rows_of_codes(mask: Mask, side: int) -> tuple[int, int]:
    """Return the first row of codes that is hidden, and the first one behind those."""
    return math.floor(mask.rows[0] * side), math.ceil(mask.rows[1] * side)


def _parts(prompt: Any) -> list[Segment | Mask]:
    """Return the segments and masks of a prompt, without spaces before masks of text."""
    listed = [prompt] if is_mask(prompt) or is_part(prompt) else prompt
    parts: list[Segment | Mask] = []
    for part in listed:
        if is_mask(part):
            part = to_mask(part)
            if part.image is not None:
                [image] = to_document([part.image]).segments
                if not isinstance(image, Image):
                    raise RequestError("The `image` of a mask is a text; it must be an image.")
                part = replace(part, image=image)
            elif not part.is_image and parts and isinstance(parts[-1], Text):
                parts[-1] = replace(parts[-1], text=parts[-1].text.rstrip(" "))
            parts.append(part)
            continue
        parts += to_document([part]).segments
    if any(not isinstance(part, Mask) and part.role is not None for part in parts):
        raise RequestError("Masks are filled in documents, not in chat messages; give plain parts.")
    return [part for part in parts if not (isinstance(part, Text) and not part.text)]


def _check(bundle: Bundle, config: GenerationConfig, masks: Sequence[Mask]) -> None:
    """Raise RequestError if a model cannot fill these masks with these options."""
    vocabulary, n = bundle.codec.vocabulary, len(masks)
    if not masks:
        raise RequestError("The prompt has no mask; give `Mask()` where something is to be filled.")
    if not vocabulary.masks:
        raise RequestError(
            "This model has not learnt to infill: its vocabulary has no mask_0. Train one on "
            'sources with transforms = [{kind = "cm3"}].'
        )
    if n > 1 and vocabulary.end_mask_id is None:
        raise RequestError(
            f"This model's spans have no ends of their own, so it fills one mask, got {n}; leave "
            'the others out, or train a model with the form "metaseq" of the transform "cm3".'
        )
    if n > len(vocabulary.masks):
        raise RequestError(
            f"This model fills up to {len(vocabulary.masks)} masks, got {n}; leave some out."
        )
    if config.mode != "interleaved" or config.chat:
        name = "chat" if config.chat else "mode"
        raise RequestError(
            f"{name} does not apply to infilling, where each mask says what it holds; leave it out."
        )
    check_unconditional(bundle, config)
    images = [mask for mask in masks if mask.is_image or mask.holds == "any"]
    method = config.guidance_method
    if images and isinstance(method, Guidance) and method.image is not None:
        raise RequestError("image_guidance does not apply to infilling; use `guidance`.")
    if images and not bundle.codec.image_tokenizer.config.has_decoder:
        raise RequestError(
            "This model's image tokenizer has no decoder, so masks can hold text only."
        )


def _sum(used: Sequence[Usage]) -> Usage:
    """Return the use of successive requests for one document, whose prompt counts once."""
    return replace(
        used[0],
        completion_tokens=sum(each.completion_tokens for each in used),
        completion_image_tokens=sum(each.completion_image_tokens for each in used),
        images=sum(each.images for each in used),
        seconds=sum(each.seconds for each in used),
    )
