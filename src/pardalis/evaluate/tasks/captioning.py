"""Captioning: the model describes an image, and metrics compare that with people's captions.

The metrics are those of the COCO caption evaluation, over the corpus of all items that were asked:

    cider_d         mean of CIDEr-D              Vedantam et al. 2015, arXiv 1411.5726, section 6
    bleu_1 to _4    BLEU of the corpus           Papineni et al. 2002, equation 3
    rouge_l         mean of ROUGE-L              Lin 2004, section 3
    meteor          METEOR 1.5 of the corpus     Denkowski and Lavie 2014

The weights of CIDEr-D's words come from the references of the same items, so that its value with a
``limit`` does not compare with one without. Its interval is of items that are drawn again with
these weights fixed; BLEU-4 is computed anew of each draw.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int

from pardalis.bundle import Bundle
from pardalis.documents import Document, Segment, Text
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate.metrics.captioning import (
    BleuCounts,
    DocumentFrequencies,
    Words,
    cider_d,
    rouge_l,
)
from pardalis.evaluate.metrics.intervals import bootstrap, bootstrap_of
from pardalis.evaluate.metrics.meteor import meteor, why_no_meteor
from pardalis.evaluate.metrics.ptb import caption_words
from pardalis.evaluate.tasks.generating import GeneratingTask
from pardalis.evaluate.tasks.items import Item
from pardalis.evaluate.tasks.task import (
    AnyRequest,
    Generation,
    Number,
    Outcome,
    Record,
    Trial,
    mean,
    paired_mean,
)

logger = logging.getLogger(__name__)

CaptionMetric = Literal["cider_d", "bleu", "rouge_l", "meteor"]


@dataclass(frozen=True, kw_only=True)
class CaptioningTask(GeneratingTask):
    """Captions of images; a caption is the first line of a completion.

    Raises:
        ConfigError: there is no metric or no reference, or a template or an option is wrong.
    """

    kind: Literal["captioning"] = "captioning"
    prompt: str  # template, with the image
    references: tuple[str, ...]  # templates of captions; a field with a list gives its entries
    metrics: tuple[CaptionMetric, ...] = ("cider_d", "bleu", "rouge_l")  # the first counts most

    defaults: ClassVar[dict[str, Any]] = {"mode": "text", "max_new_tokens": 30}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("metrics", "references"):
            if not getattr(self, name):
                raise ConfigError(f"{name} must have at least one entry.")
        self._template("prompt")
        self._listed("references")

    def references_of(self, item: Item) -> list[str]:
        """Return the captions of people; raises DataError if there are none with words."""
        found = [Document(tuple(each)).text for each in self._alternatives("references", item)]
        if not any(caption_words(text) for text in found):
            raise DataError(
                "the template 'references' gives no words; the item needs a caption to compare "
                "with."
            )
        return found

    def answer_of(self, item: Item) -> Sequence[Segment]:
        return [Text(self.references_of(item)[0].strip())]

    def check(self, trial: Trial) -> None:
        if not self.prompt_of(trial).images:
            raise DataError("the prompt holds no image to describe; name its field in `prompt`.")
        self.references_of(trial.item)

    def check_bundle(self, bundle: Bundle) -> None:
        super().check_bundle(bundle)
        if "meteor" in self.metrics and (why := why_no_meteor()):
            logger.warning(why)

    def requests(self, trial: Trial, bundle: Bundle) -> Sequence[AnyRequest]:
        return [Generation(self.prompt_of(trial), self.options(trial.seed_of()))]

    def score(
        self, trial: Trial, requests: Sequence[AnyRequest], results: Sequence[Any]
    ) -> Outcome:
        lines = results[0].text.strip().splitlines()
        caption = lines[0].strip() if lines else ""
        references = self.references_of(trial.item)
        words = caption_words(caption)
        [similarity] = rouge_l([words], [[caption_words(text) for text in references]])
        return Outcome(
            {"rouge_l": float(similarity), "words": float(len(words))},
            answer=Document(results[0].segments),
            expected=Document((Text(references[0]),)),
            details={"caption": caption, "references": references, "ended": results[0].reason},
        )

    def summarise(self, records: Sequence[Record], folder: Path) -> dict[str, Number]:
        corpus = _Corpus(records)
        found: dict[str, Number] = {}
        for metric in self.metrics:
            match metric:
                case "cider_d":
                    found["cider_d"] = mean(corpus.with_cider(), "cider_d")
                case "bleu":
                    found["bleu_4"] = _number(records, corpus.bleu(4))
                    for n in (3, 2, 1):  # without intervals, which take long
                        found[f"bleu_{n}"] = _by_seed_alone(records, corpus.bleu(n))
                case "rouge_l":
                    found["rouge_l"] = mean(records, "rouge_l")
                case "meteor" if why_no_meteor() is None:
                    found["meteor"] = _by_seed_alone(records, corpus.meteor)
        return found | {"words": mean(records, "words")}

    def differences(self, first: Sequence[Record], second: Sequence[Record]) -> dict[str, Number]:
        before, after = _Corpus(first), _Corpus(second)
        found: dict[str, Number] = {}
        for metric in self.metrics:
            match metric:
                case "cider_d":
                    pair = before.with_cider(), after.with_cider()
                    found["cider_d"] = paired_mean(*pair, "cider_d")
                case "bleu":
                    found["bleu_4"] = _number(
                        first, _difference(before.bleu(4), after.bleu(4)), by_seed=False
                    )
                case "rouge_l":
                    found["rouge_l"] = paired_mean(first, second, "rouge_l")
        return found


Statistic = Callable[[Int[np.ndarray, " m"]], float]


class _Corpus:
    """The words of finished items."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records
        self._captions = [caption_words(record["details"]["caption"]) for record in records]
        of_item: dict[str, list[Words]] = {}  # items stand once in the document frequencies
        for record in records:
            if record["id"] not in of_item:
                texts = record["details"]["references"]
                of_item[record["id"]] = [caption_words(text) for text in texts]
        self._references = [of_item[record["id"]] for record in records]
        self._frequencies = DocumentFrequencies.of(list(of_item.values()))
        self._counts = BleuCounts.of(self._captions, self._references)

    def with_cider(self) -> list[Record]:
        """Return the records with CIDEr-D among their scores."""
        values = cider_d(self._captions, self._references, self._frequencies).tolist()
        return [
            {**record, "scores": {**record["scores"], "cider_d": value}}
            for record, value in zip(self._records, values, strict=True)
        ]

    def bleu(self, n: int) -> Statistic:
        return lambda drawn: float(self._counts.corpus(drawn)[n - 1])

    def meteor(self, drawn: Int[np.ndarray, " m"]) -> float:
        places = drawn.tolist()
        captions = [self._captions[i] for i in places]
        return meteor(captions, [self._references[i] for i in places])[0]


