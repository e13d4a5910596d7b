"""Commands to try on the model of a run, with prompts of the run's own documents."""

import os
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pardalis.errors import DataError
from pardalis.evaluate.sample_file import check_samples
from pardalis.files import read_json

_LONGEST = 100  # characters of a prompt that is shown, if there is a shorter one
_SUFFIX = re.compile(r"\.\w{2,5}$")
_JOINERS = "\u200c\u200d"  # invisible parts of words and emoji
_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\", "'": "\\'"}


def commands_of(run: Path) -> list[str]:
    """Return the commands for a run folder: text to image, image to text, a page.

    Each needs a sample of its kind. There are none if the samples cannot be read. No image is read.
    """
    path = run / "samples" / "samples.json"
    try:
        samples = read_json(path)
        if not isinstance(samples, dict):
            return []
        check_samples(path, samples, None)
    except (OSError, ValueError, DataError):
        return []
    return commands(run, samples)


def commands(run: Path, samples: Mapping[str, Any]) -> list[str]:
    """Return the commands for the checked samples of a run."""
    bundle = _quoted_path(run / "bundle")
    found = []
    if (text := _first(samples["images"], "prompt", _is_text)) is not None:
        found.append(_generate(bundle, "--mode image --out generated.png", text))
    if (image := _first(samples["captions"], "image", lambda name: "\0" not in name)) is not None:
        found.append(f"pardalis generate {bundle} {_quoted_path(run / image)} --mode text")
    if (text := _first(samples["pages"], "prompt", _is_text)) is not None:
        found.append(_generate(bundle, "--out page.html", text))
    return found


def quoted(text: str) -> str:
    """Return a text as one word of a shell's line: bash, zsh or ksh.

    >>> print(quoted("owl"), quoted("it's an owl"), quoted("Owl\\n"))
    owl 'it'"'"'s an owl' $'Owl\\n'
    """
    if all(_is_printable(character) for character in text):
        return shlex.quote(text)
    return "$'" + "".join(map(_escaped, text)) + "'"


def _generate(bundle: str, options: str, text: str) -> str:
    if text.startswith("-"):
        return f"pardalis generate {bundle} {options} -- {quoted(text)}"
    return f"pardalis generate {bundle} {quoted(text)} {options}"


def _quoted_path(path: Path) -> str:
    """Return a path as a word that is no option."""
    text = str(path)
    return quoted(f"./{text}" if text.startswith("-") else text)


def _first(
    entries: Iterable[Mapping[str, Any]], key: str, suits: Callable[[str], bool]
) -> str | None:
    """Return the first prompt that is short, of the training documents if possible."""
    texts = [
        entry[key]
        for split in ("train", "heldout")
        for entry in entries
        if entry["split"] == split and suits(entry[key])
    ]
    short = [text for text in texts if len(text) <= _LONGEST]
    return next(iter(short), min(texts, key=len, default=None))


def _is_text(prompt: str) -> bool:
    """Whether a part of a command line is this text, and not the path of an image."""
    looks_like_a_file = _SUFFIX.search(prompt) or os.path.isfile(prompt)
    return bool(prompt) and "\0" not in prompt and not looks_like_a_file


def _is_printable(character: str) -> bool:
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return not hidden or character in _JOINERS


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if _is_printable(character):
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
