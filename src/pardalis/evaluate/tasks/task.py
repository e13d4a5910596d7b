"""What a task is: a frozen config that makes requests of an item, and scores what comes back.

A kind of task is one class in one file, a subclass of :class:`TaskConfig`, and one more line of the
table :data:`pardalis.evaluate.tasks.TASKS`::

    @TASKS.add
    @dataclass(frozen=True, kw_only=True)
    class ReverseTask(TaskConfig):
        kind: Literal["reverse"] = "reverse"
        prompt: str = "Reverse: {word}\\n"

        def requests(self, trial: Trial, bundle: Bundle) -> Sequence[AnyRequest]:
            config = GenerationConfig(mode="text", max_new_tokens=8, seed=trial.seed)
            return [Generation(self.prompt_of(trial), config)]

        def score(self, trial: Trial, requests: Sequence[AnyRequest], results: Sequence[Any]):
            right = results[0].text.strip() == trial.item.fields["word"][::-1]
            return Outcome({"accuracy": float(right)}, answer=results[0])

:func:`pardalis.evaluate.tasks.evaluate_tasks` does the rest: it reads items, draws few-shot
examples, runs the requests of many items in one batch of the engine, keeps every item, resumes, and
writes numbers with intervals. Scores are means over items; what is no mean, such as BLEU of a
corpus, is added by :meth:`TaskConfig.summarise`.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias

import numpy as np
from jaxtyping import Float

from pardalis.bundle import Bundle
from pardalis.config import check_at_least, not_deciding
from pardalis.documents import Document, Image, Role, Segment, Text
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate.metrics.intervals import LEVEL, RESAMPLES, bootstrap, bootstrap_paired
from pardalis.evaluate.tasks.items import Item
from pardalis.evaluate.tasks.layouts import LAYOUTS
from pardalis.evaluate.tasks.template import Template, joined
from pardalis.inference import GenerationConfig
from pardalis.seeds import derive, numpy_generator

_NAME = re.compile(r"\w[\w.-]*")
_SHOWN = 60  # characters of an id in a message
_AT_ONCE = 1 << 22  # counts of items drawn at once: 32 MiB

Record: TypeAlias = Mapping[str, Any]
"""A finished item as a line of items.jsonl holds it; see :mod:`pardalis.evaluate.tasks.results`."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Asks how likely a continuation of a prompt is; the result is a ``Score``."""

    prompt: Document
    continuation: Document


@dataclass(frozen=True, slots=True)
class Generation:
    """Asks for the completion of a prompt; the result is a ``Response``."""

    prompt: Document
    config: GenerationConfig


@dataclass(frozen=True, slots=True)
class TokenLikelihood:
    """Asks how likely token ids are after others; the result is a ``Score``.

    Attributes:
        prompt_ids: at least one; begins with bos, if the model has it.
        note: what the task needs to know of the tokens when it scores them.
    """

    prompt_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]
    note: Any = None


