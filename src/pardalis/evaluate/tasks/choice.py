"""Choice by likelihood: the model chooses the continuation of the prompt that it finds most likely.

Let log P(c | x) be the log-probability of the tokens of choice c after prompt x. The choice of a
model is the one with the largest score, which is one of

    none            log P(c | x)                              Brown et al. 2020 (GPT-3), section 2.4
    tokens          log P(c | x) / number of tokens of c      ditto
    characters      log P(c | x) / characters of c            acc_norm of lm-evaluation-harness
    bytes           log P(c | x) / bytes of c in UTF-8
    unconditional   log P(c | x) - log P(c | u)               ditto; Holtzman et al. 2021, PMI_DC

with a prompt u that says nothing of the item, such as "Answer:". The delimiter before a choice
belongs to its tokens, but not to its characters and bytes. Of equal scores the first counts.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pardalis.bundle import Bundle
from pardalis.documents import Document, Image, Segment, Text
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate.tasks.items import Item
from pardalis.evaluate.tasks.task import (
    AnyRequest,
    Likelihood,
    Number,
    Outcome,
    Record,
    TaskConfig,
    Trial,
)
from pardalis.inference import Score

logger = logging.getLogger(__name__)

Normalisation = Literal["none", "tokens", "characters", "bytes", "unconditional"]
_MOST_CHOICES = 1000


@dataclass(frozen=True, kw_only=True)
class ChoiceTask(TaskConfig):
    """Multiple choice, of texts or of images.

    The right choice is named by its text or, if there are ``labels``, by its label. An integer
    without labels is the number of the choice, from 0.

    Raises:
        ConfigError: there is no choice, no normalisation, or a template is wrong.
    """

    kind: Literal["choice"] = "choice"
    prompt: str  # template
    choices: tuple[str, ...]  # templates; one that is a field with a list stands for its entries
    labels: tuple[str, ...] = ()  # of the choices, as ``answer`` names them; templates as above
    answer: str  # template: what names the right choice
    normalise: tuple[Normalisation, ...] = ("none", "bytes")  # of accuracy; the first counts most
    unconditional: str | None = None  # template of the prompt u; empty: bos alone

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.choices or not self.normalise:
            raise ConfigError(
                f"{'choices' if not self.choices else 'normalise'} must have at least one entry."
            )
        if "unconditional" in self.normalise and self.unconditional is None:
            raise ConfigError(
                "unconditional is missing, but normalise names it; give the prompt that says "
                "nothing of the item, such as 'Answer:', or an empty text."
            )
        for name in ("prompt", "answer"):
            self._template(name)
        if self.unconditional is not None:
            self._template("unconditional")
        for name in ("choices", "labels"):
            self._listed(name)

    # ── the item ───────────────────────────────────────────────────────────────────────────────

    def choices_of(self, item: Item) -> tuple[list[Document], int]:
        """Return the choices of an item, and which of them is right.

        Raises:
            DataError: there are no choices, or the answer is none of them.
        """
        choices = [Document(tuple(each)) for each in self._alternatives("choices", item)]
        if not 0 < len(choices) <= _MOST_CHOICES:
            raise DataError(f"there are {len(choices):,} choices; 1 to {_MOST_CHOICES} are needed.")
        if empty := [n for n, choice in enumerate(choices, 1) if not choice.segments]:
            raise DataError(f"choice {empty[0]} of {len(choices)} is empty; it has no likelihood.")
        return choices, self._right(item, choices)

    def _right(self, item: Item, choices: Sequence[Document]) -> int:
        number = self._template("answer").alone(item.fields)
        if not self.labels and type(number) is int and 0 <= number < len(choices):
            return number
        answer = self._template("answer").text(item.fields)
        labels = [Document(tuple(each)).text for each in self._alternatives("labels", item)]
        names = labels[: len(choices)] or [c.text for c in choices if not c.images]
        if (labels or type(number) is not int) and answer in names:
            return names.index(answer)
        shown = ", ".join(repr(name[:40]) for name in names[:8]) or f"{len(choices)} images"
        raise DataError(
            f"the answer {answer[:80]!r} is none of the choices, {shown}; name one of them, or its "
            "number from 0, or give `labels`."
        )

    def answer_of(self, item: Item) -> Sequence[Segment]:
        choices, right = self.choices_of(item)
        return choices[right].segments

    def check(self, trial: Trial) -> None:
        super().check(trial)
        choices, _ = self.choices_of(trial.item)
        if self.unconditional is not None:
            self._template("unconditional").segments(trial.item.fields)
        needs_text = {"characters", "bytes"} & set(self.normalise)
        if needs_text and any(choice.images for choice in choices):
            raise DataError(
                f"a choice holds an image, which has no {needs_text.pop()}; set normalise to "
                "'none', 'tokens' or 'unconditional'."
            )

    # ── the model ──────────────────────────────────────────────────────────────────────────────

    def requests(self, trial: Trial, bundle: Bundle) -> Sequence[AnyRequest]:
        prompt = self.prompt_of(trial)
        choices, _ = self.choices_of(trial.item)
        after = [self.continuation_of(choice.segments) for choice in choices]
        found = [Likelihood(prompt, each) for each in after]
        if "unconditional" in self.normalise:
            alone = self._template("unconditional").segments(trial.item.fields)
            if self.chat:
                alone = [replace(segment, role="user") for segment in alone]
            empty = Document(tuple(alone))
            found += [Likelihood(empty, each) for each in after]
        return found

    def score(
        self, trial: Trial, requests: Sequence[AnyRequest], results: Sequence[Any]
    ) -> Outcome:
        choices, right = self.choices_of(trial.item)
        scores, unconditional = results[: len(choices)], results[len(choices) :]
        outcomes: dict[str, float] = {}
        chosen = 0
        for number, how in enumerate(self.normalise):
            values = _normalised(how, choices, scores, unconditional)
            best = int(np.argmax(values))
            outcomes["accuracy" if how == "none" else f"accuracy_{how}"] = float(best == right)
            if number == 0:
                chosen = best
                others = [value for i, value in enumerate(values) if i != right]
                margin = values[right] - max(others, default=values[right])
        outcomes["margin"] = margin
        return Outcome(
            outcomes,
            answer=choices[chosen],
            expected=choices[right],
            details={
                "chosen": chosen,
                "right": right,
                "log_probs": [score.log_prob for score in scores],
                "tokens": [len(score.log_probs) for score in scores],
                "choices": [_shown(choice) for choice in choices],
            },
        )

    def summarise(self, records: Sequence[Record], folder: Path) -> dict[str, Number]:
        numbers = super().summarise(records, folder)
        by_chance = [1 / len(record["details"]["choices"]) for record in records]
        if by_chance:
            numbers["chance"] = Number(math.fsum(by_chance) / len(by_chance))
        differ = sum(len(set(record["details"]["tokens"])) > 1 for record in records)
        if differ and self.normalise == ("none",):
            logger.warning(
                "Task %r: the choices of %d of %d items have different lengths in tokens, and the "
                "sum of log-probabilities favours short ones; add 'tokens' or 'bytes' to normalise "
                "to see the accuracy without that.",
                self.name,
                differ,
                len(records),
            )
        return numbers


def _normalised(
    how: Normalisation,
    choices: Sequence[Document],
    scores: Sequence[Score],
    unconditional: Sequence[Score],
) -> list[float]:
    """Return the score of each choice."""
    sums = [score.log_prob for score in scores]
    match how:
        case "none":
            return sums
        case "unconditional":
            return [a - b.log_prob for a, b in zip(sums, unconditional, strict=True)]
        case "tokens":
            lengths = [len(score.log_probs) for score in scores]
        case "characters":
            lengths = [len(choice.text) for choice in choices]
        case "bytes":
            lengths = [len(choice.text.encode()) for choice in choices]
    return [value / length for value, length in zip(sums, lengths, strict=True)]


def _shown(choice: Document) -> str:
    return "".join(
        segment.text if isinstance(segment, Text) else f"[image {segment.alt}]".replace(" ]", "]")
        for segment in choice.segments
        if isinstance(segment, Text | Image)
    )
