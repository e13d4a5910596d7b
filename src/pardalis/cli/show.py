"""``pardalis show``: list recipes, print a resolved one, describe a bundle, adapter or image."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from pardalis.cli.common import (
    Commands,
    add_bundle,
    add_command,
    add_recipe,
    print_result,
    set_run,
)

_RECIPES = """\
List the recipes that come with Pardalis. Their names stand for them wherever a RECIPE is needed.

  pardalis show config quickstart
  pardalis plan chameleon_7b --gpus 1024 --device a100
"""

_CONFIG = """\
Print a recipe with all defaults filled in, as TOML.
"""

_BUNDLE = """\
Describe a bundle: shape, size and vocabulary of the model, and how it was made. Loads no weights.
"""

_TEMPLATE = """\
Show how a bundle writes conversations: the tokens of an example, and its chat template. Loads no
weights of the model.
"""

_ADAPTER = """\
Describe the folder of an adapter: its kind, what it adapts, its size, and the model that it was
trained on. A folder that PEFT wrote does not name its model.
"""

_IMAGE = """\
Show what an image says of its origin: its text fields, which anybody can write, the watermark of
'pardalis serve --watermark', and a signed manifest (C2PA), which needs pip install
'pardalis[credentials]'.
"""


def add(commands: Commands) -> None:
    summary = "list recipes, print a resolved one, or describe a bundle, an adapter or an image"
    group = add_command(commands, "show", summary, f"{summary.capitalize()}.")
    verbs = group.add_subparsers(title="commands", metavar="COMMAND", required=True)

    recipes = add_command(verbs, "recipes", "list the recipes of Pardalis", _RECIPES)
    recipes.does = "shipped_recipes"
    set_run(recipes, _recipes)

    config = add_command(verbs, "config", "print a resolved recipe", _CONFIG)
    add_recipe(config)
    set_run(config, _config)

    bundle = add_command(verbs, "bundle", "describe a bundle", _BUNDLE)
    add_bundle(bundle)
    set_run(bundle, _bundle)

    template = add_command(verbs, "template", "show how a bundle writes conversations", _TEMPLATE)
    add_bundle(template)
    set_run(template, _template)

    image = add_command(verbs, "image", "show what an image says of its origin", _IMAGE)
    image.add_argument("image", metavar="IMAGE", type=Path, help="an image file")
    set_run(image, _image)

    adapter = add_command(verbs, "adapter", "describe an adapter", _ADAPTER)
    adapter.add_argument(
        "adapter", metavar="ADAPTER", type=Path, help="folder of an adapter, or of its run"
    )
    set_run(adapter, _adapter)


def _recipes(options: argparse.Namespace) -> None:
    from pardalis.pipeline.shipped import about, shipped_recipes

    recipes = {
        name: {"path": str(path), "about": about(path)} for name, path in shipped_recipes().items()
    }
    lines = (f"{name:<24}{facts['about']}" for name, facts in recipes.items())
    print_result(options, recipes, *lines)


def _config(options: argparse.Namespace) -> None:
    from pardalis import config as configs
    from pardalis.pipeline import load_recipe

    recipe = load_recipe(options.recipe, options.set).expanded
    print_result(options, configs.to_dict(recipe), configs.to_toml(recipe).rstrip())


def _template(options: argparse.Namespace) -> None:
    from pardalis.bundle import load_codec
    from pardalis.documents import Document, Text

    codec = load_codec(options.bundle)
    example = (
        Text("What is this?", "user"), Text("An owl.", "assistant"), Text("Are you sure?", "user"),
    )  # fmt: skip
    ids = codec.encode_prompt(Document(example))
    template = None if codec.chat_template is None else codec.chat_template.source
    shown = codec.render(ids)
    source = template or "no chat template: end_turn separates the turns"
    print_result(
        options,
        {"example": shown, "tokens": len(ids), "chat_template": template},
        f"example, {len(ids)} tokens:", shown, "", "template:", source.rstrip(),
    )  # fmt: skip


def _bundle(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from pardalis import config as configs
    from pardalis.bundle import (
        IMAGE_TOKENIZER,
        bundle_folder,
        describe,
        model_config,
        read_chat_template,
    )
    from pardalis.inference.native.library import outlook
    from pardalis.model import model_costs
    from pardalis.tokens import Vocabulary
    from pardalis.vq import ImageTokenizer

    folder = bundle_folder(options.bundle)
    description = describe(folder)
    Vocabulary.from_dict(description["vocabulary"])  # a check
    description["chat_template"] = read_chat_template(folder) is not None
    model = model_config(folder, description)
    images = ImageTokenizer.load_config(folder / IMAGE_TOKENIZER)
    description["counts"] = asdict(model_costs(model))
    description["image_tokenizer"] = configs.to_dict(images)
    # The list of foreign ids may be long; only whether they differ is shown.
    foreign_ids = description["vocabulary"].pop("foreign_ids", None)
    moved = isinstance(foreign_ids, list)
    if foreign_ids is not None:
        description["vocabulary"]["ids"] = "moved" if moved else "unchanged"
    vocabulary = description["vocabulary"]
    ranges = ", ".join(f"{b - a:,} {name}" for name, (a, b) in vocabulary["modalities"].items())
    only = "" if images.has_decoder else "; read only, without a decoder"
    cached = description["counts"]["cache_bytes_per_token"]
    slot = f"{cached * model.context / 2**20:,.1f} MiB a slot"
    facts: list[tuple[str, object]] = [
        ("decoder", f"{description['counts']['parameters']:,} parameters, context {model.context}"),
        ("", model.summary),
        ("cache", f"{cached / 2**10:,.1f} KiB a token, {slot}, in 32 bits"),
        ("on a CPU", outlook()),
        ("vocabulary", f"{model.vocab_size:,} ids: {ranges}"),
        *([("", "ids differ from those of the imported files")] if moved else []),
        ("images", f"{images.resolution} pixels, {images.grid} x {images.grid} codes{only}"),
    ]  # fmt: skip
    if description.get("image_fit", "crop") == "pad":
        facts.append(("", "images of prompts are padded with white borders"))
    if description["chat_template"]:
        facts.append(("chat template", "its own ('pardalis show template' renders an example)"))
    if not description.get("adds_bos", True):
        facts.append(("documents", "begin without <bos>"))
    made_by = dict(description["made_by"])
    numbers = made_by.pop("numbers", None)
    if isinstance(numbers, dict) and numbers.get("step") == made_by.get("steps"):
        numbers = {name: value for name, value in numbers.items() if name != "step"}  # said above
    facts += _origin(made_by)
    lines = [str(folder), *(f"  {name:<13} {value}" for name, value in facts)]
    lines += [f"  {name:<22} {value:.4g}" for name, value in _numbers(numbers)]
    print_result(options, description, *lines)


def _image(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from pardalis.origin import read_origin

    origin = read_origin(options.image)
    manifest = origin.manifest
    signed = "none" if origin.reads_manifests else "unknown: c2pa-python is not installed"
    if manifest is not None and manifest.state == "Unreadable":
        signed = "unreadable"
    elif manifest is not None:
        signed = f"{manifest.generator}, signed by {manifest.issuer}: {manifest.state.lower()}"
    facts = {
        "size": f"{origin.size[0]} x {origin.size[1]} pixels",
        **{name.lower(): text for name, text in origin.fields.items()},
        "watermark": f"{'yes' if origin.has_watermark else 'no'} "
        f"({origin.certainty:.1f} standard deviations)",
        "manifest": signed,
    }
    lines = (f"  {name:<14} {value}" for name, value in facts.items())
    result = {**asdict(origin), "watermark": origin.has_watermark}
    print_result(options, result, str(options.image), *lines)


def _adapter(options: argparse.Namespace) -> None:
    from pardalis.adapters.peft import describe_adapter

    description = describe_adapter(options.adapter)
    numbers = [f"{name} {description[name]:g}" for name in ("rank", "alpha") if name in description]
    facts = (
        ("kind", ", ".join([description["kind"], *numbers])),
        ("size", f"{description['parameters']:,} parameters"),
        ("matrices", f"{description['matrices']}: {', '.join(description['targets']) or 'none'}"),
        ("rows", f"{description['rows']:,} tokens"),
        ("trained on", description["base"] or "an unknown model"),
    )
    lines = (f"  {name:<13} {value}" for name, value in facts)
    print_result(options, description, str(options.adapter), *lines)


def _numbers(found: object) -> list[tuple[str, int | float]]:
    """Return the numbers of a bundle by name; it may come from elsewhere and hold anything."""
    from pardalis.train.metrics import is_number

    items = found.items() if isinstance(found, dict) else ()
    return [(name, value) for name, value in items if is_number(value)]


def _origin(made_by: dict[str, object]) -> Iterator[tuple[str, object]]:
    """Yield how a bundle was made, then how the bundle that it started from was made."""
    for name, value in made_by.items():
        yield name.replace("_", " "), "a bundle" if isinstance(value, dict) else value
        if isinstance(value, dict):
            yield from _origin(value)
