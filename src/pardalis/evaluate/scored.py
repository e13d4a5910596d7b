"""Images of a run with their scores, as the report computes them and its page shows them."""

from dataclasses import dataclass

import PIL.Image
from torch import Tensor

from pardalis.evaluate.image_tokenizer import ImageTokenizerScores
from pardalis.evaluate.retrieval import Retrieval
from pardalis.evaluate.run_folder import Split


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """The gallery of a run, in the order of ``samples.json``."""

    names: list[str]
    splits: list[Split]
    images: list[PIL.Image.Image]  # no larger than scores and page need
    features: Tensor  # a row each

    def of_split(self, split: Split) -> list[int]:
        """Return the indices of the images of one split."""
        return [i for i, its_split in enumerate(self.splits) if its_split == split]


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """The drawn images of one split, scored; everything in the order of ``samples.json``."""

    prompts: list[str]
    images: list[PIL.Image.Image]
    originals: list[int]  # index into the corpus of each drawn image's original
    nearest: list[int]  # index of the most similar image that was trained on; empty if none was
    similarities: list[float]  # cosine with that image
    retrieval: Retrieval


@dataclass(frozen=True, kw_only=True, slots=True)
class Rebuilt:
    """The corpus images of one split after a round trip through the image tokenizer."""

    members: list[int]  # index into the corpus of each
    scores: ImageTokenizerScores
    images: list[PIL.Image.Image]
