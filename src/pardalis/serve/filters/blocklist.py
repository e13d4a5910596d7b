"""The filter ``blocklist:FILE``: words and phrases that no text may have."""

import re
import sys
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path

from pardalis.errors import ConfigError
from pardalis.files import read_text

_REASON = "The text has a word or phrase that this server refuses."

# Unicode's Default_Ignorable_Code_Point, which the standard library does not know, less Cf.
_IGNORABLE = (
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8"
    "\U000e0000-\U000e0fff"
)


def blocklist(argument: str) -> Callable[[object], str | None]:
    """Return the filter of a file with a word or phrase on each line.

    Case, compatible forms (NFKC), characters that are not shown, and the number and kind of spaces
    between words make no difference; ``_`` is a space. Whole words match: ``cat`` is not in
    ``category``, so a word of a script without spaces, such as Chinese, is hardly ever found. Lines
    that are empty or begin with ``#`` count for nothing. Images pass.

    Raises:
        ConfigError: there is no such file, or no phrase in it.
    """
    path = Path(argument)
    if not argument or not path.is_file():
        raise ConfigError(
            f"{argument or 'blocklist:'} is no file; blocklist:FILE needs one, with a word or "
            "phrase on each line."
        )
    phrases: dict[str, list[list[str]]] = {}  # by their first word
    for line in read_text(path).splitlines():
        if not line.startswith("#") and (phrase := _words(line)):
            phrases.setdefault(phrase[0], []).append(phrase)
    if not phrases:
        raise ConfigError(f"{path} has no phrases; write one on each line.")

    def judge(part: object) -> str | None:
        words = _words(part) if isinstance(part, str) else []
        for start, word in enumerate(words):
            for phrase in phrases.get(word, ()):
                if words[start : start + len(phrase)] == phrase:
                    return _REASON
        return None

    return judge


def _words(text: str) -> list[str]:
    """Return the words and signs of a text in the one form that all its spellings share."""
    hidden, word = _patterns()
    shown = hidden.sub("", unicodedata.normalize("NFKC", text).casefold())
    return word.findall(unicodedata.normalize("NFKC", shown))


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return what finds characters that are not shown, and what finds words and signs."""
    hidden, marks = "", ""
    for each in map(chr, range(sys.maxunicode + 1)):
        category = unicodedata.category(each)
        if category == "Cf" or (category == "Cc" and not each.isspace()):
            hidden += each
        elif category[0] == "M":  # part of a letter, but not in \w
            marks += each
    hidden = f"[{re.escape(hidden)}{_IGNORABLE}]"
    return re.compile(hidden), re.compile(rf"(?:[^\W_]|[{marks}])+|[^\w\s]")
