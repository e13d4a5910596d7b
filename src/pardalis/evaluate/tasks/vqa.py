"""Questions about images with short answers, as VQA scores them.

The answers of ten people stand beside each question. The score of an answer is the mean over the
people of min(1, others who agree / 3), both texts in VQA's normal form (Antol et al. 2015, arXiv
1505.00468; :func:`~pardalis.evaluate.metrics.vqa.vqa_accuracy`). VQAv2, OK-VQA, TextVQA and VizWiz
share this rule.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pardalis.documents import Document, Segment, Text
from pardalis.evaluate.tasks.generate import GenerateTask, Part
from pardalis.evaluate.tasks.generating import by_group
from pardalis.evaluate.tasks.items import Item
from pardalis.evaluate.tasks.task import AnyRequest, Number, Outcome, Record, Trial


@dataclass(frozen=True, kw_only=True)
class VqaTask(GenerateTask):
    """A question with the answers of several people, and all the metrics of ``generate``.

    In few-shot examples the most frequent answer stands, of equally frequent ones the first.
    """

    kind: Literal["vqa"] = "vqa"  # type: ignore[assignment]
    metrics: tuple[str, ...] = ("vqa",)
    part: Part = "line"
    group: str = ""  # template; the first metric is told by what it gives too, such as answer types

    defaults: ClassVar[Mapping[str, Any]] = {"mode": "text", "max_new_tokens": 10}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._template("group")

    def answer_of(self, item: Item) -> Sequence[Segment]:
        if self.example_answer:
            return super().answer_of(item)
        [(answer, _)] = Counter(self.accepted(item)).most_common(1)
        return [Text(answer)]

    def check(self, trial: Trial) -> None:
        super().check(trial)
        self._template("group").text(trial.item.fields)

    def score(
        self, trial: Trial, requests: Sequence[AnyRequest], results: Sequence[Any]
    ) -> Outcome:
        outcome = super().score(trial, requests, results)
        expected = Document(tuple(self.answer_of(trial.item)))
        group = self._template("group").text(trial.item.fields)
        return replace(outcome, expected=expected, details={**outcome.details, "group": group})

    def summarise(self, records: Sequence[Record], folder: Path) -> dict[str, Number]:
        return super().summarise(records, folder) | by_group(records, self.metrics[0])
