"""Scoring an image tokenizer on any images, a few at a time: memory does not grow with them.

What is kept of each image is its scores; of the images themselves, the worst and a random few.
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
from pardalis.evaluate.images import Images
from pardalis.evaluate.similarity import Moments, frechet_distance, interval, ssim
from pardalis.evaluate.words import ReadLines, n_kept, words_of
from pardalis.feature_nets import FeatureNet, PerceptualDistance
from pardalis.progress import bar
from pardalis.seeds import numpy_generator
from pardalis.vq import ImageTokenizer, codebook_use, perplexity, psnr


@dataclass(frozen=True, kw_only=True, slots=True)
class Judges:
    """What looks at images besides arithmetic; what is None does not look."""

    perceptual: PerceptualDistance | None = None
    frechet: FeatureNet | None = None
    lines: ReadLines | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """An image before and after, with its scores."""

    name: str
    scores: dict[str, float | int]  # psnr, ssim, the perceptual distance, words and words_kept
    original: PIL.Image.Image
    reconstruction: PIL.Image.Image


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What an evaluation came to."""

    scores: dict[str, Any]  # of all images together, plain values; None: not defined for these
    images: list[dict[str, Any]]  # name and scores of each
    worst: list[Example]  # the worst first
    worst_by: str  # the score that decided it
    sample: list[Example]  # taken at random
    code_counts: Integer[np.ndarray, " N"]
    rejected: dict[str, Rejected]  # by kind


def evaluate_reconstruction(
    tokenizer: ImageTokenizer, images: Images, judges: Judges, n_shown: int = 16
) -> Evaluation:
    """Encode and decode images, and score what comes back.

    Each is compared at the tokenizer's own resolution and in 8 bits: what making it a square loses
    is not counted. The worst are those with the largest perceptual distance, or where that is not
    measured, with the least PSNR.

    Args:
        n_shown: how many of the worst images to keep, and how many random ones.

    Raises:
        DataError: no image can be read.
        RequestError: the tokenizer has no decoder.
        ConfigError: torchmetrics is not installed.
    """
    tally = _Tally(tokenizer, judges, n_shown)
    names: deque[str] = deque()

    def squares() -> Iterator[PIL.Image.Image]:
        for name, image in images.squares(tokenizer.config):
            names.append(name)
            yield image

    with bar("Evaluating", total=len(images), unit="images") as advance:
        for trip in round_trips(tokenizer, squares()):
            tally.add([names.popleft() for _ in trip.originals], trip)
            advance(len(trip.originals))
    if not tally.images:
        raise _no_image(images)
    return Evaluation(
        scores=tally.scores(images.rejected),
        images=tally.images,
        worst=tally.worst.items(),
        worst_by=tally.worst_by,
        sample=tally.sample.items(),
        code_counts=tally.counts.numpy(),
        rejected=images.rejected,
    )


def _no_image(images: Images) -> DataError:
    examples = [example for of_kind in images.rejected.values() for example in of_kind.examples]
    if not examples:
        return DataError(f"{images.path} holds no images; give other data, or another `reader`.")
    first = examples[0]
    return DataError(
        f"{images.path} holds no image that can be read; the first rejected is "
        f"{first['where']}: {first['reason']}"
    )


