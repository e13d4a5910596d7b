"""Names of control tokens, of which a tokenizer from elsewhere may have any number."""

import re
from collections.abc import Sequence

import hostile
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pardalis.tokens.chat_template import ChatTemplate, Turn, _Names

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
NAMES = ("<|user|>", "<|end|>")


def rendered(names: Sequence[str], said: str) -> tuple[str, list[str]]:
    found = ChatTemplate(TEMPLATE, names, {}).render([Turn("user", [said])])
    return found.text, [found.text[start:stop] for start, stop in found.control]


@given(st.sets(st.text("ab<", min_size=1, max_size=4)), st.text("ab<", max_size=20))
def test_names_are_found_as_a_pattern_finds_them(names: set[str], text: str) -> None:
    pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)"
    assert [*_Names(names).found(text)] == [found.span() for found in re.finditer(pattern, text)]
    starts = [found.start() for found in re.finditer(f"(?={pattern})", text)]
    assert [*_Names(names).starts(text)] == starts
    longer = any(name.startswith(text) and name != text for name in names)
    assert _Names(names).has_longer(text) == longer


@pytest.mark.parametrize(
    "more",
    [
        [f"<|x{i}|>" for i in range(200_000)],
        ["<" * n + "x" for n in range(1, 1000)],
        ["", "1", "<"],
    ],
    ids=["many", "long", "odd"],
)
def test_any_names_take_bounded_time(more: list[str]) -> None:
    said = "<|x " * 2000 + "<|end|>" + "<" * 2000
    with hostile.limits(seconds=20):
        text, control = rendered([*NAMES, *more], said)
    assert text == f"<|user|>{said}<|end|>"
    assert [name for name in control if name in NAMES] == [*NAMES]