def _difference(before: Statistic, after: Statistic) -> Statistic:
    return lambda drawn: after(drawn) - before(drawn)


def _number(records: Sequence[Record], statistic: Statistic, by_seed: bool = True) -> Number:
    """Return a statistic of the corpus of all seeds, with its interval over items."""
    ids = [record["id"] for record in records]
    several = len(set(ids)) < len(ids)
    low, high = bootstrap_of(len(ids), statistic, clusters=ids if several else None)
    values = _of_seeds(records, statistic) if by_seed and several else ()
    seeds_low, seeds_high = bootstrap(values) if values else (None, None)
    value = statistic(np.arange(len(ids)))
    return Number(value, low, high, values, seeds_low, seeds_high)


def _by_seed_alone(records: Sequence[Record], statistic: Statistic) -> Number:
    """Return the mean of a statistic over seeds, without an interval over items."""
    values = _of_seeds(records, statistic)
    value = sum(values) / len(values)
    if len(values) == 1:
        return Number(value)
    low, high = bootstrap(values)
    return Number(value, by_seed=values, seeds_low=low, seeds_high=high)


def _of_seeds(records: Sequence[Record], statistic: Statistic) -> tuple[float, ...]:
    places: dict[int, list[int]] = {}
    for place, record in enumerate(records):
        places.setdefault(record["seed"], []).append(place)
    return tuple(statistic(np.array(members)) for _, members in sorted(places.items()))
