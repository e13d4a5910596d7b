"""Answers that are right or wrong: texts, numbers, mathematical expressions, letters of choices.

Each of these finds the answer in what a model wrote, brings it into one form, and compares.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, Literal, TypeVar

from pardalis.evaluate.metrics.vqa import vqa_normalised

Normalisation = Literal["spaces", "case", "squad", "vqa", "math"]
Answer = TypeVar("Answer")

_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_normalised(text: str) -> str:
    """Return a text in lower case without ASCII punctuation, articles and extra spaces.

    This is the form in which SQuAD compares answers (arXiv 1606.05250).

    >>> squad_normalised("The  U.S., a country")
    'us country'
    """
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(answer: str, accepted: Iterable[str], normalisation: Normalisation) -> bool:
    """Tell whether an answer is an accepted one, both in the form of a normalisation.

    ``spaces``: without outer and repeated spaces; ``case``: in lower case too; ``squad``:
    :func:`squad_normalised`; ``vqa``: :func:`~pardalis.evaluate.metrics.vqa.vqa_normalised`;
    ``math``: :func:`math_normalised`.
    """
    normalise = NORMALISATIONS[normalisation]
    own = normalise(answer)
    return any(own == normalise(text) for text in accepted)


# A sign is a minus only where no word or number ends before it: not in 10-12.
_INTEGER = r"(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d{1,200})"
_DECIMAL = rf"(?:{_INTEGER}(?:\.\d{{1,200}})?|\.\d{{1,200}})(?:[eE][-+]?\d{{1,2}}(?!\d))?"
_NUMBER = re.compile(
    rf"(?P<minus>(?<![\w)])-\s?)?\$?(?:"
    rf"\\[dt]?frac\{{(?P<top>-?{_DECIMAL})\}}\{{(?P<bottom>{_DECIMAL})\}}"
    rf"|(?:(?P<whole>\d{{1,200}})\s+)?(?P<over>{_INTEGER})\s?/\s?(?P<under>{_INTEGER})(?![\d.])"
    rf"|(?P<decimal>{_DECIMAL}))"
)
_FINAL = "####"  # before the result, in GSM8K


def last_number(text: str) -> Fraction | None:
    r"""Return the number that a solution ends with, exactly; None if it has none.

    The first one after the last ``####``, as GSM8K marks results (arXiv 2110.14168), else the last
    of all. Thousands may have commas; fractions may be ``3/4``, ``1 3/4`` or ``\frac{3}{4}``.

    >>> last_number("That is $1,250.50 in all."), last_number("2 + 2 #### 4 because 3")
    (Fraction(2501, 2), Fraction(4, 1))
    """
    _, marked, result = text.rpartition(_FINAL)
    found = map(_value, _NUMBER.finditer(result.replace("−", "-")))
    numbers = [number for number in found if number is not None]
    if not numbers:
        return last_number(text.replace(_FINAL, " ")) if marked else None
    return numbers[0 if marked else -1]


def _value(match: re.Match[str]) -> Fraction | None:
    """Return what a number that was found is worth; None if it divides by zero."""
    parts = {name: text.replace(",", "") for name, text in match.groupdict().items() if text}
    sign = -1 if "minus" in parts else 1
    if "decimal" in parts:
        return sign * Fraction(parts["decimal"])
    if "top" in parts:
        above, below, whole = Fraction(parts["top"]), Fraction(parts["bottom"]), Fraction(0)
    else:
        above, below = Fraction(parts["over"]), Fraction(parts["under"])
        whole = Fraction(parts.get("whole", 0))
    return sign * (whole + above / below) if below else None


def numeric_match(answer: str, expected: str, tolerance: float = 0.0) -> bool:
    """Tell whether the number that an answer ends with is the expected one.

    Args:
        expected: a text whose last number is meant; the reference solution of GSM8K may stand here.
        tolerance: the largest difference allowed, as a share of the expected number.

    Raises:
        ValueError: the expected text has no number.
    """
    wanted = last_number(expected)
    if wanted is None:
        raise ValueError(f"the expected text {expected!r} has no number")
    found = last_number(answer)
    return found is not None and abs(found - wanted) <= Fraction(tolerance) * abs(wanted)


def boxed(text: str) -> str | None:
    r"""Return what the last ``\boxed{...}`` or ``\fbox{...}`` of a solution holds, or None.

    >>> boxed(r"so $x = \boxed{\frac{1}{2}}$.")
    '\\frac{1}{2}'
    """
    start = text.rfind(r"\boxed")
    start = text.rfind(r"\fbox") if start < 0 else start
    if start < 0:
        return None
    if spaced := re.match(r"\\boxed ([^$]*)", text[start:]):  # without braces: to the formula's end
        return spaced[1]
    depth = 0
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if text[end] == "}" and depth == 0:
            return text[text.index("{", start) + 1 : end]
    return None


_DROPPED = (r"\left", r"\right", r"^{\circ}", r"^\circ", r"\$")


def math_normalised(text: str) -> str:
    r"""Return an expression in the form in which MATH compares answers (arXiv 2103.03874).

    Spaces, units in ``\text{ ...}``, degrees, dollar and percent signs, ``\left``, ``\right`` go;
    a left side of one or two characters (``x =``) too. Arguments of ``\frac`` and ``\sqrt`` get
    braces, ``a/b`` of two integers and 0.5 become fractions. Equal values in other forms stay
    different: it compares texts.

    >>> math_normalised(r"x = \dfrac12"), math_normalised("1/2")
    ('\\frac{1}{2}', '\\frac{1}{2}')
    """
    out = text.replace("\n", "").replace(r"\!", "").replace("\\\\", "\\")
    out = out.replace("tfrac", "frac").replace("dfrac", "frac")
    for each in _DROPPED:
        out = out.replace(each, "")
    if out.count(r"\text{ ") > 1:
        return text  # their comparison fails, and takes the text as it is
    out = out.partition(r"\text{ ")[0].replace(r"\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if out.startswith("."):
        out = "0" + out
    if out.count("=") == 1 and out.index("=") <= 2:
        out = out.partition("=")[2]
    if re.search(r"\\sqrt(?:\Z|\\sqrt)", out):
        return text  # the same
    out = re.sub(r"\\sqrt(?!\{)(.)", r"\\sqrt{\1}", out, flags=re.DOTALL).replace(" ", "")
    braced = _with_braces(out)
    if braced is None:
        return text
    out = braced
    if out == "0.5":
        return r"\frac{1}{2}"
    return re.sub(r"\A(0|-?[1-9]\d*)/(0|-?[1-9]\d*)\Z", r"\\frac{\1}{\2}", out)


def _with_braces(text: str) -> str | None:
    r"""Return an expression with braces around the arguments of ``\frac``; ``\frac1{72}`` too.

    The same expression if one has a single argument; None if one has none.
    """
    out, *parts = text.split(r"\frac")
    for part in parts:
        if not part:
            return None
        if part.startswith("{"):
            out += r"\frac" + part
        elif len(part) == 1:
            return text
        elif part[1] == "{":
            out += rf"\frac{{{part[0]}}}{part[1:]}"
        else:
            out += rf"\frac{{{part[0]}}}{{{part[1]}}}{part[2:]}"
    return out


NORMALISATIONS: Mapping[Normalisation, Callable[[str], str]] = {
    "spaces": lambda text: " ".join(text.split()),
    "case": lambda text: " ".join(text.lower().split()),
    "squad": squad_normalised,
    "vqa": vqa_normalised,
    "math": math_normalised,
}


def choice_letter(text: str, letters: str = "ABCD") -> str | None:
    """Return the letter that a response chooses; None if it does not say one clearly.

    In this order: a letter after "answer is" or "answer:" (the last of them), one that the response
    begins with as in ``B``, ``B.`` and ``(B)``, and the last in brackets. A bare ``A`` inside a
    sentence is a word.

    >>> choice_letter("I think the answer is (C)."), choice_letter("B. Paris"), choice_letter("?")
    ('C', 'B', None)
    """
    one = f"[{re.escape(letters)}]"
    text = text.replace("*", "").strip()
    after = re.findall(rf"(?i:answer\s*(?:is|:)+\s*:?)\s*\(?({one})(?!\w)", text)
    first = re.match(rf"\(?({one})(?:[).:,]|\s*(?:\n|\Z))", text)
    bracketed = re.findall(rf"\(({one})\)", text)
    found = after[-1:] or ([first[1]] if first else bracketed[-1:])
    return found[0] if found else None


@dataclass(frozen=True, slots=True)
class Vote(Generic[Answer]):
    """The result of a vote: maj@k takes its answer (arXiv 2203.11171, "self-consistency")."""

    answer: Answer | None  # None: no response has an answer
    votes: int  # responses with this answer
    responses: int


def majority(answers: Sequence[Answer | None]) -> Vote[Answer]:
    """Return the answer that most responses give; of equally many the one that comes first.

    Args:
        answers: those of k responses to one question, each in a form in which equal ones are equal;
            None, from a response without an answer, has no vote.
    """
    counts = Counter(answer for answer in answers if answer is not None)
    if not counts:
        return Vote(None, 0, len(answers))
    [(answer, votes)] = counts.most_common(1)  # which keeps the order in which they are first seen
    return Vote(answer, votes, len(answers))
