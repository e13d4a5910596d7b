"""Recipes as they are written, but shortened to two steps of tiny networks when they run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from pardalis import config as configs
from pardalis.pipeline import Recipe

_STEPS = 2
_LOOP = {"steps": _STEPS, "save_every": _STEPS, "report_every": 1, "evaluate_every": _STEPS}
_DECODER = {
    "d_model": 32,
    "n_layers": 2,
    "attention": {"n_heads": 4, "n_kv_heads": 4},
    "feed_forward": {"width": 64},
}
_MOST_VARIANTS = 2  # of a study; test_recipes.py builds all of them
_PIXELS = 32  # per side of an image, the fewest that the feature nets can take


def shortened(recipe: Recipe) -> Recipe:
    """Return a recipe with the same parts and few steps, images, layers and prompts."""
    values = configs.to_dict(recipe)
    values["heldout_rows"] = 2
    few = {name: min(2, values["sample"][name]) for name in ("images", "captions")}
    values["sample"] |= few | {"caption_tokens": 8, "gallery": 9}
    values["sample"]["pages"] = 1 if _corpus(recipe) else 0  # long, where nothing ends them
    values["parallel"] |= {"shard": 0, "tensor": 1, "compile": False}
    for name, changes in {
        "corpus": _corpus(recipe),
        "text_tokenizer": {"vocab_size": 400},
        "image_tokenizer_training": {"batch_images": 4, "compile": False},
        "image_tokenizer_loop": _LOOP | ({"evaluate_every": 0} if recipe.has_model else {}),
        "prepare": {"row_tokens": min(128, recipe.prepare.row_tokens if recipe.prepare else 0)},
        "training": {"batch_rows": 2, "accumulation_steps": 1},
        "training_loop": _LOOP,
    }.items():
        if values.get(name):
            values[name] |= changes
    for name in ("image_tokenizer_training", "training"):
        if values.get(name):
            schedule = values[name]["schedule"] | {"warmup_steps": 1}
            values[name]["schedule"] = schedule | (
                {"decay_steps": 1} if "decay_steps" in schedule else {}
            )
    _shorten_retrieval(values)
    if recipe.model and recipe.start_from is None:
        values["model"] = configs.merged(values["model"], _DECODER)
    if recipe.image_tokenizer is not None:
        values["image_tokenizer"] |= {"resolution": _PIXELS, "channels": 32}
        adversarial = values["image_tokenizer_training"].get("adversarial")
        if adversarial is not None and adversarial["discriminator"]["kind"] == "stylegan2":
            adversarial["discriminator"]["channels"] = 8
    for number, stage in enumerate(values.get("curriculum", ())):
        stage["from_step"] = number
    values["variants"] = values["variants"][:_MOST_VARIANTS]
    if recipe.variants:
        values["image_tokenizer_loop"]["evaluate_every"] = 0
    if recipe.stability is not None:
        rates = list(recipe.stability.learning_rates[:2])
        some = values["stability"]["variants"][:_MOST_VARIANTS]
        values["stability"] |= {"learning_rates": rates, "seeds": [0], "variants": some}
        values["stability"] |= {"high_learning_rate": rates[0]}
    return configs.from_dict(Recipe, values)


def _shorten_retrieval(values: dict[str, Any]) -> None:
    for source in [*values["sources"], *values.get("heldout", ())]:
        for transform in source.get("transforms", ()):
            if transform["kind"] == "retrieval":
                transform |= {"documents": 1, "document_tokens": 64}
    if "retrieval" in values:
        values["retrieval"]["rules"]["max_score"] = 1.0  # simple images look alike


def _corpus(recipe: Recipe) -> dict[str, Any]:
    shorter: dict[str, dict[str, Any]] = {
        "encyclopedia": {"concepts": 24, "text_articles": 20, "lead_words": 6},
        "prose": {"most": 100, "heldout_percent": 10},
        "drawings": {"image_side": 32, "variants": 1},
        "instructions": {"image_side": 32, "variants": 1},
    }
    return shorter.get(getattr(recipe.corpus, "kind", ""), {})


@contextmanager
def short_runs() -> Iterator[None]:
    """Shorten every recipe that is loaded, after it was read as it stands."""
    load = configs.load

    def load_short(cls: type[Any], *how: Any) -> Any:
        config = load(cls, *how)
        return shortened(config) if isinstance(config, Recipe) else config

    with patch.object(configs, "load", load_short):
        yield