AnyRequest: TypeAlias = Likelihood | Generation | TokenLikelihood
"""What a task may ask of a model."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One item as it is asked once."""

    item: Item
    shots: tuple[Item, ...] = ()  # its few-shot examples, in their order
    seed: int = 0  # derived from the seed of the evaluation, the task's name and the item's id

    def seed_of(self, *names: str | int) -> int:
        """Return a seed for one of several uses, such as sample number k."""
        return derive(self.seed, *names) if names else self.seed


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an item.

    Attributes:
        scores: finite numbers by name, which are averaged over items.
        answer: what the model generated or chose.
        expected: what was right; None if nothing is.
        details: plain values that are kept with the item.
    """

    scores: Mapping[str, float]
    answer: Document = field(default_factory=lambda: Document(()))
    expected: Document | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Number:
    """A result with its 95 % intervals, which are bootstrapped.

    Attributes:
        low, high: over items; an item is drawn with its answers of all seeds. None: not known.
        by_seed: the value of each seed, if there are several.
        seeds_low, seeds_high: over those values.
    """

    value: float
    low: float | None = None
    high: float | None = None
    by_seed: tuple[float, ...] = ()
    seeds_low: float | None = None
    seeds_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class TaskConfig(ABC):
    """What all kinds of tasks have.

    Raises:
        ConfigError: a value is out of range, or a template is wrong.
    """

    name: str  # of the folder of its results; default in a file: the file's own name
    about: str = not_deciding("")  # a sentence for the list of tasks
    source: str = not_deciding("")  # where the files come from, and their layout
    data: Annotated[Any, LAYOUTS]
    examples: Annotated[Any, LAYOUTS] | None = None  # of few-shot prompts; None: the other items
    shots: int = 0  # few-shot examples before each item
    limit: int | None = not_deciding(None)  # the first items only; None: all
    preamble: str = ""  # template that stands before the examples, or is the system's turn
    separator: str = "\n\n"  # between examples
    delimiter: str = " "  # between a prompt and its answer
    chat: bool = False  # prompts are the user's turns, and answers the assistant's

    higher_is_better: ClassVar[bool] = True  # of the first score

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"name must be a name of letters, digits, '.', '-' and '_', got {self.name!r}."
            )
        check_at_least(self, shots=0, limit=1)
        self._template("preamble")

    # ── what a kind defines ────────────────────────────────────────────────────────────────────

    @abstractmethod
    def requests(self, trial: Trial, bundle: Bundle) -> Sequence[AnyRequest]:
        """Return what is asked of the model for an item.

        Raises:
            DataError: a template names an unknown field, or the answer is not among the choices.
            RequestError: the prompt is too long.
        """

    @abstractmethod
    def score(
        self, trial: Trial, requests: Sequence[AnyRequest], results: Sequence[Any]
    ) -> Outcome:
        """Return what became of an item.

        Args:
            requests: what :meth:`requests` returned.
            results: of each request, a ``Score`` or a ``Response``.
        """

    def check(self, trial: Trial) -> None:
        """Fill all templates of an item, before a model is loaded; raises DataError."""
        self.prompt_of(trial)

    def check_bundle(self, bundle: Bundle) -> None:  # noqa: B027  # most kinds need nothing
        """Raise RequestError if no item of the task can be asked of a model."""

    def answer_of(self, item: Item) -> Sequence[Segment]:
        """Return the right answer of a few-shot example, without the delimiter.

        Raises:
            DataError: as :meth:`requests`.
        """
        raise ConfigError(
            f"shots is {self.shots} in task {self.name!r}, whose kind has no few-shot examples; "
            "leave it out."
        )

    @property
    def uses_seed(self) -> bool:
        """Whether another seed may give other scores."""
        return self.shots > 0

    def judged(self, records: Sequence[Record], folder: Path) -> Sequence[Record]:
        """Return the finished items with the scores that are given to many of them at once.

        It is asked when all items are finished and on the disk, so that nets read their images in
        batches. What it returns for an item may be ``{"error": ...}`` in the place of scores.

        Args:
            records: those without an error, of all seeds; may have these scores already.
            folder: of the task's results, where the images of records begin.
        """
        return records

    def summarise(self, records: Sequence[Record], folder: Path) -> dict[str, Number]:
        """Return the numbers of the task, the most important first.

        Args:
            records: the finished items of all seeds, without those that failed.
            folder: of the task's results, where the images of records begin.
        """
        names = dict.fromkeys(name for record in records for name in record["scores"])
        return {name: mean(records, name) for name in names}

    def differences(self, first: Sequence[Record], second: Sequence[Record]) -> dict[str, Number]:
        """Return by how much the numbers of the second are larger, over the same items.

        Args:
            first, second: finished items, the same one at the same index.
        """
        names = dict.fromkeys(name for record in first for name in record["scores"])
        return {name: paired_mean(first, second, name) for name in names}

    # ── what a kind may use ────────────────────────────────────────────────────────────────────

    def prompt_of(self, trial: Trial) -> Document:
        """Return the prompt of an item: the preamble, the examples with answers, and its own.

        The kind has a field ``prompt``, a template. With ``chat`` each prompt is a turn of the
        user, each answer one of the assistant, and the preamble one of the system.
        """
        prompt = self._template("prompt")
        preamble = self._template("preamble").segments(trial.item.fields)
        if self.chat:
            turns = _with_role(preamble, "system")
            for shot in trial.shots:
                turns += _with_role(prompt.segments(shot.fields), "user")
                turns += _with_role(self.answer_of(shot), "assistant")
            return Document(tuple(turns + _with_role(prompt.segments(trial.item.fields), "user")))
        segments = [*preamble]
        for shot in trial.shots:
            segments += prompt.segments(shot.fields)
            segments += self.continuation_of(self.answer_of(shot)).segments
            segments.append(Text(self.separator))
        return Document(tuple(joined([*segments, *prompt.segments(trial.item.fields)])))

    def continuation_of(self, answer: Sequence[Segment]) -> Document:
        """Return an answer as it continues a prompt: with the delimiter, but in a conversation."""
        if self.chat or not answer or isinstance(answer[0], Image):
            return Document(tuple(answer))
        return Document(tuple(joined([Text(self.delimiter), *answer])))

    def _template(self, name: str) -> Template:
        """Return the template in a field."""
        if name not in self._templates:
            self._templates[name] = [Template(getattr(self, name), name)]
        return self._templates[name][0]

    def _listed(self, name: str) -> list[Template]:
        """Return the templates in a field that is a list of them."""
        if name not in self._templates:
            self._templates[name] = [Template(source, name) for source in getattr(self, name)]
        return self._templates[name]

    def _alternatives(self, name: str, item: Item) -> list[list[Segment]]:
        """Fill the templates of a list; one that is a field with a list gives its entries."""
        return [each for t in self._listed(name) for each in t.alternatives(item.fields)]

    @cached_property
    def _templates(self) -> dict[str, list[Template]]:
        return {}


def trials(
    task: TaskConfig, items: Sequence[Item], pool: Sequence[Item], seed: int
) -> Sequence[Trial]:
    """Return the items of a task with their few-shot examples and seeds.

    Both are pure functions of the seed of the evaluation, the task's name and the item's id. An
    item is never among its own examples.

    Args:
        pool: what examples are drawn from, in order; may hold the items themselves.

    Raises:
        ConfigError: the pool has too few items.
    """
    return [_trial(task, item, pool, seed) for item in items]


def _trial(task: TaskConfig, item: Item, pool: Sequence[Item], seed: int) -> Trial:
    own = derive(seed, "task", task.name, item.id)
    if not task.shots:
        return Trial(item, (), own)
    generator = numpy_generator(own, "shots")
    n = min(2 * task.shots + 8, len(pool))  # more, in case the item is among them
    drawn = [pool[i] for i in generator.choice(len(pool), n, replace=False).tolist()]
    shots = [each for each in drawn if each is not item and each.fields != item.fields]
    if len(shots) < task.shots:
        raise ConfigError(
            f"shots is {task.shots} in task {task.name!r}, but there are only {len(pool):,} items "
            "to draw examples from, without the item itself; give fewer."
        )
    return Trial(item, tuple(shots[: task.shots]), own)


def check_trial(task: TaskConfig, trial: Trial) -> None:
    """Check an item before a model is loaded; raises DataError, which names the item."""
    try:
        task.check(trial)
    except DataError as error:
        raise DataError(f"Task {task.name!r}, item {trial.item.id[:_SHOWN]!r}: {error}") from error


def mean(records: Sequence[Record], name: str) -> Number:
    """Return the mean of a score over the records that have it, with its intervals."""
    having = [record for record in records if name in record["scores"]]
    values = [float(record["scores"][name]) for record in having]
    low, high = bootstrap(values, clusters=[record["id"] for record in having])
    by_seed: dict[int, list[float]] = {}
    for record, value in zip(having, values, strict=True):
        by_seed.setdefault(record["seed"], []).append(value)
    number = Number(math.fsum(values) / len(values), low, high)
    if len(by_seed) == 1:
        return number
    means = tuple(math.fsum(each) / len(each) for _, each in sorted(by_seed.items()))
    seeds_low, seeds_high = bootstrap(means)
    return replace(number, by_seed=means, seeds_low=seeds_low, seeds_high=seeds_high)


def paired_mean(first: Sequence[Record], second: Sequence[Record], name: str) -> Number:
    """Return the mean of the second's score minus the first's, over the items that have it."""
    pairs = [
        (float(b["scores"][name]), float(a["scores"][name]), a["id"])
        for a, b in zip(first, second, strict=True)
        if name in a["scores"] and name in b["scores"]
    ]
    if not pairs:
        return Number(float("nan"))
    after, before, ids = (list(each) for each in zip(*pairs, strict=True))
    low, high = bootstrap_paired(after, before, clusters=ids)
    return Number(math.fsum(b - a for b, a, _ in pairs) / len(pairs), low, high)


def ratio(
    tops: Sequence[float], bottoms: Sequence[float], ids: Sequence[str] | None = None
) -> Number:
    """Return the sum of numerators over that of denominators, with its interval over items.

    Args:
        ids: the item of each value, which is drawn with its values of all seeds; default: each
            value is an item.
    """
    tops, bottoms = _of_items([tops, bottoms], ids)
    above, below = _resampled(bottoms, tops, bottoms)
    return Number(math.fsum(tops) / math.fsum(bottoms), *_interval(above / below))


def paired_ratio(
    tops: tuple[Sequence[float], Sequence[float]],
    bottoms: tuple[Sequence[float], Sequence[float]],
    ids: Sequence[str] | None = None,
) -> Number:
    """Return the second ratio minus the first, of the same items, with its interval.

    Args:
        ids: as :func:`ratio` takes them.
    """
    top_a, top_b, bottom_a, bottom_b = _of_items([*tops, *bottoms], ids)
    difference = math.fsum(top_b) / math.fsum(bottom_b) - math.fsum(top_a) / math.fsum(bottom_a)
    counts = [a * b for a, b in zip(bottom_a, bottom_b, strict=True)]
    columns = _resampled(counts, top_a, top_b, bottom_a, bottom_b)
    above_a, above_b, below_a, below_b = columns
    return Number(difference, *_interval(above_b / below_b - above_a / below_a))


def _of_items(
    columns: Sequence[Sequence[float]], ids: Sequence[str] | None
) -> Sequence[Sequence[float]]:
    """Return the columns with the values of each item added up."""
    if ids is None:
        return columns
    place = {name: number for number, name in enumerate(dict.fromkeys(ids))}
    rows = [place[name] for name in ids]
    return [np.bincount(rows, column, len(place)).tolist() for column in columns]


def _resampled(
    counts: Sequence[float], *columns: Sequence[float]
) -> list[Float[np.ndarray, " draws"]]:
    """Return the sums of columns over items that are drawn with replacement, for each draw.

    Items whose count is 0 are left out: they add nothing.
    """
    kept = np.array(counts) > 0
    table = np.stack([np.array(column, np.float64)[kept] for column in columns], axis=1)
    n, generator = len(table), numpy_generator(0, "bootstrap")
    step = max(1, _AT_ONCE // n)
    sums = [
        generator.multinomial(n, np.full(n, 1 / n), min(step, RESAMPLES - start)) @ table
        for start in range(0, RESAMPLES, step)
    ]
    return list(np.concatenate(sums).T)


def _interval(values: Float[np.ndarray, " draws"]) -> tuple[float, float]:
    edge = 50 * (1 - LEVEL)
    low, high = np.percentile(values, (edge, 100 - edge)).tolist()
    return low, high


def _with_role(segments: Sequence[Segment], role: Role) -> list[Segment]:
    return [replace(segment, role=role) for segment in segments]
