"""A bundle from any checkpoint of a run, in one process, whatever the number of ranks was.

The checkpoints of an adapter hold nothing else; the bundle is that of ``start_from`` with the
adapter merged into its weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pardalis import bundle as bundles
from pardalis.adapters import Adapter, AdapterConfig, adapter_of, install, merge, row_ids
from pardalis.adapters.linear import whole
from pardalis.codec import Codec
from pardalis.errors import BundleError, ConfigError
from pardalis.files import read_json
from pardalis.model import LanguageModel, build, config_of
from pardalis.pipeline.recipe import Recipe
from pardalis.train import DecoderTask, checkpoint, read_metrics
from pardalis.train.metrics import FILE_NAME as METRICS
from pardalis.train.settings import FILE_NAME as SETTINGS


def checkpoint_bundle(
    recipe: Recipe, run: Path, codec: Codec, step: int | None = None
) -> bundles.Bundle:
    """Return a bundle with the weights of a checkpoint. The state of the optimizer is not read.

    Args:
        codec: the codec of the run.
        step: the step of the checkpoint; default: the newest one.

    Raises:
        BundleError: there is no such checkpoint, it is damaged, or the tokenizers of the run are
            not those that the decoder was trained with.
    """
    training = run / "training"
    folder = _find(training, step)
    settings = _settings(training / SETTINGS)
    if settings["codec"] != codec.fingerprint:
        raise BundleError(
            f"The tokenizers of {run} have changed since {folder} was trained; run the recipe that "
            "it was trained with, which restores the old ones."
        )
    if recipe.adapter is None:
        with torch.device("meta"):
            model = build(config_of(settings["model"]))
        weights = _read(folder, training, model.state_dict())
        model.load_state_dict(weights, assign=True)
    else:
        model, adapter = _adapted(recipe, recipe.adapter, folder, training, codec)
        merge(model, adapter)
    before, licences = _before(recipe)
    done = checkpoint.step_of(folder)
    lines = [line for line in read_metrics(training / METRICS) if line["step"] <= done]
    made_by = {"recipe": recipe.name, "steps": done, **before}
    if recipe.adapter is not None:
        made_by["adapter"] = recipe.adapter.kind
    if lines:
        made_by["numbers"] = lines[-1]
    return bundles.Bundle(
        model.eval(), codec, made_by, _joined(licences, bundles.read_licences(run / "shards"))
    )


def bundle_in_training(recipe: Recipe, task: DecoderTask, codec: Codec) -> bundles.Bundle | None:
    """Return a bundle of the model as a task has trained it so far; None but on the first rank.

    Every rank calls this, and the first one holds the whole model then. In one process, and without
    an adapter, the bundle shares its weights with the task: it may be used until the next step.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in task.model.state_dict().items():
        gathered = whole(tensor)
        if task.layout.world.is_first:
            weights[name] = gathered
    if not task.layout.world.is_first:
        return None
    if recipe.adapter is None:
        with torch.device("meta"):
            model = build(task.model.config)
        model.load_state_dict(weights, assign=True)
    else:
        assert recipe.start_from is not None
        model = bundles.load(recipe.start_from, task.device).model
        merge(model, adapter_of(recipe.adapter, model, codec.vocabulary, weights))
    return bundles.Bundle(model.eval(), codec, {"recipe": recipe.name})


def checkpoint_adapter(recipe: Recipe, run: Path, codec: Codec, step: int | None = None) -> Adapter:
    """Return the adapter of a checkpoint; arguments and errors as :func:`checkpoint_bundle`."""
    if recipe.adapter is None:
        raise ConfigError(f"The recipe {recipe.name!r} has no adapter; its result is a bundle.")
    training = run / "training"
    return _adapted(recipe, recipe.adapter, _find(training, step), training, codec)[1]


def _adapted(
    recipe: Recipe, config: AdapterConfig, folder: Path, training: Path, codec: Codec
) -> tuple[LanguageModel, Adapter]:
    """Return the model of the bundle that a run started from, and the adapter of a checkpoint."""
    assert recipe.start_from is not None
    model = bundles.load(recipe.start_from).model
    with torch.device("meta"):
        like = build(model.config)
    names = install(like, config, row_ids(config.rows, codec.vocabulary))
    state = like.state_dict()
    trained = _read(folder, training, {name: state[name] for name in names})
    return model, adapter_of(config, model, codec.vocabulary, trained)


def _read(folder: Path, training: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return those tensors of the model in a checkpoint that are given, on the meta device."""
    try:
        checkpoint.check_part(folder, {"model": dict(like)})
        weights = {name: torch.empty_like(tensor, device="cpu") for name, tensor in like.items()}
        checkpoint.load_part(folder, {"model": weights})
    except ValueError as error:
        raise BundleError(f"{folder} does not fit {training / SETTINGS}: {error}.") from error
    return weights


def _find(training: Path, step: int | None) -> Path:
    found = checkpoint.all_of(training)
    if not found:
        raise BundleError(
            f"{training} holds no checkpoint; the stage 'train' of its recipe writes them."
        )
    if step is None:
        return found[-1]
    steps = {checkpoint.step_of(folder): folder for folder in found}
    if step not in steps:
        raise BundleError(
            f"{training} has no checkpoint of step {step}; it has those of "
            f"{', '.join(map(str, steps))}."
        )
    return steps[step]


def _settings(path: Path) -> dict[str, Any]:
    """Return the settings that the run was begun with; its recipe may have changed since."""
    try:
        settings: dict[str, Any] = read_json(path)["settings"]
        config_of(settings["model"])
        settings["codec"]
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise BundleError(
            f"{path} cannot be read, so the shape of the decoder is unknown; restore the file."
        ) from error
    return settings


def _before(recipe: Recipe) -> tuple[dict[str, Any], str]:
    """Return the origin and the licences of the bundle that the run started from."""
    if recipe.start_from is None:
        return {}, ""
    folder = recipe.start_from
    made_by = bundles.describe(folder)["made_by"]
    facts = {name: fact for name, fact in made_by.items() if name != "numbers"}
    return {"start_from": facts}, bundles.read_licences(folder)


def _joined(before: str, new: str) -> str:
    """Join the licences of the first bundle and of this run's data; equal text is kept once."""
    return before if new in before else "\n".join(filter(None, (before, new)))
