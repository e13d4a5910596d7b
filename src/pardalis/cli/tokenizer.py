"""``pardalis tokenizer``: train the two tokenizers, and look at what they do."""

import argparse
from pathlib import Path

from pardalis.cli.common import (
    Commands,
    add_command,
    add_json,
    add_stage_command,
    echo,
    print_json,
)
from pardalis.errors import ConfigError

_TEXT = """\
Train the recipe's text tokenizer, a byte-level BPE, on the text of its sources.
"""

_IMAGE = """\
Train the recipe's image tokenizer, a VQ-GAN encoder, codebook and decoder, on the pictures of its
sources. Can be interrupted; the same command goes on.
"""

_SHOW = """\
Show what the tokenizers of a bundle, or of a run, make of a text or a picture.

  pardalis tokenizer show BUNDLE --text "A snowy owl."
  pardalis tokenizer show BUNDLE --picture owl.png --out reconstruction.png
"""


def add(commands: Commands) -> None:
    group = add_command(commands, "tokenizer", "train and look at tokenizers", __doc__ or "")
    verbs = group.add_subparsers(title="commands", metavar="COMMAND", required=True)

    add_stage_command(verbs, "train-text", "text_tokenizer", "train the text tokenizer", _TEXT)
    add_stage_command(verbs, "train-image", "image_tokenizer", "train the image tokenizer", _IMAGE)
    show = add_command(verbs, "show", "show what tokenizers make of a text or a picture", _SHOW)
    show.add_argument(
        "folder",
        metavar="BUNDLE",
        type=Path,
        help="folder of a bundle, or of a run with tokenizers",
    )
    show.add_argument("--text", help="a text to cut into pieces")
    show.add_argument("--picture", type=Path, help="a picture to turn into codes")
    show.add_argument("--out", type=Path, help="where to write the picture after the round trip")
    add_json(show)
    show.set_defaults(run=_show)


def _show(options: argparse.Namespace) -> None:
    from pardalis import load
    from pardalis.documents import open_picture
    from pardalis.pipeline import load_codec

    if options.out is not None and options.out.suffix.lower() not in (".png", ".jpg", ".webp"):
        raise ConfigError(f"--out must end in .png, .jpg or .webp, got {options.out}.")
    if options.text is None and options.picture is None:
        raise ConfigError("Say what to show: --text TEXT or --picture PATH, or both.")
    is_run = (options.folder / "image_tokenizer" / "final").is_dir()
    codec = load_codec(options.folder) if is_run else load(options.folder).codec
    shown: dict[str, object] = {}
    lines: list[str] = []
    if options.text is not None:
        ids = codec.text_tokenizer.encode(options.text)
        pieces = [codec.text_tokenizer.decode([piece]) for piece in ids]
        shown |= {"pieces": pieces, "text_ids": [codec.vocabulary.text.start + i for i in ids]}
        lines.append(" | ".join(pieces))
    if options.picture is not None:
        tokenizer = codec.image_tokenizer
        codes = tokenizer.codes_of([open_picture(options.picture)])
        grid = codes.view(tokenizer.config.grid, -1).tolist()
        shown["codes"] = grid
        width = len(str(codec.vocabulary.n_codes - 1))
        lines += [" ".join(f"{code:>{width}}" for code in row) for row in grid]
        if options.out is not None:
            tokenizer.images_of(codes)[0].save(options.out)
    if options.json:
        print_json(shown)
    else:
        echo("\n".join(lines))
