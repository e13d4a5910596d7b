"""The report of preparing a source: counts, and rejected items by kind with examples."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Integer

from pardalis.config import shown
from pardalis.documents import Rejection
from pardalis.tokens import Grammar, SpanKind

_OLD_KEYS = {"pictures": "images"}  # as earlier versions wrote them
N_EXAMPLES = 5  # rejected items of each kind in a report


@dataclass(slots=True)
class Rejected:
    """The rejected items of one kind."""

    count: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)  # the first ones: where and reason


@dataclass(slots=True)
class PrepareReport:
    """Counts of one source, saved as ``report.json`` beside its shards."""

    source: str
    row_tokens: int
    read: int = 0  # items of the source, including rejected ones
    split: int = 0  # documents that were split because they are longer than a row
    written: int = 0  # documents in the shards; each part and each order of a pair counts
    images: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: {"text": 0, "image": 0, "special": 0})
    rows: int = 0
    fill_percent: float = 0.0  # share of tokens that are not padding
    rejected: dict[str, Rejected] = field(default_factory=dict)  # by kind
    unchanged: bool = False  # True: the shards of an earlier run are valid and were kept

    @property
    def n_rejected(self) -> int:
        return sum(rejected.count for rejected in self.rejected.values())

    def add_rejection(self, rejection: Rejection) -> None:
        """Count a rejected item, and keep it if it is among the first of its kind."""
        count_rejection(self.rejected, rejection)

    def add_written(self, ids: Integer[np.ndarray, " n"], grammar: Grammar) -> None:
        """Count a document of the shards."""
        self.written += 1
        self.images += sum(span.kind is SpanKind.IMAGE for span in grammar.spans(ids))
        self.tokens["special"] += len(ids)
        for name, within in grammar.vocabulary.modalities.items():
            n_ids = int(((ids >= within.start) & (ids < within.stop)).sum())
            self.tokens[name] = self.tokens.get(name, 0) + n_ids
            self.tokens["special"] -= n_ids

    def add_rows(self, rows: int) -> None:
        """Record how many rows the written documents fill."""
        self.rows = rows
        self.fill_percent = 100 * sum(self.tokens.values()) / (rows * self.row_tokens)

    def rejection_summary(self) -> str:
        """Return one line for each kind of rejection: the count and the first example."""
        return "\n".join(
            f"  {rejected.count} {kind}, such as {rejected.examples[0]['where']}: "
            f"{rejected.examples[0]['reason']}"
            for kind, rejected in sorted(self.rejected.items())
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PrepareReport":
        """Rebuild a report from its JSON file, of this version or an earlier one.

        Raises:
            ValueError: the values are not those of a report.
        """
        values = {_OLD_KEYS.get(key, key): value for key, value in values.items()}
        try:
            _check_values(values)
            rejected = {kind: Rejected(**value) for kind, value in values["rejected"].items()}
            return cls(**{**values, "rejected": rejected})
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(repr(error)) from error


def _check_values(values: Mapping[str, Any]) -> None:
    """Raise KeyError or TypeError if counts and examples of a file are not what a report shows."""
    others = ("source", "tokens", "rejected", "unchanged")
    tokens = values.get("tokens", {"text": 0, "image": 0})
    numbers = {name: value for name, value in values.items() if name not in others}
    numbers |= {f"tokens.{name}": tokens[name] for name in ("text", "image", *tokens)}
    for kind, each in values["rejected"].items():
        numbers[f"rejected.{kind}"] = each.get("count", 0)
        for example in each.get("examples", ()):
            _ = example["where"], example["reason"]
    for name, number in numbers.items():
        if type(number) not in (int, float):
            raise TypeError(f"{name} is {shown(number)}, which is no number")


def count_rejection(rejected: dict[str, Rejected], rejection: Rejection) -> None:
    """Count a rejected item by its kind, and keep it if it is among the first of its kind."""
    of_kind = rejected.setdefault(rejection.kind, Rejected())
    of_kind.count += 1
    if len(of_kind.examples) < N_EXAMPLES:
        of_kind.examples.append(
            {"where": _printable(rejection.where), "reason": _printable(rejection.reason)}
        )


def _printable(text: str) -> str:
    """Escape surrogates of a file name that is not UTF-8, which JSON cannot hold."""
    return text.encode(errors="backslashreplace").decode()
