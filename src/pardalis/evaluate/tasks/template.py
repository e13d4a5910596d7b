"""Templates of prompts and answers: text with ``{field}`` where a field of an item stands.

A task file is data that people exchange, so a template is no program: it names fields, and nothing
in it can take time or memory. What has to be computed is computed by a layout, which gives the item
another field.

    Question: {question}      a text, a number, an image, or a document of texts and images
    {choices.text}            an entry of a table; {choices.0} is the first of a list
    {choices|lettered}        a filter, of :data:`FILTERS`
    {{ and }}                 braces
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pardalis.documents import Document, Image, Segment, Text
from pardalis.errors import ConfigError, DataError

_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_SHOWN_FIELDS = 20
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _lettered(value: Any) -> str:
    """Return the lines "A. first", "B. second" of a list of texts."""
    if not isinstance(value, list | tuple) or len(value) > len(_LETTERS):
        raise DataError(f"a list of at most {len(_LETTERS)} texts is needed")
    return "\n".join(
        f"{letter}. {_text(each)}" for letter, each in zip(_LETTERS, value, strict=False)
    )


FILTERS: dict[str, Callable[[Any], str]] = {
    "lettered": _lettered,
    "strip": lambda value: _text(value).strip(),
    "lower": lambda value: _text(value).lower(),
    "capitalized": lambda value: _text(value)[:1].upper() + _text(value)[1:],
}


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    filters: tuple[str, ...]


class Template:
    """A parsed template.

    Args:
        source: its text.
        name: the option of the task that holds it, which messages name.

    Raises:
        ConfigError: a brace is alone, a field has no name, or there is no such filter.
    """

    def __init__(self, source: str, name: str = "template") -> None:
        self.source, self.name = source, name
        self._parts: list[str | _Field] = []
        last = 0
        for found in _PART.finditer(source):
            self._parts.append(source[last : found.start()])
            last = found.end()
            if found[0] in ("{{", "}}"):
                self._parts.append(found[0][0])
            elif found[1] is None:
                raise ConfigError(
                    f"{name} has a brace {found[0]!r} alone at character {found.start()}; write "
                    f"{found[0] * 2} for the character, or {{name}} for a field."
                )
            else:
                self._parts.append(self._field(found[1]))
        self._parts.append(source[last:])
        self._parts = [part for part in self._parts if part != ""]

    def _field(self, text: str) -> _Field:
        field, *filters = (part.strip() for part in text.split("|"))
        if not field:
            raise ConfigError(f"{self.name} has a field without a name, {{{text}}}.")
        for each in filters:
            if each not in FILTERS:
                raise ConfigError(
                    f"{self.name} has the filter {each!r}; it must be one of {', '.join(FILTERS)}."
                )
        return _Field(field, tuple(filters))

    def segments(self, fields: Mapping[str, Any]) -> list[Segment]:
        """Return the filled template; texts that follow each other are one.

        Raises:
            DataError: the item has no such field, or its value cannot stand in a text.
        """
        return joined(
            segment
            for part in self._parts
            for segment in ([Text(part)] if isinstance(part, str) else self._filled(part, fields))
        )

    def text(self, fields: Mapping[str, Any]) -> str:
        """Return the filled template, which has no images; raises DataError as above."""
        segments = self.segments(fields)
        if any(isinstance(segment, Image) for segment in segments):
            raise DataError(
                f"the template {self.name!r} holds an image, where only text can stand."
            )
        return "".join(segment.text for segment in segments if isinstance(segment, Text))

    def alternatives(self, fields: Mapping[str, Any]) -> list[list[Segment]]:
        """Return the filled template, or one for each entry if it is a field that is a list."""
        value = self.alone(fields)
        if isinstance(value, list | tuple) and isinstance(field := self._parts[0], _Field):
            return [joined(self._as_segments(field, each)) for each in value]
        return [self.segments(fields)]

    def alone(self, fields: Mapping[str, Any]) -> Any:
        """Return the value of the field that the template is; None if it is more than that."""
        match self._parts:
            case [_Field(filters=()) as field]:
                return self._value(field, fields)
        return None

    def _filled(self, field: _Field, fields: Mapping[str, Any]) -> list[Segment]:
        value = self._value(field, fields)
        for name in field.filters:
            try:
                value = FILTERS[name](value)
            except DataError as error:
                raise DataError(
                    f"the template {self.name!r} applies the filter {name!r} to "
                    f"{{{field.name}}}: {error}."
                ) from error
        return self._as_segments(field, value)

    def _value(self, field: _Field, fields: Mapping[str, Any]) -> Any:
        if field.name in fields:
            return fields[field.name]
        value: Any = fields
        for name in field.name.split("."):
            if isinstance(value, Mapping) and name in value:
                value = value[name]
            elif isinstance(value, Sequence) and name.isdecimal() and int(name) < len(value):
                value = value[int(name)]
            else:
                raise self._unknown(field.name, fields)
        return value

    def _unknown(self, name: str, fields: Mapping[str, Any]) -> DataError:
        near = difflib.get_close_matches(name, fields, n=1)
        hint = f"did you mean {{{near[0]}}}? " if near else ""
        shown = sorted(fields)[:_SHOWN_FIELDS]
        more = ", ..." if len(fields) > len(shown) else ""
        return DataError(
            f"the template {self.name!r} names the field {{{name}}}, which the item does not have; "
            f"{hint}its fields are {', '.join(shown)}{more}."
        )

    def _as_segments(self, field: _Field, value: Any) -> list[Segment]:
        match value:
            case Image():
                return [value]
            case Document():
                return list(value.segments)
            case list() | tuple() if value and all(isinstance(each, Image) for each in value):
                return list(value)
        try:
            return [Text(_text(value))]
        except DataError as error:
            raise DataError(
                f"the template {self.name!r} names the field {{{field.name}}}: {error}."
            ) from error


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    if value is None:
        raise DataError("the item has no value there")
    kind = "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"
    raise DataError(f"it is {kind}, where a text, a number or an image can stand")


def joined(segments: Iterable[Segment]) -> list[Segment]:
    """Return segments in which texts of one role that follow each other are one."""
    found: list[Segment] = []
    for segment in segments:
        if isinstance(segment, Text):
            if not segment.text:
                continue
            last = found[-1] if found else None
            if isinstance(last, Text) and last.role == segment.role:
                found[-1] = Text(last.text + segment.text, last.role)
                continue
        found.append(segment)
    return found
