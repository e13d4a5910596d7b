"""Chat templates: how a model's conversations are written, as a Jinja template that came with it.

A rendered conversation consists of text, control tokens and images. Which is which does not follow
from the rendered text alone: a user may write ``<|im_end|>``, or ``<image>``. So marks that no text
contains are put into the contents before they are rendered: one before and after each text, one in
place of each image, and one inside each name of a control token, which then is none. The marks of
texts also tell whose turn each character belongs to. A template may treat a text with marks
otherwise than without, for instance when it strips spaces. Of three ways to mark, that one is taken
whose rendered text is the same as without marks of texts.
"""

import re
import secrets
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

from pardalis.errors import TemplateError
from pardalis.tokens.template_process import TemplateProcess

# Marks are private-use characters around digits: no method of strings changes them.
_BEGIN, _END, _IMAGE, _BREAK, _CLOSE = "\ue0b0", "\ue0b1", "\ue0b2", "\ue0b3", "\ue0bf"


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of a conversation: texts, and None for each image."""

    role: str
    parts: Sequence[str | None]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text, with what stands where in it.

    Parts are numbered through all turns. A part with no other text than spaces has no place.
    """

    text: str  # with the names of control tokens, without images
    control: list[tuple[int, int]] = field(default_factory=list)  # where those names stand
    images: list[tuple[int, int]] = field(default_factory=list)  # position and part of each image
    parts: dict[int, tuple[int, int]] = field(default_factory=dict)  # where the texts stand


@dataclass(frozen=True, slots=True)
class _Forms:
    """What a template takes as the content of a message, and what it writes for an image."""

    text: bool
    parts: bool
    image: str = ""  # among parts


