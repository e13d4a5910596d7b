"""The senses of WordNet as a network of words."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pardalis.corpora.prose.packages import Sense, pointed_key

_WORD = re.compile(r"[a-z]{3,}")
_KIND_OF = "@"  # and "@i" of what a name is an instance of


@dataclass(frozen=True, slots=True)
class WordNet:
    """Senses, by their keys and by their words.

    Attributes:
        all: the senses in the order of the files.
        senses: the same by the key that others point with.
        of_word: such keys, by part of speech and word.
        near: keys of the senses that one points to, or is pointed at from.
    """

    all: Sequence[Sense]
    senses: Mapping[str, Sense]
    of_word: Mapping[tuple[str, str], set[str]]
    near: Mapping[str, set[str]]

    @classmethod
    def of(cls, senses: Sequence[Sense]) -> "WordNet":
        of_word: dict[tuple[str, str], set[str]] = defaultdict(set)
        near: dict[str, set[str]] = defaultdict(set)
        for sense in senses:
            key = pointed_key(sense)
            for word in sense.words:
                of_word[sense.speech, word.casefold()].add(key)
            for _, target in sense.related:
                near[key].add(target)
                near[target].add(key)
        return cls(senses, {pointed_key(sense): sense for sense in senses}, of_word, near)

    def words(self, speech: str) -> list[str]:
        """Return the single words of a part of speech that have at least two senses."""
        return [
            word
            for (of, word), keys in self.of_word.items()
            if of == speech and len(keys) > 1 and _WORD.fullmatch(word)
        ]

    def are_related(self, speech: str, one: str, other: str) -> bool:
        """Whether two words share a sense, or a sense of one points to one of the other."""
        first, second = self.of_word[speech, one], self.of_word[speech, other]
        return any(key in second or self.near[key] & second for key in first)

    def kinds_of(self, sense: Sense) -> list[Sense]:
        """Return what a sense is a kind or an instance of."""
        kinds = [target for symbol, target in sense.related if symbol.startswith(_KIND_OF)]
        return [self.senses[key] for key in kinds]

    def names_of_kinds(self, speech: str, word: str) -> set[str]:
        """Return all words for what a word is a kind of, in any sense and at any distance."""
        found: dict[str, Sense] = {}
        waiting = [self.senses[key] for key in self.of_word[speech, word]]
        while waiting:
            sense = waiting.pop()
            if sense.key not in found:
                found[sense.key] = sense
                waiting += self.kinds_of(sense)
        return {name for sense in found.values() for name in sense.words}
