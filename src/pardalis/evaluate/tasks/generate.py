"""Free answers: the model continues the prompt, and metrics compare that with what is right.

Each metric is a line of :data:`METRICS`. With k samples of an item the score of a metric is the
mean over the samples, and ``exact_maj8`` that of the answer that most of 8 samples give (maj@k;
Wang et al. 2022, "self-consistency", arXiv 2203.11171). Of equally frequent answers the one that
comes first counts; samples without an answer have no vote.
"""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pardalis.bundle import Bundle
from pardalis.config import check_at_least
from pardalis.documents import Document, Segment, Text
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate.answers import first_sentence
from pardalis.evaluate.captions import token_f1
from pardalis.evaluate.metrics.answers import (
    NORMALISATIONS,
    Normalisation,
    boxed,
    choice_letter,
    exact_match,
    last_number,
    majority,
    numeric_match,
)
from pardalis.evaluate.metrics.vqa import anls, vqa_accuracy, vqa_normalised
from pardalis.evaluate.tasks.generating import GeneratingTask
from pardalis.evaluate.tasks.items import Item
from pardalis.evaluate.tasks.task import AnyRequest, Generation, Outcome, Trial

Part = Literal["all", "line", "sentence", "boxed"]

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class AnswerMetric:
    """How an answer is compared with the accepted ones.

    Attributes:
        score: from an answer and the accepted ones to a number, the larger the better.
        form: an answer in a form in which equal answers are equal, for votes; None: it has none.
        accepts: whether an accepted answer has what the metric compares.
    """

    score: Callable[[str, Sequence[str]], float]
    form: Callable[[str], Hashable | None]
    accepts: Callable[[str], bool] = lambda text: True


def _contains(answer: str, accepted: Sequence[str]) -> float:
    return float(
        any(
            re.search(rf"(?<!\w){re.escape(text.strip())}(?!\w)", answer, re.IGNORECASE)
            for text in accepted
        )
    )


def _exact(normalisation: Normalisation) -> AnswerMetric:
    return AnswerMetric(
        lambda answer, accepted: float(exact_match(answer, accepted, normalisation)),
        NORMALISATIONS[normalisation],
    )


METRICS: dict[str, AnswerMetric] = {
    "exact": _exact("spaces"),
    "exact_case": _exact("case"),
    "exact_squad": _exact("squad"),
    "exact_math": _exact("math"),
    "contains": AnswerMetric(_contains, NORMALISATIONS["case"]),
    "numeric": AnswerMetric(
        lambda answer, accepted: float(any(numeric_match(answer, each) for each in accepted)),
        last_number,
        accepts=lambda text: last_number(text) is not None,
    ),
    "letter": AnswerMetric(
        lambda answer, accepted: float(choice_letter(answer, _LETTERS) in accepted),
        lambda answer: choice_letter(answer, _LETTERS),
        accepts=lambda text: len(text) == 1 and text in _LETTERS,
    ),
    "vqa": AnswerMetric(vqa_accuracy, vqa_normalised),
    "anls": AnswerMetric(anls, NORMALISATIONS["case"]),
    "f1": AnswerMetric(
        lambda answer, accepted: max(token_f1(answer, each) for each in accepted),
        NORMALISATIONS["squad"],
    ),
}

PARTS: Mapping[Part, Callable[[str], str]] = {
    "all": str.strip,
    "line": lambda text: (text.strip().splitlines() or [""])[0],
    "sentence": first_sentence,
    "boxed": lambda text: boxed(text) or "",
}


@dataclass(frozen=True, kw_only=True)
class GenerateTask(GeneratingTask):
    """A free answer.

    Raises:
        ConfigError: there is no such metric, no accepted answer, or an option of generation is
            wrong or the evaluation's own.
    """

    kind: Literal["generate"] = "generate"
    prompt: str  # template
    answers: tuple[str, ...]  # templates of what is right; a field with a list gives its entries
    example_answer: str = ""  # template, of few-shot examples; empty: the first of the answers
    metrics: tuple[str, ...] = ("exact",)  # names of METRICS; the first counts most
    part: Part = "all"  # of the completion that is the answer
    samples: int = 1  # completions of each item

    defaults: ClassVar[Mapping[str, Any]] = {"mode": "text", "max_new_tokens": 64}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, samples=1)
        if not self.answers or not self.metrics:
            raise ConfigError(
                f"{'metrics' if self.answers else 'answers'} must have at least one entry."
            )
        for name in self.metrics:
            if name not in METRICS:
                raise ConfigError(
                    f"metrics has {name!r}; each must be one of {', '.join(METRICS)}."
                )
        if self.samples > 1 and not self.options(0).temperature:
            raise ConfigError(
                f"samples is {self.samples}, but generation.temperature is 0, so all are the same; "
                "set a temperature."
            )
        self._template("prompt")
        self._template("example_answer")
        self._listed("answers")

    def accepted(self, item: Item) -> list[str]:
        """Return the accepted answers of an item; raises DataError if there are none."""
        found = [Document(tuple(each)) for each in self._alternatives("answers", item)]
        if any(each.images for each in found):
            raise DataError("the template 'answers' holds an image; this kind compares texts.")
        texts = [each.text for each in found if each.text.strip()]
        if not texts:
            raise DataError("the template 'answers' gives no text; the item needs what is right.")
        for name in self.metrics:
            if wrong := [text for text in texts if not METRICS[name].accepts(text)]:
                raise DataError(
                    f"the accepted answer {wrong[0][:60]!r} has nothing that the metric {name!r} "
                    "compares; choose another metric, or correct the item."
                )
        return texts

    def answer_of(self, item: Item) -> Sequence[Segment]:
        if self.example_answer:
            return self._template("example_answer").segments(item.fields)
        return [Text(self.accepted(item)[0])]

    def check(self, trial: Trial) -> None:
        super().check(trial)
        self.accepted(trial.item)

    def requests(self, trial: Trial, bundle: Bundle) -> Sequence[AnyRequest]:
        prompt = self.prompt_of(trial)
        return [
            Generation(prompt, self.options(trial.seed_of("sample", k)))
            for k in range(self.samples)
        ]

    def score(
        self, trial: Trial, requests: Sequence[AnyRequest], results: Sequence[Any]
    ) -> Outcome:
        accepted = self.accepted(trial.item)
        answers = [PARTS[self.part](result.text) for result in results]
        scores: dict[str, float] = {}
        for name in self.metrics:
            metric = METRICS[name]
            each = [metric.score(answer, accepted) for answer in answers]
            scores[name] = sum(each) / len(each)
            if self.samples > 1:
                forms = [metric.form(answer) for answer in answers]
                voted = majority(forms).answer
                scores[f"{name}_maj{self.samples}"] = (
                    0.0 if voted is None else each[forms.index(voted)]
                )
        return Outcome(
            scores,
            answer=Document(results[0].segments),
            expected=Document((Text(accepted[0]),)),
            details={
                "answers": answers,
                "accepted": accepted,
                "completions": [result.text for result in results],
                "ended": [result.reason for result in results],
            },
        )
