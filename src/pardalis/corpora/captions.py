"""A style and a name as words: "a 3D rendering of a deer"."""

import re

# fmt: off
_HEAD_ENDS = {
    "and", "at", "behind", "between", "for", "from", "in", "not", "of", "on", "over", "to", "under",
    "with", "without",
}
_SINGULAR_ENDINGS = ("ss", "us", "is", "rhinoceros")
_PLURALS = {"children", "men", "people", "skis", "women"}
_UNCOUNTED = {
    "bacon", "badminton", "bowling", "bread", "broccoli", "butter", "candy", "construction", "fire",
    "fog", "garlic", "hockey", "ice", "information", "lacrosse", "luggage", "milk", "money",
    "popcorn", "rice", "sake", "salt", "soap", "spaghetti", "sushi", "tennis", "water", "wood",
    "yarn", "zzz",
}
# fmt: on
_SPELT_WITH_VOWEL = ("eu", "ewe", "one", "uni", "uku")  # and spoken with a consonant
_SPOKEN_WITH_VOWEL = ("hourglass", "ng ", "sos ", "x-ray")


def caption(phrase: str, name: str) -> str:
    """Return the caption of a drawing: the phrase of its style, and what it shows."""
    return f"{phrase} of {with_article(name)}"


def with_article(name: str) -> str:
    """Return the name with the article that it needs in a sentence, by rules good for emoji."""
    if name.startswith("flag of "):
        return f"the {name}"
    head = _head(name)
    last = head[-1]
    is_plural = last.endswith("s") and not last.endswith(_SINGULAR_ENDINGS)
    is_proper = last[:1].isupper() or not last[:1].isalpha()
    if is_plural or is_proper or last in _PLURALS | _UNCOUNTED or head[0] == "no":
        return name
    spoken = name.lower()
    has_vowel = spoken.startswith(tuple("aeiou")) and not spoken.startswith(_SPELT_WITH_VOWEL)
    return f"an {name}" if has_vowel or spoken.startswith(_SPOKEN_WITH_VOWEL) else f"a {name}"


def _head(name: str) -> list[str]:
    """Return the words of a name up to the one that is counted: "men" of "men holding hands"."""
    words = re.split(r",? ", name.partition(",")[0])
    for index, word in enumerate(words[1:], start=1):
        if word in _HEAD_ENDS or word.endswith("ing"):
            return words[:index]
    return words
