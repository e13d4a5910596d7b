"""Perplexity: what each token of a document costs, given all before it.

Let l_t = -log P(x_t | x_<t) be the loss of token t in nats. Over all items together

    bits_per_byte   sum of l_t over text tokens / (ln 2 x bytes of the texts in UTF-8)
    loss_text       mean of l_t over text tokens
    loss_image      mean of l_t over the codes of images
    loss_image_at_2 the same over the images that are the second segment of their document

Losses of different text tokenizers do not compare, bits per byte do (Gao et al. 2020, The Pile,
arXiv 2101.00027, section 3.1). Losses of images compare where the image tokenizer is the same. The
tokens that begin and end an image or a document are context, and are not counted.

A document that is longer than the model's context is read in windows, each of which begins with the
opening of a document (bos, if the model has it) and repeats so many of the tokens before it that
every token is predicted from at least the share ``overlap`` of the context. With ``overlap = 0``
windows do not overlap, as in lm-evaluation-harness. A window never begins inside an image.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pardalis.bundle import Bundle
from pardalis.config import check_at_least, check_fractions
from pardalis.documents import Document, Image, Text
from pardalis.errors import ConfigError, DataError, RequestError
from pardalis.evaluate.tasks.task import (
    AnyRequest,
    Number,
    Outcome,
    Record,
    TaskConfig,
    TokenLikelihood,
    Trial,
    paired_ratio,
    ratio,
)

_NONE = -1  # the segment of tokens that are not counted


@dataclass(frozen=True, kw_only=True)
class PerplexityTask(TaskConfig):
    """The loss of documents.

    Raises:
        ConfigError: few-shot examples or turns are asked for, or a value is out of range.
    """

    kind: Literal["perplexity"] = "perplexity"
    document: str = "{document}"  # template of the whole document
    overlap: float = 0.5  # least share of the context from which a token is predicted
    positions: int = 8  # segments of a document whose losses are told apart, the first ones

    higher_is_better: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fractions(self, "overlap", below_one=True)
        check_at_least(self, positions=0)
        for name in ("shots", "chat", "preamble"):
            if getattr(self, name):
                raise ConfigError(f"{name} does not apply to perplexity; leave it out.")
        self._template("document")

    def check(self, trial: Trial) -> None:
        if self._document(trial).is_empty:
            raise DataError("the document is empty, so it has no loss; leave it out.")

    def requests(self, trial: Trial, bundle: Bundle) -> Sequence[AnyRequest]:
        document, codec = self._document(trial), bundle.codec
        segments = document.segments
        numbered = [replace(each, weight=float(n)) for n, each in enumerate(segments, 1)]
        encoded = codec.encode(Document(tuple(numbered)))[len(codec.grammar.opening) : -1]
        ids: list[int] = encoded.ids.tolist()
        # Of an image only the codes are counted, not what begins and ends it.
        of = [
            n - 1 if isinstance(segments[n - 1], Text) or i in codec.vocabulary.image else _NONE
            for i, n in zip(ids, map(round, encoded.weights.tolist()), strict=True)
        ]
        inside = [isinstance(segments[round(n) - 1], Image) for n in encoded.weights.tolist()]
        begins = [i == codec.vocabulary.begin_image_id for i in ids]
        may_begin = [b or not i for b, i in zip(begins, inside, strict=True)]
        opening = codec.grammar.opening or [codec.vocabulary.bos_id]
        found = windows(may_begin, bundle.model.context - len(opening), self.overlap)
        return [
            TokenLikelihood((*opening, *ids[start:first]), tuple(ids[first:stop]), of[first:stop])
            for start, first, stop in found
        ]

    def score(
        self, trial: Trial, requests: Sequence[AnyRequest], results: Sequence[Any]
    ) -> Outcome:
        document = self._document(trial)
        nats: list[list[float]] = [[] for _ in document.segments]
        for request, result in zip(requests, results, strict=True):
            assert isinstance(request, TokenLikelihood)
            for place, log_prob in zip(request.note, result.log_probs, strict=True):
                if place != _NONE:
                    nats[place].append(-log_prob)
        entries = [
            {
                "modality": "image" if isinstance(segment, Image) else "text",
                "nats": math.fsum(values),
                "tokens": len(values),
                "bytes": len(segment.text.encode()) if isinstance(segment, Text) else 0,
            }
            for segment, values in zip(document.segments, nats, strict=True)
        ]
        sums = {name: _sums(pairs) for name, pairs in self._groups(entries).items()}
        return Outcome(
            {name: top / bottom for name, (top, bottom) in sums.items() if "_at_" not in name},
            answer=document,
            details={"segments": entries, "windows": len(requests)},
        )

    def summarise(self, records: Sequence[Record], folder: Path) -> dict[str, Number]:
        ids = [record["id"] for record in records]
        return {name: ratio(*columns, ids) for name, columns in self._columns(records).items()}

    def differences(self, first: Sequence[Record], second: Sequence[Record]) -> dict[str, Number]:
        before, after = self._columns(first), self._columns(second)
        ids = [record["id"] for record in first]
        found = {}
        for name in (each for each in before if each in after):
            (top_a, bottom_a), (top_b, bottom_b) = before[name], after[name]
            found[name] = paired_ratio((top_a, top_b), (bottom_a, bottom_b), ids)
        return found

    def _columns(self, records: Sequence[Record]) -> dict[str, tuple[list[float], list[float]]]:
        """Return the numerators and denominators of each number, one of each item."""
        grouped = [self._groups(record["details"]["segments"]) for record in records]
        names = sorted({name for each in grouped for name in each}, key=_order)
        sums = {name: [_sums(each.get(name, ())) for each in grouped] for name in names}
        return {
            name: ([top for top, _ in pairs], [bottom for _, bottom in pairs])
            for name, pairs in sums.items()
        }

    def _groups(self, entries: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
        """Return what is summed for each number: pairs of a numerator and a denominator."""
        found: dict[str, list[tuple[float, float]]] = {}
        for position, entry in enumerate(entries, start=1):
            nats, tokens, modality = entry["nats"], float(entry["tokens"]), entry["modality"]
            if not tokens:
                continue
            if modality == "text":
                pair = nats / math.log(2), float(entry["bytes"])
                found.setdefault("bits_per_byte", []).append(pair)
            found.setdefault(f"loss_{modality}", []).append((nats, tokens))
            if len(entries) > 1 and position <= self.positions:
                found[f"loss_{modality}_at_{position}"] = [(nats, tokens)]
        return found

    def _document(self, trial: Trial) -> Document:
        template, fields = self._template("document"), trial.item.fields
        whole = template.alone(fields)  # a document keeps texts apart that follow each other
        segments = whole.segments if isinstance(whole, Document) else template.segments(fields)
        return Document(tuple(replace(segment, role=None) for segment in segments))


def windows(
    may_begin: Sequence[bool], length: int, overlap: float
) -> Iterator[tuple[int, int, int]]:
    """Yield where each window begins, where its predictions begin, and where both end.

    Args:
        may_begin: for each token, whether a window may begin with it.
        length: tokens that a window may have.
        overlap: least share of the length from which a token is predicted, where there is so much.

    Raises:
        RequestError: an image is longer than a window.
    """
    first = 0
    while first < len(may_begin):
        start = max(0, first - int(overlap * length))
        while start and not may_begin[start]:
            start -= 1
        stop = min(len(may_begin), start + length)
        if stop <= first:
            raise RequestError(
                f"An image of the document is longer than the model's context, of which a window "
                f"has {length} tokens; shorten `overlap`, or leave the item out."
            )
        yield start, first, stop
        first = stop


def _sums(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return math.fsum(top for top, _ in pairs), math.fsum(bottom for _, bottom in pairs)


def _order(name: str) -> tuple[int, int, str]:
    """Sort bits per byte before losses, and losses by position last."""
    kind, _, position = name.partition("_at_")
    return int(position or 0), int(name != "bits_per_byte"), kind
