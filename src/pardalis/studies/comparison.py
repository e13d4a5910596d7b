"""Comparison of variants of an image tokenizer, trained on the same images.

RUN/
├─ corpus/                   built once, if the recipe has one
├─ variants/<name>/          metrics, checkpoints, progress.html; final/ is the trained tokenizer
├─ comparison.json           the scores of every variant on every held-out source
└─ comparison.html           the same, with reconstructions of the same images
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from pardalis.data import SourceConfig
from pardalis.devices import find_device
from pardalis.errors import ConfigError
from pardalis.evaluate import ImageSet, MetricNets, evaluate_reconstruction, require_packages
from pardalis.evaluate.extras import FEATURES
from pardalis.feature_nets import FeatureNetConfig, load_feature_net, load_perceptual_distance
from pardalis.files import exclusive
from pardalis.parallel import World, join
from pardalis.pipeline.builders import located
from pardalis.pipeline.recipe import Recipe, load_recipe
from pardalis.pipeline.runner import run_in_world
from pardalis.pipeline.stages import RunContext
from pardalis.pipeline.stages.image_tokenizer import train_image_tokenizer
from pardalis.studies.comparison_page import Comparison, VariantResult, write_comparison
from pardalis.train import read_metrics
from pardalis.vq import ImageTokenizer

_N_EXAMPLES = 12  # held-out images on the page


def compare_image_tokenizers(
    path: Path, folder: Path, overrides: Sequence[str] = (), device: torch.device | str = "cpu"
) -> Comparison | None:
    """Train the variants of a recipe, evaluate them on its held-out sources, and write the results.

    Finished variants are not trained again, and interrupted ones are resumed.

    Returns:
        The comparison; None in processes other than the first.

    Raises:
        ConfigError: the recipe has no variants or no held-out sources, a variant was started with
            other settings, or a package is missing.
        PardalisError: training or evaluation failed.
    """
    recipe = load_recipe(path, overrides)
    if not recipe.variants:
        raise ConfigError(f"{path} has no [[variants]] to compare; add some.")
    if not recipe.heldout:
        raise ConfigError(f"{path} has no [[heldout]] source to evaluate the variants on; add one.")
    # Checked before training, used after it.
    require_packages("The comparison", "evaluate", FEATURES)
    recipes = {
        variant.name: load_recipe(path, [*overrides, *variant.set]) for variant in recipe.variants
    }
    with join(find_device(device)) as world:
        if recipe.corpus is not None:
            run_in_world(recipe, folder, world, only=("corpus",))
        variants = folder / "variants"
        variants.mkdir(parents=True, exist_ok=True)
        with exclusive(variants) if world.is_first else nullcontext():
            tokenizers = {
                name: train_image_tokenizer(RunContext(each, folder, world), variants / name)
                for name, each in recipes.items()
            }
        if not world.is_first:
            return None
        comparison = _evaluate(recipe, recipes, folder, tokenizers, world)
    write_comparison(folder, comparison)
    return comparison


def _evaluate(
    recipe: Recipe,
    recipes: dict[str, Recipe],
    folder: Path,
    tokenizers: dict[str, ImageTokenizer],
    world: World,
) -> Comparison:
    nets = MetricNets(
        perceptual=load_perceptual_distance(FeatureNetConfig(name="squeezenet")).to(world.device),
        frechet=load_feature_net(FeatureNetConfig(name="efficientnet_lite0")).to(world.device),
    )
    sources = [located(source, folder) for source in recipe.heldout]
    first = _images(sources[0], max_images=_N_EXAMPLES)
    largest = max((each.config for each in tokenizers.values()), key=lambda c: c.resolution)
    originals = [image for _, image in first.squares(largest)]
    results = []
    for (name, tokenizer), variant in zip(tokenizers.items(), recipe.variants, strict=True):
        tokenizer.eval()
        scores = {
            source.name: evaluate_reconstruction(
                tokenizer, _images(source), nets, n_examples=0
            ).scores
            for source in sources
        }
        last = read_metrics(folder / "variants" / name / "metrics.jsonl")[-1]
        config = recipes[name].image_tokenizer_run.model
        results.append(
            VariantResult(
                name=name,
                changes=variant.set,
                n_codes=config.n_codes,
                codes_per_image=config.codes_per_image,
                steps=int(last["step"]),
                seconds=float(last["time_s"]),
                scores=scores,
                reconstructions=tokenizer.images_of(tokenizer.codes_of(originals)),
            )
        )
    return Comparison(recipe=recipe.name, originals=originals, variants=results)


def _images(source: SourceConfig, max_images: int | None = None) -> ImageSet:
    return ImageSet(
        source.path,
        source.reader,
        max_images=max_images,
        part=source.part,
        options=source.options,
    )
