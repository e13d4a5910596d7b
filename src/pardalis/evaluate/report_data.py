"""Images of a run with their scores: computed by the report, shown on its page."""

from dataclasses import dataclass

import PIL.Image
from torch import Tensor

from pardalis.evaluate.image_tokenizer import ImageTokenizerScores
from pardalis.evaluate.retrieval import Retrieval
from pardalis.evaluate.sample_file import Split


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """The corpus images that generated ones are compared with, as in ``samples.json``."""

    names: list[str]
    splits: list[Split]
    images: list[PIL.Image.Image]  # downscaled
    features: Tensor | None  # one vector per image; None: the scoring net is not installed
    labels: list[tuple[str, str]]  # caption and pixels; equal ones are equally right

    def of_split(self, split: Split) -> list[int]:
        """Return the indices of the images of one split."""
        return [i for i, its_split in enumerate(self.splits) if its_split == split]


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratedImages:
    """The generated images of one split with their scores, in the order of ``samples.json``."""

    prompts: list[str]
    images: list[PIL.Image.Image]
    originals: list[int]  # index in the gallery of each image's original
    nearest: list[int]  # index of the most similar training image; empty if none is known
    similarities: list[float]  # cosine with that image
    retrieval: Retrieval | None  # None: there are no images, or the net is not installed


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconstructions:
    """The gallery images of one split after encoding and decoding by the image tokenizer."""

    originals: list[int]  # index in the gallery of each
    scores: ImageTokenizerScores
    images: list[PIL.Image.Image]
