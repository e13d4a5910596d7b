"""Text to image: the model generates an image for a prompt, and metrics judge all of them.

    frechet     squared Fréchet distance to the real images       arXiv 1706.08500, equation 6
    kernel      unbiased squared MMD with (x·y/D + 1)³             arXiv 1801.01401, section 3
    prdc        precision, recall, density, coverage, k neighbours  arXiv 1904.06991, 2002.09797
    retrieval   how often the real image of the prompt is nearest among ``candidates`` real ones
    image_text  cosine of the image and the text in a net that the user supplies
    aesthetic   a head that the user supplies, on the vectors of a CLIP
    nsfw        how unsafe for work the image is, by Yahoo's Open-NSFW
    ocr         words in quotation marks of the prompt that are read in the image

What judges one image by itself is in :mod:`pardalis.evaluate.metrics.image_scores`.

The first four need real images, which ``reference`` names, and take the features of
EfficientNet-lite0, whose name their results carry: none of them is the FID or the KID of Inception.
A real image is made a square of the generated one's side by
:func:`~pardalis.vq.open_square`, which crops the centre, and kept beside it, so that the numbers
can be computed again from the folder of results. They have no intervals but over seeds: a Fréchet
distance of images that are drawn again, some of them twice, is a larger one.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, overload

import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor

from pardalis.bundle import Bundle
from pardalis.config import check_at_least
from pardalis.documents import Document, Image, Segment, Text, open_image
from pardalis.errors import ConfigError, DataError, RequestError
from pardalis.evaluate.features import ImageFeatures
from pardalis.evaluate.metrics.distribution import frechet, kernel_distance, neighbours
from pardalis.evaluate.metrics.image_scores import IMAGE_SCORES, Judge, Nets
from pardalis.evaluate.metrics.intervals import bootstrap
from pardalis.evaluate.metrics.text_in_image import word_recall
from pardalis.evaluate.ocr import OCR, load_ocr
from pardalis.evaluate.retrieval import retrieval_top1
from pardalis.evaluate.tasks.generating import GeneratingTask, by_group
from pardalis.evaluate.tasks.items import Item
from pardalis.evaluate.tasks.judging import judged_images
from pardalis.evaluate.tasks.task import (
    AnyRequest,
    Generation,
    Number,
    Outcome,
    Record,
    Trial,
    mean,
    ratio,
)
from pardalis.vq import open_square

logger = logging.getLogger(__name__)

_WITH_REFERENCES = ("frechet", "kernel", "prdc", "retrieval")
_LOWER_IS_BETTER = ("frechet", "kernel")
_FEATURES = "efficientnet_lite0"  # at the end of the names of what is computed from its features


@dataclass(frozen=True, kw_only=True)
class TextToImageTask(GeneratingTask):
    """Images for prompts, which may hold images too.

    Raises:
        ConfigError: a metric needs a field that is empty, or a template or an option is wrong.
    """

    kind: Literal["text_to_image"] = "text_to_image"
    prompt: str  # template
    reference: str = ""  # template of the real image of the prompt; empty: there is none
    metrics: tuple[str, ...] = ()  # the first counts most; none: images for other tools
    text: str = ""  # template of what image_text and ocr compare; empty: the text of the prompt
    net: Path | None = None  # folder of a CLIP or of a pair net, from the current folder
    head: Path | None = None  # file of an aesthetic head, likewise
    candidates: int = 100  # real images of a retrieval, of which one is right
    neighbours: int = 5  # k of prdc
    group: str = ""  # template; scores of items are told by what it gives too

    defaults: ClassVar[dict[str, Any]] = {"mode": "image"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, candidates=2, neighbours=1)
        if self.options(0).mode != "image":
            raise ConfigError(f"generation.mode must be 'image' for {self.kind}; leave it out.")
        self._check_metrics()
        if self.shots and not self.reference:
            raise ConfigError(
                f"shots is {self.shots}, but examples have no image; name its field in `reference`."
            )
        for name in ("prompt", "reference", "text", "group"):
            self._template(name)

    def _check_metrics(self) -> None:
        needing = [name for name in self.metrics if name in _WITH_REFERENCES]
        if needing and not self.reference:
            raise ConfigError(
                f"metrics has {needing[0]!r}, which compares with real images; name their field in "
                "`reference`."
            )
        for metric in self.metrics:
            if metric not in (known := (*_WITH_REFERENCES, *IMAGE_SCORES, "ocr")):
                raise ConfigError(
                    f"metrics has {metric!r}; each must be one of {', '.join(known)}."
                )
            for name in IMAGE_SCORES[metric].needs if metric in IMAGE_SCORES else ():
                if getattr(self, name) is None:
                    raise ConfigError(f"metrics has {metric!r}, which needs {_NEEDED[name]}.")

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        """Whether a larger value of the first number is better."""
        if self.metrics and self.metrics[0] in IMAGE_SCORES:
            return IMAGE_SCORES[self.metrics[0]].higher_is_better
        return not self.metrics or self.metrics[0] not in _LOWER_IS_BETTER

    # ── the item ───────────────────────────────────────────────────────────────────────────────

    def reference_of(self, item: Item) -> Image:
        """Return the real image of an item; raises DataError unless there is exactly one."""
        segments = self._template("reference").segments(item.fields)
        match segments:
            case [Image() as image]:
                return image
        raise DataError(f"the template 'reference' gives {_shown(segments)}; it must be one image.")

    def text_of(self, item: Item) -> str:
        """Return the text that the image is compared with."""
        segments = self._template("text" if self.text else "prompt").segments(item.fields)
        return " ".join(each.text.strip() for each in segments if isinstance(each, Text))

    def answer_of(self, item: Item) -> Sequence[Segment]:
        return [self.reference_of(item)]

    def check(self, trial: Trial) -> None:
        super().check(trial)
        self.text_of(trial.item)
        self._template("group").text(trial.item.fields)
        if self.reference:
            self.reference_of(trial.item)

    # ── the model ──────────────────────────────────────────────────────────────────────────────

    def check_bundle(self, bundle: Bundle) -> None:
        """Also load the nets of the metrics, before anything is generated.

        Raises:
            ConfigError: a package is missing.
            BundleError: the folder of a net cannot be read.
        """
        super().check_bundle(bundle)
        if set(self.metrics) & set(_WITH_REFERENCES):
            _ = self._features
        _ = self._judges
        if "ocr" in self.metrics:
            _ = self._ocr

    def requests(self, trial: Trial, bundle: Bundle) -> Sequence[AnyRequest]:
        return [Generation(self.prompt_of(trial), self.options(trial.seed_of()))]

    def score(
        self, trial: Trial, requests: Sequence[AnyRequest], results: Sequence[Any]
    ) -> Outcome:
        image, pixels = generated_image(results[0])
        expected = None
        if self.reference:
            real = open_square(self.reference_of(trial.item).source, pixels.width)
            expected = Document((Image(PIL.Image.fromarray(real)),))
        text = self.text_of(trial.item)
        scores: dict[str, float] = {}
        details: dict[str, Any] = {
            "text": text,
            "group": self._template("group").text(trial.item.fields),
        }
        if "ocr" in self.metrics:
            found = word_recall(text, lines := self._ocr(pixels))
            details |= {"words": found.words, "words_read": found.recalled, "lines": lines}
            if found.words:
                scores[_WORDS] = found.recall
        return Outcome(scores, Document((image,)), expected, details)

    def judged(self, records: Sequence[Record], folder: Path) -> Sequence[Record]:
        return judged_images(self.name, self._judges, records, folder)

    # ── the numbers ────────────────────────────────────────────────────────────────────────────

    def summarise(self, records: Sequence[Record], folder: Path) -> dict[str, Number]:
        seeds: dict[int, list[Record]] = {}
        for record in records:
            seeds.setdefault(record["seed"], []).append(record)
        of_seeds = []
        if set(self.metrics) & set(_WITH_REFERENCES):
            real = _ImageFiles(folder, records, "expected")
            vectors = dict(zip(real.names, self._features.of(real), strict=True))
            of_seeds = [self._compared(each, vectors, folder) for _, each in sorted(seeds.items())]
        found: dict[str, Number] = {}
        for metric in self.metrics:
            if metric in _WITH_REFERENCES:
                for name in of_seeds[0].get(metric, {}):
                    if all(name in each.get(metric, {}) for each in of_seeds):
                        found[name] = _over_seeds([each[metric][name] for each in of_seeds])
            elif metric in IMAGE_SCORES:
                names = dict.fromkeys(name for record in records for name in record["scores"])
                found |= {
                    n: mean(records, n) for n in names if n.startswith(_NAMES.get(metric, metric))
                }
            elif any(words := [float(each["details"]["words"]) for each in records]):
                read = [float(each["details"]["words_read"]) for each in records]
                found[_WORDS] = ratio(read, words, [record["id"] for record in records])
            else:
                logger.warning(
                    "Task %r: no prompt asks for words in quotation marks, so word_recall is left "
                    "out.",
                    self.name,
                )
        for name in dict.fromkeys(name for record in records for name in record["scores"]):
            found |= by_group(records, name)
        return found

    def _compared(
        self, records: Sequence[Record], real: Mapping[str, Float[Tensor, " D"]], folder: Path
    ) -> dict[str, dict[str, Number]]:
        """Return the numbers of each metric that compares with real images, of one seed."""
        names = [record["expected"][0]["image"] for record in records]
        generated = self._features.of(_ImageFiles(folder, records, "answer", distinct=False))
        gallery_names = list(dict.fromkeys(names))
        gallery = torch.stack([real[name] for name in gallery_names])
        found: dict[str, dict[str, Number]] = {}
        for metric in self.metrics:
            match metric:
                case "frechet":
                    distance, warning = frechet(generated, gallery)
                    if warning:
                        logger.warning("Task %r: %s", self.name, warning)
                    found[metric] = {f"frechet_{_FEATURES}": Number(distance)}
                case "kernel" if self._enough(metric, generated, gallery, 2):
                    kernel = kernel_distance(generated, gallery).distance
                    found[metric] = {f"kernel_{_FEATURES}": Number(kernel)}
                case "prdc" if self._enough(metric, generated, gallery, self.neighbours + 1):
                    shares = neighbours(generated, gallery, self.neighbours)
                    found[metric] = {
                        f"{name}_{_FEATURES}": Number(getattr(shares, name))
                        for name in ("precision", "recall", "density", "coverage")
                    }
                case "retrieval" if self._enough(metric, generated, gallery, 2):
                    places = torch.tensor([gallery_names.index(name) for name in names])
                    n = min(self.candidates, len(gallery))
                    ranked = retrieval_top1(generated, gallery, places, n)
                    low, high = bootstrap([rank == 1 for rank in ranked.ranks])
                    found[metric] = {
                        f"retrieval_of_{n}_{_FEATURES}": Number(ranked.top1, low, high),
                        "retrieval_chance": Number(ranked.chance),
                        "retrieval_constant": Number(ranked.constant),
                    }
        return found

    def _enough(
        self, metric: str, generated: Float[Tensor, "N D"], real: Float[Tensor, "M D"], least: int
    ) -> bool:
        if (n := min(len(generated), len(real))) >= least:
            return True
        logger.warning(
            "Task %r: %s is left out, because it needs at least %d different images, and there "
            "are %d.",
            self.name,
            metric,
            least,
            n,
        )
        return False

    # ── the nets ───────────────────────────────────────────────────────────────────────────────

    @cached_property
    def _features(self) -> ImageFeatures:
        return ImageFeatures.load()

    @cached_property
    def _ocr(self) -> OCR:
        return load_ocr()

    @cached_property
    def _judges(self) -> list[Judge]:
        nets = Nets(self.net, self.head)
        return [IMAGE_SCORES[name].load(nets) for name in self.metrics if name in IMAGE_SCORES]


_WORDS = "word_recall"
# Beginnings of the names of scores that are not those of their metrics.
_NAMES = {"image_text": ("clip_", "pair_net_")}
_NEEDED = {
    "net": "a net; give the folder of a CLIP or of a pair net as `net`",
    "head": "a head; give the file of linear maps of the net's vectors as `head`",
}


def generated_image(response: Document) -> tuple[Image, PIL.Image.Image]:
    """Return the first image of a completion, also opened; raises RequestError without one."""
    if not response.images:
        raise RequestError("The model generated no image for the prompt; is the context too short?")
    image = response.images[0]
    return image, open_image(image.source)


def _over_seeds(numbers: Sequence[Number]) -> Number:
    """Return the mean of a number over seeds; that of a single seed keeps its interval."""
    if len(numbers) == 1:
        return numbers[0]
    values = tuple(number.value for number in numbers)
    low, high = bootstrap(values)
    return Number(sum(values) / len(values), by_seed=values, seeds_low=low, seeds_high=high)


class _ImageFiles(Sequence[PIL.Image.Image]):
    """The images of records in a folder of results, which are opened when they are taken.

    Args:
        key: ``answer`` or ``expected``.
        distinct: each image once only.
    """

    def __init__(
        self, folder: Path, records: Sequence[Record], key: str, distinct: bool = True
    ) -> None:
        self._folder = folder
        names = [record[key][0]["image"] for record in records]
        self.names = list(dict.fromkeys(names)) if distinct else names

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, place: int) -> PIL.Image.Image: ...

    @overload
    def __getitem__(self, place: slice) -> list[PIL.Image.Image]: ...

    def __getitem__(self, place: int | slice) -> PIL.Image.Image | list[PIL.Image.Image]:
        if isinstance(place, slice):
            return [self[i] for i in range(len(self.names))[place]]
        return open_image(self._folder / self.names[place])


def _shown(segments: Sequence[Segment]) -> str:
    images = sum(isinstance(each, Image) for each in segments)
    if images == len(segments):
        return f"{images} images" if images else "nothing"
    return "text"
