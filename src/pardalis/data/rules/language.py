"""Rule ``language``: documents whose text is not in one of some languages."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pardalis.config import check_at_least, check_fractions
from pardalis.data.rules.rule import Removal
from pardalis.documents import Document
from pardalis.errors import ConfigError
from pardalis.imports import optional_package

_MOST_CHARACTERS = 10_000  # of a text that are looked at


@dataclass(frozen=True, kw_only=True, slots=True)
class Language:
    """Removes documents by the language of their text, as py3langid finds it.

    That is langid.py (Lui and Baldwin 2012, "langid.py: An Off-the-shelf Language Identification
    Tool"): naive Bayes over byte n-grams, which knows 97 languages. Its certainty grows with the
    length of a text, so short ones are kept unseen.

    Raises:
        ConfigError: a language is not known, or the package is missing.
    """

    kind: Literal["language"] = "language"
    languages: tuple[str, ...] = ("en",)  # ISO 639-1
    min_probability: float = 0.5  # of the languages together
    min_characters: int = 40  # shorter texts are kept

    def __post_init__(self) -> None:
        check_fractions(self, "min_probability")
        check_at_least(self, min_characters=1)
        if not self.languages:
            raise ConfigError("languages is empty; name at least one, such as 'en'.")

    def removal(self, document: Document) -> Removal | None:
        text = document.text.strip()[:_MOST_CHARACTERS]
        if len(text) < self.min_characters:
            return None
        found = dict(_identifier().rank(text.encode(errors="ignore").decode()))
        if unknown := [name for name in self.languages if name not in found]:
            raise ConfigError(
                f"languages names {unknown[0]!r}, which is not known; known are "
                f"{', '.join(sorted(found))}."
            )
        share = float(sum(found[name] for name in self.languages))
        if share >= self.min_probability:
            return None
        likeliest = max(found, key=found.__getitem__)
        wanted = " or ".join(map(repr, self.languages))
        return Removal(
            f"The text is in {likeliest!r} with a probability of {float(found[likeliest]):.0%}, "
            f"and in {wanted} with {share:.0%}; at least {self.min_probability:.0%} counts."
        )


@cache
def _identifier() -> Any:
    with optional_package("The rule 'language'", "filter"):
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
