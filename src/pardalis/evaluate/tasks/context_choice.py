"""Choice among contexts: which of several beginnings makes the same ending most likely.

For a sentence with a gap, the choices are the beginning of the sentence with each filler, and the
ending is what follows the gap. The model chooses the largest log P(ending | beginning), since all
choices are scored on the same tokens: "partial scoring" of Trinh and Le 2018, arXiv 1806.02847,
section 3, as WinoGrande is evaluated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pardalis.bundle import Bundle
from pardalis.documents import Document, Segment
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate.tasks.choice import ChoiceTask, Normalisation
from pardalis.evaluate.tasks.items import Item
from pardalis.evaluate.tasks.task import AnyRequest, Likelihood, Trial
from pardalis.evaluate.tasks.template import joined


@dataclass(frozen=True, kw_only=True)
class ContextChoiceTask(ChoiceTask):
    """Multiple choice whose choices are contexts; ``answer`` names one as in ``choice``.

    Raises:
        ConfigError: another normalisation or turns are asked for, or a template is wrong.
    """

    kind: Literal["context_choice"] = "context_choice"  # type: ignore[assignment]
    prompt: str = ""  # template, before each choice
    ending: str  # template of what follows each choice, whose likelihood counts
    normalise: tuple[Normalisation, ...] = ("none",)
    delimiter: str = ""  # before the ending, and after the prompt of an example

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalise != ("none",):
            raise ConfigError(
                "normalise must be ['none'] for context_choice, whose choices are all scored on "
                "the same tokens; leave it out."
            )
        if self.chat:
            raise ConfigError("chat does not apply to context_choice; leave it out.")
        self._template("ending")

    def answer_of(self, item: Item) -> Sequence[Segment]:
        return [*super().answer_of(item), *self._after(item).segments]

    def check(self, trial: Trial) -> None:
        super().check(trial)
        if not self._after(trial.item).segments:
            raise DataError("the template 'ending' gives nothing whose likelihood could count.")

    def requests(self, trial: Trial, bundle: Bundle) -> Sequence[AnyRequest]:
        before = self.prompt_of(trial).segments
        choices, _ = self.choices_of(trial.item)
        ending = self._after(trial.item)
        return [
            Likelihood(Document(tuple(joined([*before, *choice.segments]))), ending)
            for choice in choices
        ]

    def _after(self, item: Item) -> Document:
        ending = self._template("ending").segments(item.fields)
        return self.continuation_of(ending) if ending else Document(())
