"""Other ways of ``pardalis generate``: masks are filled in, the best of several is kept, tasks."""

import argparse
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pardalis.cli.common import add_number
from pardalis.errors import RequestError
from pardalis.inference.generation import GenerationConfig

if TYPE_CHECKING:
    from pardalis.bundle import Bundle
    from pardalis.inference import Response

_MASK = re.compile(r"<mask(?::(text|image|any))?>")
_UNKNOWN_MASK = re.compile(r"<mask:[^<>]*>")
_HELD = re.compile(r"(\d*\.?\d+):(\d*\.?\d+)", re.ASCII)
_POOLS = ("same", "half_top_p_half_cd_k")  # as in inference.candidates, which imports torch
_SCORERS = ("prompt", "likelihood")
_OF_CANDIDATES = ("pool", "pool_alpha", "pool_k", "rank_by")


def refuse_unread(options: argparse.Namespace) -> None:
    """Raise RequestError for an option of infilling or of candidates that nothing reads."""
    unread = [] if options.infill else [("hide", "infill")]
    if options.candidates is None:
        unread += [(name, "candidates") for name in _OF_CANDIDATES]
    for name, needed in unread:
        if _is_given(options, name):
            raise RequestError(f"{name} applies to `{needed}` only; give that too.")


def _is_given(options: argparse.Namespace, name: str) -> bool:
    return getattr(options, name) is not None


def add_task(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--task", metavar="NAME",
        help="the parts are the fields of a task of instruction tuning: edit (image, instruction), "
        "structure (kind, structure, caption), grounding (caption, objects), caption (image) or "
        "vqa (image, question); what it generates and its guidance follow from it",
    )  # fmt: skip


def of_task(
    name: str, parts: Sequence[Any], config: GenerationConfig, given: Container[str] = ()
) -> tuple[list[Any], GenerationConfig]:
    """Return the prompt of a task, and its options where the command line gives no others.

    Args:
        given: names of the options of ``config`` that the command line gives.

    Raises:
        RequestError: there is no such task, or it has other fields.
    """
    from pardalis.documents import task_document, task_of
    from pardalis.errors import DataError

    try:
        names = task_of(name).prompt_fields
        if len(parts) != len(names):
            raise RequestError(
                f"The task {name!r} takes {len(names)} parts: {', '.join(names)}; got {len(parts)}."
            )
        document = task_document(name, dict(zip(names, parts, strict=True)))
    except DataError as error:
        raise RequestError(str(error)) from error
    options = {key: value for key, value in task_of(name).options.items() if key not in given}
    return [document], config.with_options(options)


def add_infilling(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--infill", action="store_true", help="fill in <mask>, <mask:image> and <mask:any> of texts"
    )
    group.add_argument(
        "--hide", metavar="TOP:BOTTOM",
        help="with --infill: fill in these rows of the prompt's only image, 0 is its top, 1 its "
        "bottom",
    )  # fmt: skip


def add_candidates(group: argparse._ArgumentGroup) -> None:
    add_number(group, "--candidates", "generate N completions and keep the best one")
    group.add_argument(
        "--pool", choices=_POOLS,
        help="how they are sampled: all alike (default), or half of them as the options say and "
        "half by contrastive decoding, as in CM3Leon",
    )  # fmt: skip
    group.add_argument(
        "--pool-alpha", type=float, metavar="X",
        help="contrastive alpha of that half (default: 0.1)",
    )  # fmt: skip
    group.add_argument("--pool-k", type=int, metavar="N", help="contrastive k of it (default: 10)")
    group.add_argument(
        "--rank-by", choices=_SCORERS,
        help="score: log-probability of the prompt's text after the images (default), or of the "
        "completion after the prompt; per token",
    )  # fmt: skip


def infilled(
    bundle: "Bundle",
    parts: Sequence[Any],
    options: argparse.Namespace,
    config: GenerationConfig,
    how: Mapping[str, Any],
) -> "Response":
    """Return the document of the prompt with its masks filled in.

    Args:
        how: adapters and options of the engine, as :func:`pardalis.infill` takes them.
    """
    from pardalis.inference import infill

    return infill(bundle, with_masks(parts, options.hide), config, **how)


def with_masks(parts: Sequence[Any], hide: str | None = None) -> list[Any]:
    """Return parts of a prompt with a ``Mask`` in the place of each ``<mask>``.

    Raises:
        RequestError: ``hide`` names no rows, there is not one image, or a mask has another form.
    """
    from pardalis.documents import Text
    from pardalis.inference import Mask

    found: list[Any] = []
    for part in parts:
        if not isinstance(part, str):
            found.append(part)
            continue
        if unknown := _UNKNOWN_MASK.search(_MASK.sub("", part)):
            raise RequestError(
                f"There is no {unknown[0]}; a mask is <mask>, <mask:image> or <mask:any>."
            )
        texts = _MASK.split(part)  # text, what a mask holds, text, ...
        found.append(Text(texts[0]))
        for holds, text in zip(texts[1::2], texts[2::2], strict=True):
            found += [Mask(holds or "text"), Text(text)]
    if hide is None:
        return found
    images = [part for part in found if isinstance(part, Path)]
    rows = _HELD.fullmatch(hide)
    if rows is None or len(images) != 1:
        wrong = f"got {hide!r}" if rows is None else f"the prompt has {len(images)}"
        raise RequestError(
            f"--hide takes rows TOP:BOTTOM of one image, such as 0.5:1, but {wrong}; correct it."
        )
    masked = Mask(image=images[0], rows=(float(rows[1]), float(rows[2])))
    return [masked if part is images[0] else part for part in found]


def ranked(
    bundle: "Bundle",
    parts: Sequence[Any],
    options: argparse.Namespace,
    config: GenerationConfig,
    how: Mapping[str, Any],
) -> tuple["Response", dict[str, Any]]:
    """Return the best candidate, and the scores of all, best first.

    Args:
        how: adapters, retriever and options of the engine, as ``generate_ranked`` takes them.
    """
    from pardalis.inference import generate_ranked

    found = generate_ranked(
        bundle,
        list(parts),
        config,
        candidates=options.candidates,
        **{name: getattr(options, name) for name in _OF_CANDIDATES if _is_given(options, name)},
        **how,
    )
    scores = [{"candidate": each.number, "score": each.score} for each in found]
    return found[0].response, {"scores": scores}
