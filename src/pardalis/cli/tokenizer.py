"""``pardalis tokenizer``: train, compare, evaluate and use tokenizers."""

import argparse
import io
from pathlib import Path

from pardalis.cli import tokenizer_codes, tokenizer_evaluate
from pardalis.cli.common import (
    Commands,
    add_command,
    add_output,
    add_run_arguments,
    add_stage_command,
    print_result,
    set_run,
)
from pardalis.errors import ConfigError

_TEXT = """\
Train the recipe's text tokenizer, a byte-level BPE, on the text of its sources.
"""

_IMAGE = """\
Train the recipe's image tokenizer, a VQ-GAN encoder, codebook and decoder, on the images of its
sources. Can be interrupted; the same command continues. RUN/image_tokenizer/progress.html shows
reconstructions and the codebook during training.

  torchrun --nproc-per-node 8 -m pardalis tokenizer train-image RECIPE --device cuda
"""

_COMPARE = """\
Train the variants of a recipe's image tokenizer on the same images for the same number of steps,
and evaluate them on its held-out sources. Can be interrupted; the same command continues.

  pardalis tokenizer compare quantizers
"""

_IMPORT_IMAGE = """\
Convert a VQ-GAN of another library: of the original layout, as Chameleon's vqgan.ckpt, or of
LlamaGen's. The architecture must be the same.

  pardalis tokenizer import-image vqgan.ckpt --config vqgan.yaml -o image_tokenizer
  pardalis tokenizer import-image vq_ds16_c2i.pt -o llamagen
"""

_SHOW = """\
Show the text tokens of a text or the codes of an image, with the tokenizers of a bundle or a run.

  pardalis tokenizer show BUNDLE --text "A snowy owl."
  pardalis tokenizer show BUNDLE --image owl.png --out reconstruction.png
"""


def add(commands: Commands) -> None:
    group = add_command(commands, "tokenizer", "train, evaluate and use tokenizers", __doc__ or "")
    verbs = group.add_subparsers(title="commands", metavar="COMMAND", required=True)

    add_stage_command(verbs, "train-text", "text_tokenizer", "train the text tokenizer", _TEXT)
    add_stage_command(verbs, "train-image", "image_tokenizer", "train the image tokenizer", _IMAGE)
    compare = add_command(
        verbs, "compare", "train variants of an image tokenizer and compare them", _COMPARE
    )
    add_run_arguments(compare, _compare)
    tokenizer_evaluate.add(verbs)
    tokenizer_codes.add(verbs)
    imported = add_command(
        verbs, "import-image", "import an image tokenizer of another library", _IMPORT_IMAGE
    )
    imported.add_argument("weights", metavar="WEIGHTS", type=Path, help=".ckpt, .pt, .safetensors")
    imported.add_argument(
        "--config", type=Path, metavar="YAML", help="config of weights of the original layout"
    )
    imported.add_argument(
        "--resolution", type=int, help="pixels per side, for LlamaGen's weights (default: 256)"
    )
    add_output(imported, "FOLDER", "folder of the image tokenizer")
    set_run(imported, _import_image)

    show = add_command(verbs, "show", "show the tokens of a text or the codes of an image", _SHOW)
    show.add_argument(
        "folder",
        metavar="BUNDLE",
        type=Path,
        help="folder of a bundle or run; for an image also of an image tokenizer",
    )
    show.add_argument("--text", help="a text to tokenize")
    show.add_argument("--image", type=Path, help="an image to encode")
    show.add_argument("--out", type=Path, help="where to write the reconstruction")
    set_run(show, _show)


def _compare(options: argparse.Namespace) -> None:
    from pardalis.evaluate.templates import number
    from pardalis.pipeline.recipe import load_recipe
    from pardalis.studies.comparison import compare_image_tokenizers
    from pardalis.studies.comparison_page import FILE, PAGE, plain

    recipe = load_recipe(options.recipe, options.set)
    folder = options.out or Path("runs") / recipe.name
    comparison = compare_image_tokenizers(options.recipe, folder, options.set, options.device)
    if comparison is None:
        return
    lines = []
    for source in comparison.sources:
        columns = comparison.columns(source)
        width = max(len(name) for name in (source, *(each.name for each in comparison.variants)))
        lines.append(f"{source:<{width}}" + "".join(f"  {name:>8}" for name in columns))
        for variant in comparison.variants:
            values = (
                f"  {number(variant.scores[source][name]):>{max(8, len(name))}}" for name in columns
            )
            lines.append(f"{variant.name:<{width}}" + "".join(values))
    paths = [folder / FILE, folder / PAGE]
    files = ", ".join(str(path) for path in paths if path.exists())
    print_result(options, plain(comparison), *lines, files)


def _import_image(options: argparse.Namespace) -> None:
    from pardalis import config as configs
    from pardalis.interop import import_image_tokenizer

    config = import_image_tokenizer(
        options.weights, options.output, options.config, options.resolution
    )
    print_result(
        options,
        {"image_tokenizer": str(options.output), "config": configs.to_dict(config)},
        f"{options.output}: {config.resolution} pixels, {config.grid} x {config.grid} codes of "
        f"{config.n_codes:,}",
    )


def _show(options: argparse.Namespace) -> None:
    from pardalis import bundle
    from pardalis.files import write_bytes
    from pardalis.pipeline import load_codec
    from pardalis.pipeline.find import find_image_tokenizer

    if options.out is not None and options.out.suffix.lower() not in (".png", ".jpg", ".webp"):
        raise ConfigError(f"--out must end in .png, .jpg or .webp, got {options.out}.")
    if options.text is None and options.image is None:
        raise ConfigError("Nothing to show; give --text TEXT or --image PATH, or both.")
    shown: dict[str, object] = {}
    lines: list[str] = []
    if options.text is not None:
        is_run = (options.folder / "recipe.toml").is_file()
        codec = load_codec(options.folder) if is_run else bundle.load_codec(options.folder)
        ids = codec.text_tokenizer.encode(options.text)
        tokens = [codec.text_tokenizer.decode([token_id]) for token_id in ids]
        shown |= {"tokens": tokens, "token_ids": [codec.vocabulary.text_id(i) for i in ids]}
        lines.append(" | ".join(tokens))
    if options.image is not None:
        tokenizer = find_image_tokenizer(options.folder)
        codes = tokenizer.codes_of([options.image])
        grid = codes.view(tokenizer.config.grid, -1).tolist()
        shown["codes"] = grid
        width = len(str(tokenizer.config.n_codes - 1))
        lines += [" ".join(f"{code:>{width}}" for code in row) for row in grid]
        if options.out is not None:
            encoded = io.BytesIO()
            kind = {".jpg": "JPEG", ".webp": "WEBP"}.get(options.out.suffix.lower(), "PNG")
            tokenizer.images_of(codes)[0].save(encoded, format=kind)
            write_bytes(options.out, encoded.getvalue())
    print_result(options, shown, *lines)