class _Names:
    """Names of control tokens, looked for in a time that does not grow with their number."""

    def __init__(self, names: Collection[str]) -> None:
        self._sorted = sorted(names)
        self._known = frozenset(names)
        self.longest = max(map(len, names), default=0)
        lengths: dict[str, set[int]] = {}
        for name in names:
            lengths.setdefault(name[0], set()).add(len(name))
        self._lengths = {first: sorted(each, reverse=True) for first, each in lengths.items()}
        self._first = re.compile(f"[{''.join(map(re.escape, lengths))}]" if lengths else "(?!)")

    def starts(self, text: str) -> Iterator[int]:
        """Yield where a name begins, also inside another one."""
        return (first.start() for first in self._first.finditer(text) if self._at(text, first))

    def found(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield from where to where names stand, of several at one place the longest."""
        last = 0
        for first in self._first.finditer(text):
            if first.start() >= last and (length := self._at(text, first)):
                last = first.start() + length
                yield first.start(), last

    def has_longer(self, text: str) -> bool:
        """Whether a name is this text and more."""
        place = bisect_right(self._sorted, text)
        return any(name.startswith(text) for name in self._sorted[place : place + 1])

    def _at(self, text: str, first: re.Match[str]) -> int:
        """Return the length of the longest name at a place; 0 if there is none."""
        start, rest = first.start(), len(text) - first.start()
        lengths = self._lengths[first[0]]
        return next((n for n in lengths if n <= rest and text[start : start + n] in self._known), 0)


class ChatTemplate:
    """A template, and the names of the control tokens of its model.

    Args:
        source: the template.
        control: names of control tokens.
        names: the variables ``bos_token``, ``eos_token`` and so on.
    """

    def __init__(self, source: str, control: Collection[str], names: Mapping[str, str]) -> None:
        self.source, self._variables = source, dict(names)
        self._control = frozenset(control)
        self._process = TemplateProcess(source)
        self._nonce = str(secrets.randbelow(10**18))  # cannot be guessed, so no text contains it

    def render(self, turns: Sequence[Turn], *, prompt: bool = False) -> Rendered:
        """Render a conversation.

        Args:
            prompt: write what the assistant's turn begins with, after the last turn; if that is
                the assistant's, leave it open instead.

        Raises:
            TemplateError: the template does not take the conversation, or has no place for its
                images.
            BundleError: the template is broken, or takes too much time or memory.
        """
        if not prompt or not turns or turns[-1].role != "assistant":
            return self._render(turns, prompt)
        if not any(part is None or part.strip() for part in turns[-1].parts):
            return self._render(turns[:-1], prompt)
        return _open(self._render(turns, False), sum(len(turn.parts) for turn in turns) - 1)

    def located(self, turns: Sequence[Turn], rendered: Rendered) -> Rendered:
        """Return a rendered conversation with the places of all its texts.

        Some templates take a text apart, such as the thoughts of a model. What an assistant then
        says begins where the prompt of its turn ends.

        Raises:
            TemplateError: that is not to be found.
        """
        parts, number = dict(rendered.parts), 0
        for n_before, turn in enumerate(turns):
            texts = [n for n, part in enumerate(turn.parts, number) if part and part.strip()]
            number += len(turn.parts)
            for part in texts:
                begin, end = parts.get(part, (-1, -1))
                if begin < 0 <= end and part == texts[0] and turn.role == "assistant":
                    before = self._render(turns[:n_before], True).text
                    if rendered.text.startswith(before):
                        begin = len(before)
                if begin < 0 or end < 0:
                    raise TemplateError(
                        "The chat template changes the text of a turn, so that its tokens cannot "
                        "be told from those of the template; give all segments one weight."
                    )
                parts[part] = begin, end
        return Rendered(rendered.text, rendered.control, rendered.images, parts)

    def end_of_turn(self) -> str | None:
        """Return the name of the control token that ends the assistant's turn, if there is one.

        Raises:
            TemplateError, BundleError: as :meth:`render`.
        """
        rendered = self._render([Turn("user", ["a"]), Turn("assistant", ["b"])], False)
        if 1 in rendered.parts:
            start, stop = turn_end(rendered, rendered.parts[1][1])
            return rendered.text[start:stop].strip() or None
        return None

    def turn_marks(self) -> set[str]:
        """Return the names of the control tokens that stand in each exchange of a conversation.

        What stands in the last one only, such as the beginning of a thought, marks no turn.

        Raises:
            TemplateError, BundleError: as :meth:`render`.
        """
        turns = [Turn("user", ["a"]), Turn("assistant", ["b"])]
        rendered = self._render([*turns, Turn("user", ["c"]), Turn("assistant", ["d"])], False)
        names = Counter(rendered.text[start:stop] for start, stop in rendered.control)
        return {name for name, count in names.items() if count > 1}

    # ── marks ──────────────────────────────────────────────────────────────────────────────────

    def _mark(self, kind: str, number: int = 0) -> str:
        return f"{kind}{self._nonce}{number:09}{_CLOSE}"

    def _protected(self, text: str) -> str:
        """Return a text in which no name of a control token stands."""
        cuts = [0, *(start + 1 for start in self._names.starts(text)), len(text)]
        text = self._mark(_BREAK).join(text[a:b] for a, b in pairwise(cuts))
        # The text that follows might complete a name.
        begun = text.rstrip()
        for length in range(min(len(begun), self._names.longest - 1), 0, -1):
            if self._names.has_longer(begun[-length:]):
                cut = len(begun) - length + 1
                return text[:cut] + self._mark(_BREAK) + text[cut:]
        return text

    @cached_property
    def _names(self) -> "_Names":
        return _Names((self._control | {self._forms.image}) - {""})

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        return re.compile(f"([{_BEGIN}{_END}{_IMAGE}{_BREAK}]){self._nonce}([0-9]{{9}}){_CLOSE}")

    # ── rendering ──────────────────────────────────────────────────────────────────────────────

    def _render(self, turns: Sequence[Turn], prompt: bool) -> Rendered:
        ways = [self._messages(turns, how) for how in ("around", "within", "not")]
        *marked, plain = self._process.render([self._call(way, prompt) for way in ways])
        if isinstance(plain, TemplateError):
            raise plain
        expected = self._without_marks(plain)
        for text in (*marked, plain):
            if isinstance(text, str) and self._without_marks(text) == expected:
                found = self._read(text)
                if found is not None:
                    return self._checked(found, turns)
        raise AssertionError  # a text without marks of texts can be read

    def _call(self, messages: list[dict[str, Any]], prompt: bool) -> dict[str, Any]:
        return {"messages": messages, "add_generation_prompt": prompt, **self._variables}

    def _messages(self, turns: Sequence[Turn], how: str) -> list[dict[str, Any]]:
        messages, number = [], 0
        for turn in turns:
            as_parts = not self._forms.text or (None in turn.parts and self._forms.parts)
            content: list[dict[str, Any]] = []
            for part_number, part in enumerate(turn.parts, number):
                if part is not None:
                    text = self._marked(self._protected(part), part_number, how)
                    content.append({"type": "text", "text": text})
                elif as_parts:
                    content.append({"type": "image"})
                else:
                    content.append({"text": self._mark(_IMAGE, part_number)})
            number += len(turn.parts)
            joined = "" if as_parts else "".join(part["text"] for part in content)
            messages.append({"role": turn.role, "content": content if as_parts else joined})
        return messages

    def _marked(self, text: str, number: int, how: str) -> str:
        core = text.strip()
        if how == "not" or not core:
            return text
        before, after = self._mark(_BEGIN, number), self._mark(_END, number)
        if how == "around":
            return before + text + after
        lead = text[: len(text) - len(text.lstrip())]
        return lead + before + core + after + text[len(lead) + len(core) :]

    def _without_marks(self, text: str) -> str:
        return self._marks.sub(lambda mark: mark[0] if mark[1] in (_IMAGE, _BREAK) else "", text)

    def _read(self, marked: str) -> Rendered | None:
        """Take a rendered text apart; None if it repeats a text."""
        found, length = Rendered(""), 0
        text: list[str] = []
        ends: dict[str, dict[int, int]] = {_BEGIN: {}, _END: {}}
        last = 0
        for start, stop, kind, number in self._found(marked):
            text.append(marked[last:start])
            length += start - last
            last, name = stop, "" if kind else marked[start:stop]
            if name == self._forms.image and name:
                found.images.append((length, -1))
            elif name:
                text.append(name)
                found.control.append((length, length + len(name)))
                length += len(name)
            elif kind == _IMAGE:
                found.images.append((length, -1))
            elif kind != _BREAK:
                if number in ends[kind]:
                    return None
                ends[kind][number] = length
        text.append(marked[last:])
        for number in {**ends[_BEGIN], **ends[_END]}:
            found.parts[number] = ends[_BEGIN].get(number, -1), ends[_END].get(number, -1)
        return Rendered("".join(text), found.control, found.images, found.parts)

    def _found(self, marked: str) -> Iterator[tuple[int, int, str, int]]:
        """Yield where marks and names stand; of a mark its kind and number, which a name lacks."""
        last = 0
        for mark in [*self._marks.finditer(marked), None]:
            start = len(marked) if mark is None else mark.start()
            for first, end in self._names.found(marked[last:start]):
                yield last + first, last + end, "", 0
            if mark is not None:
                yield start, mark.end(), mark[1], int(mark[2])
                last = mark.end()

    def _checked(self, found: Rendered, turns: Sequence[Turn]) -> Rendered:
        """Return what was found, with the part of each image: templates keep their order."""
        parts = [part for turn in turns for part in turn.parts]
        images = [number for number, part in enumerate(parts) if part is None]
        if len(found.images) != len(images):
            raise TemplateError(
                f"The chat template has a place for {len(found.images)} of the {len(images)} "
                "images of the conversation; leave the others out."
            )
        placed = [(at, n) for (at, _), n in zip(found.images, images, strict=True)]
        return Rendered(found.text, found.control, placed, found.parts)

    @cached_property
    def _forms(self) -> _Forms:
        """Find out, by rendering three messages, which forms of content the template takes."""
        a, b = self._mark(_BEGIN), self._mark(_END)
        text_a, text_b = ({"type": "text", "text": text} for text in (a, b))
        contents: list[Any] = [a, [text_a, text_b], [text_a, {"type": "image"}, text_b]]
        of_text, of_parts, of_image = (
            text if isinstance(text, str) else ""
            for text in self._process.render(
                [self._call([{"role": "user", "content": each}], False) for each in contents]
            )
        )
        # A template that expects a text writes the list down, as Python or JSON.
        takes_parts = (
            a in of_parts and b in of_parts and not re.search("""["']type["']""", of_parts)
        )
        image = _inserted(of_parts, of_image).strip() if takes_parts else ""
        return _Forms(a in of_text or not takes_parts, takes_parts, image)


def _inserted(before: str, after: str) -> str:
    """Return what was inserted into a text."""
    start = _common(before, after)
    end = _common(before[start:][::-1], after[start:][::-1])
    return after[start : len(after) - end]


def _common(one: str, other: str) -> int:
    """Return how many characters two texts begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def _open(rendered: Rendered, last: int) -> Rendered:
    """Return a conversation up to the end of its last part, which may be an image."""
    ends = [at for at, part in rendered.images if part == last]
    end = ends[0] if ends else rendered.parts.get(last, (-1, -1))[1]
    if end < 0:
        raise TemplateError(
            "The chat template changes the text of the last turn, so that it cannot be continued; "
            "end the conversation with a turn of the user."
        )
    return Rendered(
        rendered.text[:end],
        [(start, stop) for start, stop in rendered.control if stop <= end],
        [(at, part) for at, part in rendered.images if at <= end],
        rendered.parts,
    )


def turn_end(rendered: Rendered, end: int) -> tuple[int, int]:
    """Return from where to where the end of a turn is written, behind the end of its last text.

    It is the first control token, with the spaces before it; nothing if something else follows.
    """
    for start, stop in rendered.control:
        if start >= end:
            is_next = not rendered.text[end:start].strip()
            return (end, stop) if is_next and not _has_image(rendered, end, stop) else (end, end)
    return end, end


def _has_image(rendered: Rendered, start: int, stop: int) -> bool:
    return any(start < at < stop for at, _ in rendered.images)
