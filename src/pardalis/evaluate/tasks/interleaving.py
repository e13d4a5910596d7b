"""Interleaving: does the model go on in the right modality, and draw where the text asks for it?

A document of texts and images is shown up to the end of each of its segments, and the model goes on
from there. What begins next is compared with what follows in the document:

    modality         share of places where the next segment is of the right modality
    image_recall     places where an image follows: an image is among what the model generates
    image_unasked    places where text follows: the model begins with an image; lower is better
    constant         modality of the better of two answers that are always the same

With ``net`` there is also the cosine of the first image that the model generates in an item and the
text before it, in a CLIP or a pair net; the score bears the net's name.

A model that ends its turn instead is wrong. With ``next`` an item is one place: the whole document
is shown, and the template says what must follow, ``text`` or ``image``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from pardalis.bundle import Bundle
from pardalis.config import check_at_least
from pardalis.documents import Document, Image, Segment, Text
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate.metrics.image_scores import IMAGE_SCORES, Judge, Nets
from pardalis.evaluate.tasks.generating import GeneratingTask
from pardalis.evaluate.tasks.items import Item
from pardalis.evaluate.tasks.judging import judged_images
from pardalis.evaluate.tasks.task import AnyRequest, Generation, Number, Outcome, Record, Trial
from pardalis.evaluate.tasks.template import joined

Modality: TypeAlias = Literal["text", "image"]

_MOST_TEXT = 64  # tokens before an image that is asked for


@dataclass(frozen=True, kw_only=True)
class InterleavingTask(GeneratingTask):
    """What follows the beginning of a document.

    By default a completion has room for 64 tokens of text and one image.

    Raises:
        ConfigError: few-shot examples or turns are asked for, or an option is wrong.
    """

    kind: Literal["interleaving"] = "interleaving"
    document: str = "{document}"  # template of the whole document
    next: str = ""  # template: what must follow the document; empty: what follows its segments
    net: Path | None = None  # folder of a CLIP or of a pair net, from the current folder
    positions: int = 4  # segments of a document after which the model goes on, the first ones

    defaults: ClassVar[dict[str, Any]] = {"mode": "interleaved", "max_images": 1}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, positions=1)
        for name in ("shots", "chat", "preamble"):
            if getattr(self, name):
                raise ConfigError(f"{name} does not apply to interleaving; leave it out.")
        if (mode := self.options(0).mode) != "interleaved":
            raise ConfigError(
                f"generation.mode must be 'interleaved' for interleaving, got {mode!r}; leave it "
                "out."
            )
        self._template("document")
        self._template("next")

    def places_of(self, item: Item) -> list[tuple[Document, Modality]]:
        """Return beginnings of the document, each with what follows.

        Raises:
            DataError: nothing follows any segment, or ``next`` gives something else.
        """
        segments = self._segments(item)
        if self.next:
            wanted = self._template("next").text(item.fields).strip()
            if wanted not in ("text", "image"):
                raise DataError(
                    f"the template 'next' gives {wanted[:60]!r}; it must be 'text' or 'image'."
                )
            if not segments:
                raise DataError("the document is empty; the item needs what is shown.")
            return [(Document(tuple(segments)), "image" if wanted == "image" else "text")]
        if len(segments) < 2:
            raise DataError(
                "the document has no text beside an image, so nothing follows a segment; give "
                "`next`, or leave the item out."
            )
        return [
            (Document(tuple(segments[:n])), _modality(segments[n]))
            for n in range(1, min(self.positions, len(segments) - 1) + 1)
        ]

    def _segments(self, item: Item) -> list[Segment]:
        """Return the document in segments of alternating modalities or of images."""
        found = self._template("document").segments(item.fields)
        return joined(replace(segment, role=None) for segment in found)

    def check(self, trial: Trial) -> None:
        self.places_of(trial.item)

    def requests(self, trial: Trial, bundle: Bundle) -> Sequence[AnyRequest]:
        grammar = bundle.codec.grammar
        room = _MOST_TEXT + grammar.codes_per_image + 2
        found = []
        for number, (prompt, _) in enumerate(self.places_of(trial.item)):
            options = self.options(trial.seed_of("place", number))
            if options.max_new_tokens is None:
                options = replace(options, max_new_tokens=room)
            found.append(Generation(prompt, options))
        return found

    def score(
        self, trial: Trial, requests: Sequence[AnyRequest], results: Sequence[Any]
    ) -> Outcome:
        places = [wanted for _, wanted in self.places_of(trial.item)]
        segments = [joined(result.segments) for result in results]
        found = [_modality(each[0]) if each else "end" for each in segments]
        drawn = [any(isinstance(part, Image) for part in each) for each in segments]
        right = [a == b for a, b in zip(places, found, strict=True)]
        recalled = [has for has, wanted in zip(drawn, places, strict=True) if wanted == "image"]
        unasked = [a == "image" for a, b in zip(found, places, strict=True) if b == "text"]
        scores = {
            name: sum(values) / len(values)
            for name, values in (
                ("modality", right),
                ("image_recall", recalled),
                ("image_unasked", unasked),
            )
            if values
        }
        rest = () if self.next else tuple(self._segments(trial.item)[1:])
        shown = drawn.index(True) if any(drawn) else 0
        before = [each for each, _ in self.places_of(trial.item)][shown].segments
        return Outcome(
            scores,
            answer=Document(results[shown].segments),
            expected=Document(rest) if rest else None,
            details={
                "places": [
                    {"expected": wanted, "found": begins, "has_image": has}
                    for wanted, begins, has in zip(places, found, drawn, strict=True)
                ],
                "text": _text_before(before, segments[shown]),
            },
        )

    def check_bundle(self, bundle: Bundle) -> None:
        """Also load the net; raises BundleError and ConfigError."""
        super().check_bundle(bundle)
        _ = self._judges

    def judged(self, records: Sequence[Record], folder: Path) -> Sequence[Record]:
        return judged_images(self.name, self._judges, records, folder) if self.net else records

    @cached_property
    def _judges(self) -> list[Judge]:
        nets = Nets(self.net)
        return [IMAGE_SCORES["image_text"].load(nets)] if self.net is not None else []

    def summarise(self, records: Sequence[Record], folder: Path) -> dict[str, Number]:
        places = [
            [each["expected"] == "image" for each in record["details"]["places"]]
            for record in records
        ]
        share = sum(sum(each) / len(each) for each in places) / len(places)
        found = super().summarise(records, folder)
        return found | {"constant": Number(max(share, 1 - share))}


def _text_before(prompt: Sequence[Segment], completion: Sequence[Segment]) -> str:
    """Return the text that stands nearest before the first image of a completion."""
    own = takewhile(lambda segment: not isinstance(segment, Image), completion)
    texts = [each.text.strip() for each in (*prompt, *own) if isinstance(each, Text)]
    return texts[-1] if texts else ""


def _modality(segment: Segment) -> Modality:
    return "image" if isinstance(segment, Image) else "text"
