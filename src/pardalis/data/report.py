"""The report of preparing a source: counts, and rejected items by kind with examples."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pardalis.config import shown
from pardalis.data.ruled import PREFIX
from pardalis.documents import Omission, Rejection
from pardalis.tokens import Encoded, Grammar, SpanKind

_OLD_KEYS = {"pictures": "images"}  # as earlier versions wrote them
_LEAST = 5  # percent of the answers below which a modality is in danger to be unlearnt
N_EXAMPLES = 5  # rejected items of each kind in a report


@dataclass(slots=True)
class Rejected:
    """The rejected items of one kind."""

    count: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)  # the first ones: where and reason


@dataclass(slots=True)
class Licensed:
    """What was written of the documents of one licence."""

    documents: int = 0  # as they were read: one that is split counts once
    images: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Balance:
    """How the answers that training sees are divided among modalities."""

    image_percent: float  # of answer tokens
    has_images: bool  # in prompts or answers

    @property
    def warning(self) -> str:
        """What is out of balance, in a sentence; empty if nothing is, or if all is text."""
        if not self.has_images or _LEAST <= self.image_percent <= 100 - _LEAST:
            return ""
        few, way = ("text", "for") if self.image_percent > 50 else ("images", "against")
        return (
            f"Of the tokens of answers, {self.image_percent:.1f} % are of images, so the model "
            f"learns a preference {way} images that no prompt asks for; add conversations whose "
            f"answers have {few}, or change the weights of the sources."
        )


@dataclass(slots=True)
class Turns:
    """What of the conversations of a source is read, and what is learnt; see :func:`balance`."""

    conversations: int = 0
    prompt_tokens: int = 0  # read, and not learnt
    answer_tokens: int = 0  # learnt
    prompt_images: int = 0
    answer_images: int = 0
    answer_image_tokens: int = 0  # codes of images among the answer tokens

    def add(self, document: Encoded, grammar: Grammar) -> None:
        """Count a conversation."""
        learnt = document.weights > 0
        learnt[:1] = False  # the first token is never a target
        within = grammar.vocabulary.image
        codes = (document.ids >= within.start) & (document.ids < within.stop)
        images = [s for s in grammar.spans(document.ids) if s.kind is SpanKind.IMAGE]
        n_answer_images = sum(bool(learnt[span.start]) for span in images)
        self.conversations += 1
        self.answer_tokens += (n_learnt := int(learnt.sum()))
        self.prompt_tokens += len(document) - n_learnt
        self.answer_images += n_answer_images
        self.prompt_images += len(images) - n_answer_images
        self.answer_image_tokens += int((learnt & codes).sum())

    @property
    def image_percent(self) -> float:
        """The share of answer tokens that are of images."""
        return 100 * self.answer_image_tokens / max(1, self.answer_tokens)


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
    licences: dict[str, Licensed] = field(default_factory=dict)  # as documents state them, or ""
    left_out: dict[str, Rejected] = field(default_factory=dict)  # of documents, by rule
    turns: Turns | None = None  # where only some turns are learnt
    unchanged: bool = False  # True: the shards of an earlier run are valid and were kept

    @property
    def n_rejected(self) -> int:
        return sum(rejected.count for rejected in self.rejected.values())

    @property
    def by_rules(self) -> dict[str, Rejected]:
        """What rules removed, by kind: documents, and images of those that are left."""
        removed: dict[str, Rejected] = {}
        for counts in (self.rejected, self.left_out):
            _add_counts(removed, {kind: n for kind, n in counts.items() if kind.startswith(PREFIX)})
        return removed

    @property
    def by_readers(self) -> dict[str, Rejected]:
        """What was rejected otherwise, by kind."""
        return {kind: each for kind, each in self.rejected.items() if not kind.startswith(PREFIX)}

    @property
    def by_reading(self) -> dict[str, Rejected]:
        """What the reader left out of documents, by kind."""
        return {kind: each for kind, each in self.left_out.items() if not kind.startswith(PREFIX)}

    def add_rejection(self, rejection: Rejection) -> None:
        """Count a rejected item, or what is left out of one, and keep the first of its kind."""
        is_part = isinstance(rejection, Omission)
        count_rejection(self.left_out if is_part else self.rejected, rejection)

    def add_licensed(self, licence: str) -> None:
        """Count a document, as it was read, of which something is written."""
        self.licences.setdefault(licence, Licensed()).documents += 1

    def add_written(self, document: Encoded, grammar: Grammar, licence: str = "") -> None:
        """Count a document of the shards; ``licence`` is what its document states."""
        ids = document.ids
        self.written += 1
        if self.turns is not None:
            self.turns.add(document, grammar)
        n_images = sum(span.kind is SpanKind.IMAGE for span in grammar.spans(ids))
        self.images += n_images
        licensed = self.licences.setdefault(licence, Licensed())
        licensed.images += n_images
        licensed.tokens += len(ids)
        self.tokens["special"] += len(ids)
        for name, within in grammar.vocabulary.modalities.items():
            n_ids = int(((ids >= within.start) & (ids < within.stop)).sum())
            self.tokens[name] = self.tokens.get(name, 0) + n_ids
            self.tokens["special"] -= n_ids

    def add_report(self, other: "PrepareReport") -> None:
        """Add the counts of documents that follow, which have no rows yet."""
        self.read += other.read
        self.split += other.split
        self.written += other.written
        self.images += other.images
        for name, count in other.tokens.items():
            self.tokens[name] = self.tokens.get(name, 0) + count
        _add_counts(self.rejected, other.rejected)
        _add_counts(self.left_out, other.left_out)
        for licence, licensed in other.licences.items():
            _add(self.licences.setdefault(licence, Licensed()), licensed)
        if other.turns is not None:
            self.turns = self.turns or Turns()
            _add(self.turns, other.turns)

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
            left_out = values.get("left_out", {})
            left_out = {kind: Rejected(**value) for kind, value in left_out.items()}
            turns = Turns(**values["turns"]) if values.get("turns") else None
            listed = values.get("licences", {}).items()
            licences = {licence: Licensed(**value) for licence, value in listed}
            built = {
                "rejected": rejected,
                "left_out": left_out,
                "turns": turns,
                "licences": licences,
            }
            return cls(**{**values, **built})
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(repr(error)) from error


def _check_values(values: Mapping[str, Any]) -> None:
    """Raise KeyError or TypeError if counts and examples of a file are not what a report shows."""
    others = ("source", "tokens", "rejected", "left_out", "licences", "turns", "unchanged")
    tokens = values.get("tokens", {"text": 0, "image": 0})
    numbers = {name: value for name, value in values.items() if name not in others}
    numbers |= {f"tokens.{name}": tokens[name] for name in ("text", "image", *tokens)}
    numbers |= {f"turns.{name}": value for name, value in (values.get("turns") or {}).items()}
    for licence, licensed in values.get("licences", {}).items():
        numbers |= {f"licences.{licence}.{name}": count for name, count in licensed.items()}
    for kind, each in [*values["rejected"].items(), *values.get("left_out", {}).items()]:
        numbers[f"rejected.{kind}"] = each.get("count", 0)
        for example in each.get("examples", ()):
            _ = example["where"], example["reason"]
    for name, number in numbers.items():
        if type(number) not in (int, float):
            raise TypeError(f"{name} is {shown(number)}, which is no number")


def balance(reports: Mapping[str, PrepareReport], weights: Mapping[str, float]) -> Balance | None:
    """Return how the answers of a mixture are divided among modalities; None without turns.

    Where one modality dominates the answers, a model learns to prefer it, or never to use the
    other, whatever it is asked (Chameleon, arXiv 2405.09818, section 3).

    Args:
        reports: by the name of the source.
        weights: the share of rows of each source; only ratios matter.
    """
    text = image = 0.0
    has_images = False
    for name, report in reports.items():
        if report.turns is not None:
            scale = weights[name] / report.rows
            text += scale * (report.turns.answer_tokens - report.turns.answer_image_tokens)
            image += scale * report.turns.answer_image_tokens
            has_images |= report.turns.prompt_images + report.turns.answer_images > 0
    if not text + image:
        return None
    return Balance(100 * image / (text + image), has_images)


def _add(total: Licensed | Turns, more: Licensed | Turns) -> None:
    """Add the counts of one to those of another of its class."""
    for each in fields(more):
        setattr(total, each.name, getattr(total, each.name) + getattr(more, each.name))


def _add_counts(counts: dict[str, Rejected], others: Mapping[str, Rejected]) -> None:
    for kind, found in others.items():
        counted = counts.setdefault(kind, Rejected())
        counted.count += found.count
        counted.examples += found.examples[: N_EXAMPLES - len(counted.examples)]


def count_rejection(rejected: dict[str, Rejected], rejection: Rejection) -> None:
    """Count a rejected item by its kind, and keep it if it is among the first of its kind."""
    of_kind = rejected.setdefault(rejection.kind, Rejected())
    of_kind.count += rejection.count if isinstance(rejection, Omission) else 1
    if len(of_kind.examples) < N_EXAMPLES:
        of_kind.examples.append(
            {"where": _printable(rejection.where), "reason": _printable(rejection.reason)}
        )


def _printable(text: str) -> str:
    """Escape surrogates of a file name that is not UTF-8, which JSON cannot hold."""
    return text.encode(errors="backslashreplace").decode()
