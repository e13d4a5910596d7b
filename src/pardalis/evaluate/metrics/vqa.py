"""Accuracy of short answers about images: VQA's soft accuracy, and ANLS of texts that are read.

VQAv2, OK-VQA, TextVQA and VizWiz have ten answers of people to each question, and share one rule.
"""

import re
from collections import Counter
from collections.abc import Sequence

_AGREE = 3  # so many of the other people make an answer fully right
_ANLS_LEAST = 0.5  # a smaller similarity counts as another text

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip

# Contractions that get the apostrophes that they lack. Where there are two, either may be missing.
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't "
    "haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't "
    "mightn't've might've mustn't must've needn't not've o'clock oughtn't shan't she'd've "
    "should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've "
    "someone'll someone's something'd something'd've something'll that's there'd there'd've "
    "there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't "
    "what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've "
    "you'd you'd've you'll you're you've"
)


def _without_apostrophes() -> dict[str, str]:
    found = {
        "somebody'd": "somebodyd",  # as released
        "twas": "'twas", "ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at",
    }  # fmt: skip
    for word in _CONTRACTIONS.split():
        places = [i for i, sign in enumerate(word) if sign == "'"]
        if len(places) == 1:
            found[word.replace("'", "")] = word
        else:
            found |= {word[:i] + word[i + 1 :]: word for i in places}
    return found


_RESTORED = _without_apostrophes()


def vqa_normalised(text: str) -> str:
    """Return an answer in the form in which VQA's evaluation compares it (visualqa.org).

    Case, articles and most punctuation go, numbers to ten become digits, and contractions get their
    apostrophes. A sign between two letters becomes a space, one beside a space nothing; if there is
    a number such as 1,000, all signs become nothing.

    >>> vqa_normalised("The two dogs, dont they?")
    "2 dogs don't they"
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    has_thousands = _THOUSANDS.search(text) is not None
    out = text
    for sign in _PUNCTUATION:
        goes = has_thousands or f"{sign} " in text or f" {sign}" in text
        out = out.replace(sign, "" if goes else " ")
    words = (_NUMBERS.get(word, word) for word in _PERIOD.sub("", out).lower().split())
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, people: Sequence[str], *, always_normalise: bool = True) -> float:
    """Return VQA's soft accuracy: the mean over people of ``min(1, others who agree / 3)``.

    The others are all people but one, each in turn (Antol et al. 2015, arXiv 1505.00468; the mean
    as in the released evaluation).

    Args:
        people: the answers of people to the question, mostly ten.
        always_normalise: False: compare answers as they are if all people gave the same one, as the
            released script does; "Yes" is then wrong where ten people said "yes".

    Raises:
        ValueError: nobody has answered.
    """
    if not people:
        raise ValueError("a question needs the answers of people")
    trimmed = [text.replace("\n", " ").replace("\t", " ").strip() for text in (answer, *people)]
    if always_normalise or len(set(trimmed[1:])) > 1:
        trimmed = [vqa_normalised(text) for text in trimmed]
    own, *others = trimmed
    agree = Counter(others)[own]
    # One of those who agree is left out as often as there are such people.
    without_one = agree * min(1, (agree - 1) / _AGREE)
    return (without_one + (len(others) - agree) * min(1, agree / _AGREE)) / len(others)


def anls(answer: str, accepted: Sequence[str]) -> float:
    """Return the normalised Levenshtein similarity to the nearest accepted text, or 0 below 0.5.

    ``1 - edits / length of the longer``, without case and outer spaces; the mean over questions is
    ANLS (Biten et al. 2019, arXiv 1907.00490, equation 1), which DocVQA uses.

    >>> anls("Pardalys", ["pardalis"])
    0.875
    """
    return max((_similarity(answer, text) for text in accepted), default=0.0)


def _similarity(a: str, b: str) -> float:
    a, b = (" ".join(text.lower().split()) for text in (a, b))
    longer = max(len(a), len(b))
    similarity = 1 - _edits(a, b) / longer if longer else 1.0
    return similarity if similarity >= _ANLS_LEAST else 0.0


def _edits(a: str, b: str) -> int:
    """Return how many signs must be inserted, deleted or replaced (Levenshtein's distance)."""
    row = list(range(len(b) + 1))
    for i, sign in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            replaced = diagonal + (sign != other)
            diagonal = row[j]
            row[j] = min(row[j] + 1, row[j - 1] + 1, replaced)
    return row[-1]
