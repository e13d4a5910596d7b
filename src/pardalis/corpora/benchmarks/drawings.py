"""Tasks about drawings of emoji: their names in several languages, groups, styles, odd ones out.

One question is asked of each emoji, in a style at random, so that answers are independent. Wrong
names are those of other emoji of the same group whose drawings can be told apart and whose names do
not say the same: neither are "man teacher" and "teacher" beside each other, nor "heart" and "red
heart". They are of the same split: a model that was trained on the corpus of drawings would else
know all wrong names and never the right one, which makes it worse than one that does not look.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from pardalis.corpora.benchmarks.materials import LANGUAGES, Emoji, Materials, words_of
from pardalis.corpora.benchmarks.questions import (
    N_CHOICES,
    Benchmark,
    Question,
    Split,
    TaskImage,
    balanced,
    shuffled,
    with_wrong_ones,
)
from pardalis.corpora.captions import with_article
from pardalis.corpora.drawings.styles import STYLES, Style

_FLAGS = "flags"
_PLACES = ("the first", "the second", "the third", "the fourth")

# Groups that a person tells apart, without the subgroups that could be of another.
_GROUPS = (
    "smileys & emotion", "people & body", "animals & nature", "food & drink", "travel & places",
    _FLAGS,
)  # fmt: skip
_BETWEEN_GROUPS = frozenset(
    {"emotion", "heart", "cat-face", "monkey-face", "face-costume", "person-fantasy", "family",
     "hand-prop", "person-sport", "person-activity", "plant-other", "time", "hotel", "flag"}
)  # fmt: skip


def _names(
    materials: Materials, split: Split, generator: np.random.Generator
) -> Iterator[Question]:
    of_group: dict[str, list[Emoji]] = defaultdict(list)
    for each in materials.emoji_of(split):
        of_group[each.group].append(each)
    for emoji in shuffled(materials.emoji_of(split), generator):
        if emoji.group == _FLAGS or (style := _a_style(materials, emoji, generator)) is None:
            continue

        def differs(one: Emoji, other: Emoji, style: Style = style) -> bool:
            return not _say_the_same(one, other) and not materials.look_alike(
                one.key, other.key, style
            )

        found = with_wrong_ones(emoji, of_group[emoji.group], differs, generator)
        if found is None:
            continue
        choices, answer = found
        yield {
            "id": f"{emoji.key}.{style.name}",
            "image": materials.task_image(emoji.key, style),
            "phrase": style.phrase,
            "name": emoji.name,
            "named": with_article(emoji.name),
            "choices": [with_article(each.name) for each in choices],
            "names": {language: [e.names[language] for e in choices] for language in LANGUAGES},
            "answer": answer,
        }


def _groups(
    materials: Materials, split: Split, generator: np.random.Generator
) -> Iterator[Question]:
    drawn = [each for each in _grouped(materials, split) if materials.styles_of(each.key)]
    for emoji in balanced(drawn, lambda each: each.group, split, generator):
        style = _a_style(materials, emoji, generator)
        found = with_wrong_ones(emoji.group, _GROUPS, str.__ne__, generator)
        if style is None or found is None:
            continue
        choices, answer = found
        yield {
            "id": f"{emoji.key}.{style.name}",
            "image": materials.task_image(emoji.key, style),
            "name": emoji.name,
            "choices": choices,
            "answer": answer,
        }


def _odd_ones(
    materials: Materials, split: Split, generator: np.random.Generator
) -> Iterator[Question]:
    of_group: dict[str, list[Emoji]] = defaultdict(list)
    for each in _grouped(materials, split):
        of_group[each.group].append(each)
    for emoji in shuffled(_grouped(materials, split), generator):
        style = _a_style(materials, emoji, generator)
        group = str(generator.choice([name for name in of_group if name != emoji.group]))
        if style is None:
            continue

        def differs(one: Emoji, other: Emoji, style: Style = style) -> bool:
            return not materials.look_alike(one.key, other.key, style)

        found = with_wrong_ones(emoji, of_group[group], differs, generator)
        if found is None:
            continue
        shown, answer = found
        yield {
            "id": f"{emoji.key}.{style.name}",
            "images": [materials.task_image(each.key, style) for each in shown],
            "names": [each.name for each in shown],
            "group": group,
            "choices": list(_PLACES),
            "answer": answer,
        }


def _styles(
    materials: Materials, split: Split, generator: np.random.Generator
) -> Iterator[Question]:
    for emoji in shuffled(materials.emoji_of(split), generator):
        style = _a_style(materials, emoji, generator)
        if style is None or _drawn_alike(materials.task_image(emoji.key, style), materials, emoji):
            continue
        found = with_wrong_ones(style, STYLES, Style.__ne__, generator, n=len(STYLES))
        assert found is not None  # as there are so many styles
        choices, answer = found
        yield {
            "id": f"{emoji.key}.{style.name}",
            "image": materials.task_image(emoji.key, style),
            "name": emoji.name,
            "choices": [each.phrase for each in choices],
            "answer": answer,
        }


def _grouped(materials: Materials, split: Split) -> list[Emoji]:
    """Return the emoji whose group is beyond doubt."""
    return [
        each
        for each in materials.emoji_of(split)
        if each.group in _GROUPS and each.subgroup not in _BETWEEN_GROUPS
    ]


def _a_style(materials: Materials, emoji: Emoji, generator: np.random.Generator) -> Style | None:
    styles: Sequence[Style] = materials.styles_of(emoji.key)
    return styles[int(generator.integers(len(styles)))] if styles else None


def _drawn_alike(task_image: TaskImage, materials: Materials, emoji: Emoji) -> bool:
    """Whether an emoji has the same image in several styles."""
    pixels = task_image.image.tobytes()
    others = [materials.task_image(emoji.key, style) for style in materials.styles_of(emoji.key)]
    return any(
        other.path != task_image.path and other.image.tobytes() == pixels for other in others
    )


def _say_the_same(one: Emoji, other: Emoji) -> bool:
    """Whether a name could stand for another: it has the same words or fewer, or equal letters."""
    words, others = (words_of(each.name) for each in (one, other))
    return (
        one.concept.family == other.concept.family
        or words <= others
        or others <= words
        or any(one.names[each].casefold() == other.names[each].casefold() for each in LANGUAGES)
    )


_SOURCES = tuple(dict.fromkeys([*(style.package.name for style in STYLES), "emojibase-data"]))
BENCHMARKS = (
    Benchmark("emoji_name", "the name of a drawing, among four of its group", _names, _SOURCES),
    Benchmark("emoji_group", "the group of a drawing, such as food & drink", _groups, _SOURCES),
    Benchmark(
        "emoji_odd_one_out", "which of four drawings is of another group", _odd_ones, _SOURCES
    ),
    Benchmark(
        "drawing_style", "the style of a drawing, among five", _styles, _SOURCES, len(STYLES)
    ),
)

assert len(_PLACES) == N_CHOICES
