"""METEOR 1.5 (Denkowski and Lavie 2014), by the Java program in the package pycocoevalcap.

It matches stems, synonyms and paraphrases by tables of 60 MB, so there is no METEOR of our own.
"""

import shutil
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from pardalis.errors import ConfigError
from pardalis.evaluate.metrics.captioning import Words, check_pairs


def why_no_meteor() -> str | None:
    """Return a sentence that says what is missing for METEOR; None if nothing is."""
    if shutil.which("java") is None:
        return "METEOR is left out, because it needs Java and there is no java on the path."
    try:
        import pycocoevalcap.meteor.meteor  # noqa: F401
    except ModuleNotFoundError:
        return (
            "METEOR is left out, because pycocoevalcap is not installed "
            "(pip install --no-deps pycocoevalcap; it has 100 MB)."
        )
    return None


def meteor(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]]
) -> tuple[float, Float[np.ndarray, " images"]]:
    """Return METEOR of a corpus, which is no mean over images, and of each image.

    Raises:
        ConfigError: Java or pycocoevalcap is missing.
        ValueError: as :func:`~pardalis.evaluate.metrics.captioning.cider_d`.
    """
    check_pairs(candidates, references)
    if why := why_no_meteor():
        raise ConfigError(why)
    from pycocoevalcap.meteor.meteor import Meteor

    program = Meteor()
    try:
        corpus, each = program.compute_score(
            {i: [" ".join(words) for words in captions] for i, captions in enumerate(references)},
            {i: [" ".join(words)] for i, words in enumerate(candidates)},
        )
    finally:
        program.meteor_p.stdout.close()
        program.meteor_p.stderr.close()
    return float(corpus), np.array(each, np.float64)
