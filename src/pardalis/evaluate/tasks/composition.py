"""Composition: does an image show the objects, counts, colours and places that its prompt names?

Each item has a scene beside its prompt, as :mod:`pardalis.evaluate.metrics.composition` defines
it, and a program finds the objects in the generated image::

    {"groups": [{"count": 2, "colour": "red", "shape": "circle"}, ...], "relation": null}

    accuracy   share of images that show exactly the scene
    count      as many objects as the scene has
    colours    the named colours, each as often; of scenes that name one
    shapes     the same of shapes
    relation   the first object lies as the scene says; of scenes that say so

GenEval (arXiv 2310.11513) measures the same of photographs with a detector, whose errors are then
the model's. Here no net judges, and only drawings of coloured shapes on a plain background can be
judged: a model that was not trained on such gets 0.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pardalis import config as configs
from pardalis.documents.scenes import Scene
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate.metrics.composition import judge
from pardalis.evaluate.tasks.items import Item
from pardalis.evaluate.tasks.task import AnyRequest, Number, Outcome, Record, Trial, mean
from pardalis.evaluate.tasks.text_to_image import TextToImageTask, generated_image

ASPECTS = ("accuracy", "count", "colours", "shapes", "relation")


@dataclass(frozen=True, kw_only=True)
class CompositionTask(TextToImageTask):
    """Images of scenes, with the metrics of ``text_to_image`` besides if they are named."""

    kind: Literal["composition"] = "composition"  # type: ignore[assignment]
    scene: str = "{scene}"  # template: the field that holds the scene

    def __post_init__(self) -> None:
        super().__post_init__()
        self._template("scene")

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        return True

    def scene_of(self, item: Item) -> Scene:
        """Return the scene of an item; raises DataError if its field holds none."""
        value = self._template("scene").alone(item.fields)
        if not isinstance(value, dict):
            raise DataError(
                f"the template 'scene' gives {str(value)[:60]!r}, which is no scene; it must be "
                "one field with a table of `groups` and `relation`."
            )
        try:
            return configs.from_dict(Scene, value)
        except ConfigError as error:
            raise DataError(f"the scene of the item is wrong: {error}") from error

    def check(self, trial: Trial) -> None:
        super().check(trial)
        self.scene_of(trial.item)

    def score(
        self, trial: Trial, requests: Sequence[AnyRequest], results: Sequence[Any]
    ) -> Outcome:
        scene = self.scene_of(trial.item)
        _, pixels = generated_image(results[0])
        found = judge(pixels, scene)
        scores = {"accuracy": found.right, "count": found.count}
        if any(group.colour for group in scene.groups):
            scores["colours"] = found.colours
        if any(group.shape for group in scene.groups):
            scores["shapes"] = found.shapes
        if scene.relation:
            scores["relation"] = found.relation
        outcome = super().score(trial, requests, results)
        return replace(
            outcome,
            scores={name: float(right) for name, right in scores.items()} | dict(outcome.scores),
            details={**outcome.details, "found": [asdict(each) for each in found.found]},
        )

    def summarise(self, records: Sequence[Record], folder: Path) -> dict[str, Number]:
        having = {name for record in records for name in record["scores"]}
        judged = {name: mean(records, name) for name in ASPECTS if name in having}
        return judged | super().summarise(records, folder)
