"""The kinds of model, and from plain values to a config and a model of any of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pardalis import config as configs
from pardalis.errors import ConfigError
from pardalis.model.config import PRESETS, ModelShape, from_flat
from pardalis.model.cross import CrossModel, CrossShape
from pardalis.model.decoder import Decoder
from pardalis.model.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class ModelKind:
    """One line of ``MODELS``.

    Attributes:
        shape: the config of the model without vocabulary and context; its method ``sized`` adds
            them.
        model: what is built from the config with them.
        presets: functions that return shapes, by name.
        upgrade: from the plain values that earlier versions wrote to those of today.
    """

    shape: type[Any]
    model: Callable[[Any], LanguageModel]
    presets: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    upgrade: Callable[[Mapping[str, Any]], dict[str, Any]] = dict


MODELS: dict[str, ModelKind] = {
    "decoder": ModelKind(ModelShape, Decoder, PRESETS, from_flat),
    "cross": ModelKind(CrossShape, CrossModel),
}


def build(config: Any) -> LanguageModel:
    """Return a model without values; see :func:`pardalis.model.initialise`."""
    return kind_of(config.kind).model(config)


def kind_of(name: Any, where: str = "model.") -> ModelKind:
    """Return the line of ``MODELS`` of a kind; raises ConfigError for an unknown one."""
    if not isinstance(name, str) or name not in MODELS:
        raise ConfigError(
            f"{where}kind must be one of {', '.join(map(repr, MODELS))}, got {configs.shown(name)}."
        )
    return MODELS[name]


def config_of(values: Mapping[str, Any], where: str = "model.") -> Any:
    """Return the config of a model from plain values, with its vocabulary and context.

    Raises:
        ConfigError: a value is missing, unknown, of the wrong type or out of range.
    """
    kind = kind_of(values.get("kind", "decoder"), where)
    plain = kind.upgrade(values)
    sizes = {}
    for name in ("vocab_size", "context"):
        size = plain.pop(name, None)
        if type(size) is not int:
            raise ConfigError(f"{where}{name} must be of type int, got {configs.shown(size)}.")
        sizes[name] = size
    shape = configs.from_dict(kind.shape, plain, where)
    try:
        return shape.sized(**sizes)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from error


def shape_of(table: Mapping[str, Any], where: str = "model.") -> Any:
    """Return the shape that a table of a recipe describes: a preset and what differs from it.

    Raises:
        ConfigError: as :func:`config_of`; or there is no such preset.
    """
    kind = kind_of(table.get("kind", "decoder"), where)
    changes = kind.upgrade(table)
    name = changes.pop("preset", next(iter(kind.presets), None))
    if name is not None and not (isinstance(name, str) and name in kind.presets):
        known = ", ".join(map(repr, kind.presets)) or "left out"
        raise ConfigError(f"{where}preset must be one of {known}, got {configs.shown(name)}.")
    base = {} if name is None else configs.to_dict(kind.presets[name]())
    return configs.from_dict(kind.shape, configs.merged(base, changes), where)
