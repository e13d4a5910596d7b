"""Filters by name: those of Pardalis in one table, and those of others as ``module:function``."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

import PIL.Image

from pardalis.documents import Document, Image, Text
from pardalis.errors import ConfigError
from pardalis.imports import import_named
from pardalis.serve.filters.blocklist import blocklist
from pardalis.serve.filters.nsfw import nsfw

Part: TypeAlias = str | PIL.Image.Image
RequestFilter: TypeAlias = Callable[[Document], str | None]
AnswerFilter: TypeAlias = Callable[[Part], str | None]

# A filter of parts by its name; what stands behind the name and a colon is its argument. Of a
# request it judges each text and each image.
BUILT_IN: dict[str, Callable[[str], AnswerFilter]] = {"blocklist": blocklist, "nsfw": nsfw}
_READ_NO_IMAGES = ("blocklist",)  # so that those of a prompt need not be decoded


@dataclass(frozen=True, slots=True)
class Named:
    """A filter, and what metrics and the log call it."""

    name: str
    function: Callable[[Any], str | None]
    reads_images: bool = True


class Filters:
    """The filters of requests and of answers, each in the order in which they judge.

    Args:
        requests: functions, or texts such as ``blocklist:words.txt``, ``nsfw:0.8`` and
            ``my_filters:is_allowed``; for a module the path of a Python file may stand.
        answers: likewise.

    Raises:
        ConfigError: a filter cannot be loaded.
    """

    def __init__(
        self,
        requests: Iterable[str | RequestFilter] = (),
        answers: Iterable[str | AnswerFilter] = (),
    ) -> None:
        self.requests = tuple(_loaded(each, _over_parts) for each in requests)
        self.answers = tuple(_loaded(each, lambda built_in, _: built_in) for each in answers)


def _loaded(
    given: str | Callable[[Any], str | None],
    adapt: Callable[[AnswerFilter, bool], Callable[..., Any]],
) -> Named:
    if callable(given):
        return Named(_checked(given, getattr(given, "__name__", type(given).__name__)), given)
    name, _, argument = given.partition(":")
    if build := BUILT_IN.get(name):
        reads_images = name not in _READ_NO_IMAGES
        return Named(given, adapt(build(argument), reads_images), reads_images)
    module, colon, function = given.rpartition(":")
    if not (colon and module and function):
        raise ConfigError(
            f"There is no filter {given!r}; give module:function, or one of {', '.join(BUILT_IN)}."
        )
    found = getattr(import_named(module), function, None)
    if found is None:
        raise ConfigError(f"The module {module} has no function {function!r}.")
    return Named(_checked(found, given), found)


def _checked(function: Any, name: str) -> str:
    if not callable(function) or inspect.iscoroutinefunction(function):
        kind = "async" if callable(function) else f"of type {type(function).__name__}"
        raise ConfigError(f"The filter {name} is {kind}; it must be a plain function.")
    return name


def _over_parts(judge: AnswerFilter, reads_images: bool) -> RequestFilter:
    """Return a filter of requests that refuses those with a part that another one refuses."""

    def judge_document(document: Document) -> str | None:
        return next(filter(None, map(judge, _parts(document, reads_images))), None)

    return judge_document


def _parts(document: Document, images: bool) -> Iterator[Part]:
    """Yield the images, if asked, and the texts, and neighbouring texts of one role also as one.

    A word may be split between texts, and it may lose its end where another text is joined to it.
    """
    for role, segments in groupby(document.segments, _text_role):
        if role is not None:
            texts = [segment.text for segment in segments if isinstance(segment, Text)]
            yield "".join(texts)
            if len(texts) > 1:
                yield from texts
            continue
        for segment in segments if images else ():
            assert isinstance(segment, Image) and isinstance(segment.source, PIL.Image.Image)
            yield segment.source


def _text_role(segment: Text | Image) -> str | None:
    """Return whose text a segment is; None for an image."""
    return (segment.role or "") if isinstance(segment, Text) else None
