"""The filter ``blocklist:FILE``: words and phrases that no text may have."""

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

from pardalis.errors import ConfigError
from pardalis.files import read_text

_REASON = "The text has a word or phrase that this server refuses."


def blocklist(argument: str) -> Callable[[object], str | None]:
    """Return the filter of a file with a word or phrase on each line.

    Case, forms of Unicode that look the same (NFKC), characters that are not shown, and spaces
    make no difference. Whole words match: ``cat`` is not in ``category``, so a word of a script
    without spaces, such as Chinese, is hardly ever found. Lines that are empty or begin with ``#``
    count for nothing. Images pass.

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
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    shown = "".join(each for each in plain if unicodedata.category(each) != "Cf")
    return re.findall(r"\w+|[^\w\s]", shown)
