"""Evaluation of an image tokenizer on any number of images, in bounded memory.

The scores of every image are kept, and as examples the worst images and a random sample.
"""

import heapq
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from pardalis.data.report import Rejected
from pardalis.errors import DataError
from pardalis.evaluate.image_tokenizer import RoundTrip, round_trips, unit_pixels
from pardalis.evaluate.images import ImageSet
from pardalis.evaluate.metrics.intervals import bootstrap
from pardalis.evaluate.ocr import OCR, n_recalled, words_of
from pardalis.evaluate.similarity import Moments, frechet_distance, ssim
from pardalis.feature_nets import FeatureNet, PerceptualDistance
from pardalis.progress import bar
from pardalis.seeds import numpy_generator
from pardalis.vq import ImageTokenizer, codebook_use, perplexity, psnr


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricNets:
    """The networks of optional metrics; a metric without a network is not computed."""

    perceptual: PerceptualDistance | None = None
    frechet: FeatureNet | None = None
    ocr: OCR | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """An image, its reconstruction and its scores."""

    name: str
    scores: dict[str, float | int]  # psnr, ssim, the perceptual distance, words and words_recalled
    original: PIL.Image.Image
    reconstruction: PIL.Image.Image


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The result of an evaluation."""

    scores: dict[str, Any]  # over all images, plain values; None: undefined for these images
    images: list[dict[str, Any]]  # name and scores of each image
    worst: list[Example]  # the worst first
    worst_by: str  # the score that they are sorted by
    sample: list[Example]  # a random sample
    code_counts: Integer[np.ndarray, " N"]
    rejected: dict[str, Rejected]  # by kind of error


def evaluate_reconstruction(
    tokenizer: ImageTokenizer, images: ImageSet, nets: MetricNets, n_examples: int = 16
) -> Evaluation:
    """Encode and decode images, and score the reconstructions.

    Images are compared in 8 bits at the tokenizer's resolution, so the loss by making them square
    is not counted. The worst have the largest perceptual distance, or without that metric the
    lowest PSNR.

    Args:
        n_examples: the number of worst images to keep, and of random ones.

    Raises:
        DataError: no image can be read.
        RequestError: the tokenizer has no decoder.
        ConfigError: torchmetrics is not installed, or the images are too small for a network.
    """
    if nets.perceptual is not None:
        nets.perceptual.check_side(tokenizer.config.resolution)
    scorer = _Scorer(tokenizer, nets, n_examples)
    names: deque[str] = deque()

    def squares() -> Iterator[PIL.Image.Image]:
        for name, image in images.squares(tokenizer.config):
            names.append(name)
            yield image

    with bar("Evaluating", total=len(images), unit="images") as advance:
        for trip in round_trips(tokenizer, squares()):
            scorer.add([names.popleft() for _ in trip.originals], trip)
            advance(len(trip.originals))
    if not scorer.images:
        raise _no_image(images)
    return Evaluation(
        scores=scorer.scores(images.rejected),
        images=scorer.images,
        worst=scorer.worst.items(),
        worst_by=scorer.worst_by,
        sample=scorer.sample.items(),
        code_counts=scorer.counts.numpy(),
        rejected=images.rejected,
    )


def _no_image(images: ImageSet) -> DataError:
    examples = [example for of_kind in images.rejected.values() for example in of_kind.examples]
    if not examples:
        return DataError(f"{images.path} holds no images; give other data, or another `reader`.")
    first = examples[0]
    return DataError(
        f"{images.path} holds no image that can be read; the first rejected is "
        f"{first['where']}: {first['reason']}"
    )


class _Scorer:
    """Scores of the images so far."""

    def __init__(self, tokenizer: ImageTokenizer, nets: MetricNets, n_examples: int) -> None:
        self._device = next(tokenizer.parameters()).device
        self._perceptual = nets.perceptual
        self._ocr = nets.ocr
        self._frechet = None if nets.frechet is None else _Frechet(nets.frechet)
        self._generator = numpy_generator(0, "shown pictures")  # decides the choice: never rename
        self.counts = torch.zeros(tokenizer.config.n_codes, dtype=torch.int64)
        self.worst, self.sample = _Largest(n_examples), _Largest(n_examples)
        self.worst_by = "psnr" if self._perceptual is None else self._perceptual.name
        self.images: list[dict[str, Any]] = []

    @torch.no_grad()
    def add(self, names: Sequence[str], trip: RoundTrip) -> None:
        """Score a batch of images."""
        self.counts += torch.bincount(trip.codes.flatten(), minlength=len(self.counts))
        reconstructed = unit_pixels(trip.reconstructions).to(self._device)
        pixels = unit_pixels(trip.originals).to(self._device)
        scores = {"psnr": psnr(reconstructed, pixels), "ssim": ssim(reconstructed, pixels)}
        if self._perceptual is not None:
            scores[self._perceptual.name] = self._perceptual(reconstructed, pixels)
        if self._frechet is not None:
            self._frechet.add(reconstructed, pixels)
        by_image = zip(*(values.tolist() for values in scores.values()), strict=True)
        for name, values, *images in zip(
            names, by_image, trip.originals, trip.reconstructions, strict=True
        ):
            own = dict(zip(scores, values, strict=True))
            self._keep(Example(name, own | self._words(*images), *images))

    def _words(self, original: PIL.Image.Image, reconstruction: PIL.Image.Image) -> dict[str, int]:
        if self._ocr is None:
            return {}
        words = words_of(self._ocr(original))
        recalled = n_recalled(words, self._ocr(reconstruction)) if words else 0
        return {"words": len(words), "words_recalled": recalled}

    def _keep(self, example: Example) -> None:
        score = example.scores[self.worst_by]
        self.worst.offer(-score if self.worst_by == "psnr" else score, example)
        self.sample.offer(self._generator.random(), example)
        self.images.append({"name": example.name, **example.scores})

    def scores(self, rejected: Mapping[str, Rejected]) -> dict[str, Any]:
        """Return the scores over all images, of which there is at least one."""
        scores: dict[str, Any] = {
            "images": len(self.images),
            "rejected": sum(of_kind.count for of_kind in rejected.values()),
        }
        for name in dict.fromkeys(("psnr", "ssim", self.worst_by)):
            values = np.array([image[name] for image in self.images])
            scores |= {
                name: float(values.mean()),
                f"{name}_interval": list(bootstrap(values, resamples=1000)),
            }
        if self._frechet is not None:
            scores[self._frechet.score_name] = self._frechet.distance()
        if self._ocr is not None:
            words, recalled = (
                sum(image[key] for image in self.images) for key in ("words", "words_recalled")
            )
            scores |= {"words": words, "word_recall": recalled / words if words else None}
        code_perplexity = float(perplexity(self.counts))
        return scores | {
            "codebook_use": float(codebook_use(self.counts)),
            "perplexity": code_perplexity,
            "bits_per_code": math.log2(code_perplexity),
        }


class _Frechet:
    """The Fréchet distance of all originals and all reconstructions in a net's features."""

    def __init__(self, net: FeatureNet) -> None:
        self._net = net
        self._reconstructed, self._originals = Moments(net.width), Moments(net.width)
        # FID is defined with this net only.
        self.score_name = "fid" if net.name == "inception_v3" else f"frechet_{net.name}"

    def add(
        self, reconstructed: Float[Tensor, "B 3 Y X"], pixels: Float[Tensor, "B 3 Y X"]
    ) -> None:
        self._reconstructed.add(self._net.pooled(reconstructed))
        self._originals.add(self._net.pooled(pixels))

    def distance(self) -> float | None:
        distance = frechet_distance(self._reconstructed, self._originals)
        return None if math.isnan(distance) else distance


class _Largest:
    """The examples with the largest keys; of equal keys the first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[float, int, Example]] = []
        self._order = count(0, -1)

    def offer(self, key: float, example: Example) -> None:
        heapq.heappush(self._heap, (key, next(self._order), example))
        if len(self._heap) > self._size:
            heapq.heappop(self._heap)

    def items(self) -> list[Example]:
        """Return the examples, the largest key first."""
        return [example for _, _, example in sorted(self._heap, reverse=True)]