class _Tally:
    """What is kept of the images seen so far."""

    def __init__(self, tokenizer: ImageTokenizer, judges: Judges, n_shown: int) -> None:
        self._device = next(tokenizer.parameters()).device
        self._perceptual = judges.perceptual
        self._lines = judges.lines
        self._sets = None if judges.frechet is None else _Sets(judges.frechet)
        self._chance = numpy_generator(0, "shown pictures")
        self.counts = torch.zeros(tokenizer.config.n_codes, dtype=torch.int64)
        self.worst, self.sample = _Largest(n_shown), _Largest(n_shown)
        self.worst_by = "psnr" if self._perceptual is None else self._perceptual.name
        self.images: list[dict[str, Any]] = []

    @torch.no_grad()
    def add(self, names: Sequence[str], trip: RoundTrip) -> None:
        """Score some images, and keep what is to be shown of them."""
        self.counts += torch.bincount(trip.codes.flatten(), minlength=len(self.counts))
        rebuilt = unit_pixels(trip.reconstructions).to(self._device)
        pixels = unit_pixels(trip.originals).to(self._device)
        columns = {"psnr": psnr(rebuilt, pixels), "ssim": ssim(rebuilt, pixels)}
        if self._perceptual is not None:
            columns[self._perceptual.name] = self._perceptual(rebuilt, pixels)
        if self._sets is not None:
            self._sets.add(rebuilt, pixels)
        rows = zip(*(values.tolist() for values in columns.values()), strict=True)
        for name, row, *images in zip(
            names, rows, trip.originals, trip.reconstructions, strict=True
        ):
            scores = dict(zip(columns, row, strict=True))
            self._keep(Example(name, scores | self._words(*images), *images))

    def _words(self, original: PIL.Image.Image, reconstruction: PIL.Image.Image) -> dict[str, int]:
        if self._lines is None:
            return {}
        words = words_of(self._lines(original))
        kept = n_kept(words, self._lines(reconstruction)) if words else 0
        return {"words": len(words), "words_kept": kept}

    def _keep(self, example: Example) -> None:
        score = example.scores[self.worst_by]
        self.worst.offer(-score if self.worst_by == "psnr" else score, example)
        self.sample.offer(self._chance.random(), example)
        self.images.append({"name": example.name, **example.scores})

    def scores(self, rejected: Mapping[str, Rejected]) -> dict[str, Any]:
        """Return the scores of all images together, at least one."""
        scores: dict[str, Any] = {
            "images": len(self.images),
            "rejected": sum(of_kind.count for of_kind in rejected.values()),
        }
        for name in dict.fromkeys(("psnr", "ssim", self.worst_by)):
            values = np.array([image[name] for image in self.images])
            scores |= {name: float(values.mean()), f"{name}_interval": list(interval(values))}
        if self._sets is not None:
            scores[self._sets.score_name] = self._sets.distance()
        if self._lines is not None:
            words, kept = (sum(p[key] for p in self.images) for key in ("words", "words_kept"))
            scores |= {"words": words, "word_recall": kept / words if words else None}
        in_effect = float(perplexity(self.counts))
        return scores | {
            "codebook_use": float(codebook_use(self.counts)),
            "perplexity": in_effect,
            "bits_per_code": math.log2(in_effect),
        }


class _Sets:
    """All originals and all reconstructions, as distributions of a net's features."""

    def __init__(self, net: FeatureNet) -> None:
        self._net = net
        self._rebuilt, self._originals = Moments(net.width), Moments(net.width)
        # "FID" is defined with that one net.
        self.score_name = "fid" if net.name == "inception_v3" else f"frechet_{net.name}"

    def add(self, rebuilt: Float[Tensor, "B 3 Y X"], pixels: Float[Tensor, "B 3 Y X"]) -> None:
        self._rebuilt.add(self._net.pooled(rebuilt))
        self._originals.add(self._net.pooled(pixels))

    def distance(self) -> float | None:
        distance = frechet_distance(self._rebuilt, self._originals)
        return None if math.isnan(distance) else distance


class _Largest:
    """The examples with the largest keys among those offered; of equal ones the first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[float, int, Example]] = []
        self._order = count(0, -1)

    def offer(self, key: float, example: Example) -> None:
        heapq.heappush(self._heap, (key, next(self._order), example))
        if len(self._heap) > self._most:
            heapq.heappop(self._heap)

    def items(self) -> list[Example]:
        """Return them, the largest first."""
        return [example for _, _, example in sorted(self._heap, reverse=True)]
