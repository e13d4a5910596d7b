"""``pardalis tokenizer evaluate``: reconstruction quality of an image tokenizer."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pardalis.cli.common import (
    Commands,
    add_command,
    add_images,
    add_number,
    print_result,
    reader_of,
    set_run,
)
from pardalis.errors import ConfigError

if TYPE_CHECKING:
    from pardalis.evaluate import MetricNets
    from pardalis.feature_nets.config import FeatureNetConfig, FeatureNetName

_DESCRIPTION = """\
Encode and decode images, and score the reconstructions: PSNR, SSIM, a perceptual distance, a
Fréchet distance, codebook use, and with --ocr the recall of words.

  pardalis tokenizer evaluate BUNDLE images/
  pardalis tokenizer evaluate RUN corpus/pairs.heldout.jsonl -o evaluation
  pardalis tokenizer evaluate TOKENIZER photos/ --perceptual vgg16 \\
      --perceptual-weights vgg16-397923af.pth --perceptual-heads vgg.pth

With -o it writes scores.json, images.jsonl with the scores of each image, and page.html with the
worst images. Scores are named after their network. LPIPS and FID need the weights that their
papers define, which you provide.
"""

_NONE = "none"


def add(verbs: Commands) -> None:
    parser = add_command(verbs, "evaluate", "score reconstructions of images", _DESCRIPTION)
    add_images(parser)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", help="folder to write, with a page"
    )
    parser.add_argument(
        "--perceptual",
        choices=("squeezenet", "vgg16", _NONE),
        default="squeezenet",
        help="net of the perceptual distance (default: squeezenet, whose weights are packaged)",
    )
    parser.add_argument(
        "--perceptual-weights",
        type=Path,
        metavar="FILE",
        help="its weights, in torchvision's layout",
    )
    parser.add_argument(
        "--perceptual-heads",
        type=Path,
        metavar="FILE",
        help="LPIPS heads; with them the distance is LPIPS",
    )
    parser.add_argument(
        "--frechet",
        choices=("efficientnet_lite0", "inception_v3", _NONE),
        default="efficientnet_lite0",
        help="net of the Fréchet distance (default: efficientnet_lite0); inception_v3 for FID",
    )
    parser.add_argument(
        "--frechet-weights",
        type=Path,
        metavar="FILE",
        help="its weights: pt_inception-2015-12-05 for FID",
    )
    parser.add_argument(
        "--ocr", action="store_true", help="measure word recall by OCR (needs pardalis[ocr])"
    )
    parser.add_argument(
        "--worst", type=int, default=16, metavar="N", help="number of worst images (default: 16)"
    )
    add_number(parser, "--max-images", "images to use, evenly spaced (default: all)")
    parser.add_argument(
        "--device", default="cpu", help="where networks run: cpu, cuda, cuda:1 (default: cpu)"
    )
    set_run(parser, _evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    from pardalis.evaluate import (
        ImageSet,
        evaluate_reconstruction,
        write_evaluation,
    )
    from pardalis.evaluate.reconstruction_page import IMAGES, PAGE, SCORES, summary, table
    from pardalis.evaluate.templates import number
    from pardalis.files import output_folder
    from pardalis.pipeline.find import find_image_tokenizer

    for flag, value in (("--worst", options.worst), ("--max-images", options.max_images)):
        if value is not None and value < 1:
            raise ConfigError(f"{flag} must be at least 1, got {value}.")
    if options.output is not None:
        mine = [name for name in (IMAGES, PAGE) if (options.output / name).exists()]
        if mine and not (options.output / SCORES).exists():
            raise ConfigError(
                f"{options.output} holds {' and '.join(mine)} of no evaluation, which it would "
                "replace; give another --output."
            )
        output_folder(options.output)
    tokenizer = find_image_tokenizer(options.tokenizer, options.device)
    nets = _nets(options)
    images = ImageSet(options.data, reader_of(options), options.image_fit, options.max_images)
    evaluation = evaluate_reconstruction(tokenizer, images, nets, options.worst)
    facts = {
        "tokenizer": str(options.tokenizer),
        "data": str(options.data),
        "image_fit": options.image_fit,
        "resolution": tokenizer.config.resolution,
        "codes_per_image": tokenizer.config.codes_per_image,
        "n_codes": tokenizer.config.n_codes,
    }
    if options.output is not None:
        write_evaluation(options.output, evaluation, facts)
    width = max(map(len, evaluation.scores), default=0)
    lines = []
    for name, value, interval, _ in table(evaluation.scores):
        range_ = f"   {number(interval[0])} to {number(interval[1])}" if interval else ""
        lines.append(f"{name:<{width}} {number(value):>10}{range_}")
    for kind, rejected in evaluation.rejected.items():
        example = rejected.examples[0]
        lines.append(f"{rejected.count} {kind}, such as {example['where']}: {example['reason']}")
    print_result(options, summary(evaluation, facts), *lines)


def _nets(options: argparse.Namespace) -> "MetricNets":
    from pardalis.devices import find_device
    from pardalis.evaluate import MetricNets, load_ocr
    from pardalis.feature_nets import load_feature_net, load_perceptual_distance

    device = find_device(options.device)
    perceptual = frechet = None
    for kind in ("perceptual", "frechet"):
        if getattr(options, kind) == _NONE and getattr(options, f"{kind}_weights"):
            raise ConfigError(f"--{kind}-weights needs a net; leave out --{kind} none.")
    if options.perceptual != _NONE:
        heads = options.perceptual_heads
        config = _net_config("perceptual", options.perceptual, options.perceptual_weights, heads)
        perceptual = load_perceptual_distance(config).to(device)
    if options.frechet != _NONE:
        config = _net_config("frechet", options.frechet, options.frechet_weights)
        frechet = load_feature_net(config).to(device)
    ocr = load_ocr() if options.ocr else None
    return MetricNets(perceptual=perceptual, frechet=frechet, ocr=ocr)


def _net_config(
    option: str, name: "FeatureNetName", weights: Path | None, heads: Path | None = None
) -> "FeatureNetConfig":
    """Return the config of a feature net; errors name the options of this command."""
    from pardalis.feature_nets import FeatureNetConfig

    try:
        return FeatureNetConfig(name=name, weights=weights, heads=heads)
    except ConfigError as error:
        raise ConfigError(f"--{option}-{error}") from error
