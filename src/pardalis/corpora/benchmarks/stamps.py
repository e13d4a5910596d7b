"""Tasks about stamps: photographs and drawings with a caption that people wrote and translated.

One question is asked of each caption, with the first of the stamps that bear it. Wrong captions are
those of other stamps that cannot be told from the right one by language alone: each is there in all
languages, and in none is it equal to another, nor are its English words all in another.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps

from pardalis.corpora.benchmarks.materials import LANGUAGES, Materials, Stamp, words_of
from pardalis.corpora.benchmarks.packages import STAMPS
from pardalis.corpora.benchmarks.questions import (
    Benchmark,
    Question,
    Split,
    TaskImage,
    shuffled,
    with_wrong_ones,
)
from pardalis.documents.images import open_image


def _captions(
    materials: Materials, split: Split, generator: np.random.Generator
) -> Iterator[Question]:
    stamps = [each for each in materials.stamps if each.split == split]
    for stamp in shuffled(stamps, generator):
        found = with_wrong_ones(stamp, stamps, _differ, generator)
        if found is None:
            continue
        choices, answer = found
        name = stamp.name.replace("/", ".")
        yield {
            "id": stamp.name,
            "image": TaskImage(Path("images", f"stamp.{name}.png"), _drawn(stamp, materials.side)),
            "caption": stamp.captions["en"],
            "captions": {code: [each.captions[code] for each in choices] for code in LANGUAGES},
            "answer": answer,
        }


def _drawn(stamp: Stamp, side: int) -> PIL.Image.Image:
    """Return a stamp whole, on a white square."""
    image = open_image(stamp.png)
    resampling = PIL.Image.Resampling.LANCZOS
    return PIL.ImageOps.pad(image, (side, side), resampling, color=(255, 255, 255))


def _differ(one: Stamp, other: Stamp) -> bool:
    words, others = words_of(one.captions["en"]), words_of(other.captions["en"])
    return not (
        words <= others
        or others <= words
        or any(
            one.captions[each].casefold() == other.captions[each].casefold() for each in LANGUAGES
        )
    )


BENCHMARKS = (
    Benchmark(
        "stamp_caption", "the caption of a stamp, in six languages", _captions, (STAMPS.name,),
        optional=STAMPS,
    ),
)  # fmt: skip
