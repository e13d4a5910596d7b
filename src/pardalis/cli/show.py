"""``pardalis show``: a resolved recipe, or what a bundle is."""

import argparse
from pathlib import Path

from pardalis.cli.common import OVERRIDE_HELP, Commands, add_command, add_json, echo, print_json

_CONFIG = """\
Print a recipe with every default filled in, as TOML.
"""

_BUNDLE = """\
Print what a bundle holds: its shape, size and vocabulary, and how it was made. Loads no weights.
"""


def add(commands: Commands) -> None:
    group = add_command(commands, "show", "show a resolved recipe or a bundle", __doc__ or "")
    verbs = group.add_subparsers(title="commands", metavar="COMMAND", required=True)

    config = add_command(verbs, "config", "print a resolved recipe", _CONFIG)
    config.add_argument("recipe", metavar="RECIPE", type=Path, help="TOML file")
    config.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help=OVERRIDE_HELP
    )
    add_json(config)
    config.set_defaults(run=_config)

    bundle = add_command(verbs, "bundle", "print what a bundle holds", _BUNDLE)
    bundle.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder of a bundle")
    add_json(bundle)
    bundle.set_defaults(run=_bundle)


def _config(options: argparse.Namespace) -> None:
    from pardalis import config as configs
    from pardalis.pipeline import load_recipe

    recipe = load_recipe(options.recipe, options.set)
    if options.json:
        print_json(configs.to_dict(recipe))
    else:
        echo(configs.to_toml(recipe).rstrip())


def _bundle(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from pardalis import config as configs
    from pardalis.bundle import describe
    from pardalis.model import ModelConfig, count

    description = describe(options.bundle)
    model = configs.from_dict(ModelConfig, description["model"], "model.")
    description["counts"] = asdict(count(model))
    if options.json:
        print_json(description)
        return
    vocabulary = description["vocabulary"]
    image, text = (range(*vocabulary[name]) for name in ("image", "text"))
    echo(f"{options.bundle}")
    echo(
        f"  decoder     {description['counts']['parameters']:,} parameters, context {model.context}"
    )
    echo(
        f"              {model.n_layers} layers, width {model.d_model}, {model.n_heads} heads, "
        f"{model.norm_placement} norms"
    )
    echo(f"  vocabulary  {model.vocab_size:,} ids: {len(image):,} image, {len(text):,} text")
    numbers = description["made_by"].pop("numbers", {})
    for name, value in description["made_by"].items():
        echo(f"  {name:<11} {value}")
    for name, value in numbers.items():
        echo(f"  {name:<22} {value:.4g}")
