"""Pictures of a run with their scores, as the report computes them and its page shows them."""

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from pardalis.evaluate.image_tokenizer import ImageTokenizerScores
from pardalis.evaluate.retrieval import Retrieval
from pardalis.evaluate.run_folder import Split


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """The gallery of a run, in the order of ``answers.json``."""

    names: list[str]
    splits: list[Split]
    images: list[Image.Image]  # no larger than scores and page need
    features: Tensor  # a row each

    def of_split(self, split: Split) -> list[int]:
        """Return the indices of the pictures of one split."""
        return [i for i, its_split in enumerate(self.splits) if its_split == split]


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """The drawn pictures of one split, scored; everything in the order of ``answers.json``."""

    prompts: list[str]
    images: list[Image.Image]
    originals: list[int]  # index into the corpus of each drawn picture's original
    nearest: list[int]  # index of the most similar picture that was trained on; empty if none was
    similarities: list[float]  # cosine with that picture
    retrieval: Retrieval


@dataclass(frozen=True, kw_only=True, slots=True)
class Rebuilt:
    """The corpus pictures of one split after a round trip through the image tokenizer."""

    members: list[int]  # index into the corpus of each
    scores: ImageTokenizerScores
    images: list[Image.Image]
