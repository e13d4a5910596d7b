"""``pardalis generate``: ask a bundle."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pardalis.cli.common import (
    Commands,
    add_command,
    add_dtype,
    add_json,
    chosen_dtype,
    echo,
    print_json,
)
from pardalis.errors import RequestError

if TYPE_CHECKING:
    from pardalis.documents import Document

_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff")
_WRITABLE = (".html", ".htm", ".md", ".png")

_DESCRIPTION = """\
Answer a prompt of texts and pictures. A part of the prompt that is the path of an existing file is
a picture, everything else is text.

  pardalis generate BUNDLE rocket --mode picture --out rocket.png
  pardalis generate BUNDLE rocket.png --mode text
  pardalis generate BUNDLE $'Rocket\\n' --out page.html
  pardalis generate BUNDLE "What is this?" rocket.png --chat

The answer is printed, with [picture] where one was drawn; --out writes it with its pictures as HTML
(one file) or Markdown (pictures beside it), or the drawn picture itself as PNG.
"""


def add(commands: Commands) -> None:
    parser = add_command(commands, "generate", "ask a model", _DESCRIPTION)
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder of a bundle")
    parser.add_argument(
        "prompt", metavar="PART", nargs="*", help="a text, or the path of a picture"
    )
    parser.add_argument(
        "--mode", choices=("text", "picture", "interleaved"), default="interleaved",
        help="what may be written; interleaved lets the model decide when to draw (default)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, help="write the answer to FILE.html, FILE.md or FILE.png"
    )
    parser.add_argument("--max-tokens", type=int, help="ids of the answer (default: what fits)")
    parser.add_argument(
        "--max-pictures", type=int, help="pictures of the answer (default: what fits)"
    )
    for prefix, what, temperature, top_p in (
        ("", "text", 0.0, 1.0),
        ("picture-", "pictures", 0.7, 0.9),
    ):
        parser.add_argument(
            f"--{prefix}temperature", type=float, default=temperature, metavar="T",
            help=f"of {what}; 0 takes the most likely id (default: %(default)s)",
        )  # fmt: skip
        parser.add_argument(
            f"--{prefix}top-k", type=int, default=0, metavar="K",
            help=f"for {what}, keep the K most likely ids; 0 keeps all (default)",
        )  # fmt: skip
        parser.add_argument(
            f"--{prefix}top-p", type=float, default=top_p, metavar="P",
            help=f"for {what}, keep the likeliest ids that reach P together (default: %(default)s)",
        )  # fmt: skip
    parser.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        help="classifier-free guidance of pictures (default: 1, none)",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="ask as a user in a conversation, for models that were trained on conversations; "
        "otherwise the model goes on with the prompt",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same answer (default: 0)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    add_dtype(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    import pardalis
    from pardalis.documents import Document, Picture, Text, open_picture, to_data_uri, to_png
    from pardalis.inference import as_document

    if options.out is not None and options.out.suffix.lower() not in _WRITABLE:
        raise RequestError(f"An answer is written as {', '.join(_WRITABLE)}, got {options.out}.")
    parts = [_part(text) for text in options.prompt]
    prompt = as_document(parts, "user" if options.chat else None)
    answer = pardalis.generate(
        pardalis.load(options.bundle, options.device, chosen_dtype(options)),
        prompt,
        mode=options.mode,
        max_tokens=options.max_tokens,
        max_pictures=options.max_pictures,
        text=pardalis.SamplingConfig(
            temperature=options.temperature, top_k=options.top_k, top_p=options.top_p
        ),
        picture=pardalis.SamplingConfig(
            temperature=options.picture_temperature,
            top_k=options.picture_top_k,
            top_p=options.picture_top_p,
        ),
        guidance=options.guidance,
        seed=options.seed,
    )
    if options.json:
        shown = [
            {"picture": to_data_uri(to_png(open_picture(segment.source)))}
            if isinstance(segment, Picture)
            else {"text": segment.text}
            for segment in answer.segments
        ]
        print_json({"answer": shown, "out": str(options.out) if options.out else None})
    else:
        echo("".join(s.text if isinstance(s, Text) else "[picture]" for s in answer.segments))
    if options.out is not None:
        _write(Document((*prompt.segments, *answer.segments)), answer, options.out)


def _part(text: str) -> str | Path:
    path = Path(text)
    try:
        if path.is_file():
            return path
    except OSError:  # longer than a file name may be: certainly a text
        return text
    if path.suffix.lower() in _PICTURES and " " not in text:
        raise RequestError(f"No picture at {text}; give the path of an existing file.")
    return text


def _write(document: "Document", answer: "Document", path: Path) -> None:
    from pardalis.documents import open_picture, to_html, to_markdown
    from pardalis.files import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix.lower():
        case ".html" | ".htm":
            write_text(path, to_html(document))
        case ".md":
            write_text(path, to_markdown(document, path.parent))
        case _ if not answer.pictures:
            raise RequestError(
                f"The answer has no picture to write to {path}; ask with --mode picture."
            )
        case _:
            open_picture(answer.pictures[0].source).save(path)
