"""What kinds share that let the model generate: the options of generation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pardalis.bundle import Bundle
from pardalis.errors import ConfigError, RequestError
from pardalis.evaluate.tasks.task import Number, Record, TaskConfig, mean
from pardalis.inference import GenerationConfig, to_request

_GIVEN = ("seed", "chat", "adapter", "logprobs")  # options that the evaluation sets


@dataclass(frozen=True, kw_only=True)
class GeneratingTask(TaskConfig):
    """A task whose items are answered by what the model generates.

    Raises:
        ConfigError: an option of generation is wrong, or the evaluation's own.
    """

    generation: dict[str, Any] = field(default_factory=dict)  # options of GenerationConfig

    defaults: ClassVar[Mapping[str, Any]] = {}  # of the options

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in _GIVEN:
            if name in self.generation:
                raise ConfigError(
                    f"generation.{name} is set by the evaluation"
                    f"{', from `chat` of the task' if name == 'chat' else ''}; leave it out."
                )
        try:
            self.options(0)
        except RequestError as error:
            is_sentence = str(error)[:1].isupper()
            raise ConfigError(f"generation{': ' if is_sentence else '.'}{error}") from error

    def options(self, seed: int) -> GenerationConfig:
        """Return the options of one completion."""
        return GenerationConfig().with_options({**self.defaults, **self.generation, "seed": seed})

    @property
    def uses_seed(self) -> bool:
        options = self.options(0)
        samples_images = options.mode != "text" and options.image_temperature > 0
        samples_text = options.mode != "image" and options.temperature > 0
        return self.shots > 0 or samples_text or samples_images

    def check_bundle(self, bundle: Bundle) -> None:
        try:
            to_request(bundle, [], self.options(0))
        except RequestError as error:
            raise RequestError(f"Task {self.name!r}: {error}") from error


def by_group(records: Sequence[Record], name: str) -> dict[str, Number]:
    """Return the mean of a score over each group of records, which ``details.group`` names."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if name in record["scores"] and (group := record["details"].get("group")):
            groups.setdefault(group, []).append(record)
    return {f"{name}_{group}": mean(members, name) for group, members in sorted(groups.items())}
