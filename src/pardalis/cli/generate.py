"""``pardalis generate``: ask a bundle."""

import argparse
from pathlib import Path

from pardalis.cli.common import Commands, add_command, add_json, echo, print_json
from pardalis.documents import Document, Text, open_picture, to_html, to_markdown
from pardalis.errors import RequestError
from pardalis.files import write_text

_DESCRIPTION = """\
Answer a prompt of texts and pictures. A part of the prompt that is the path of an existing file is
a picture, everything else is text.

  pardalis generate BUNDLE "owl" --mode picture --out owl.html
  pardalis generate BUNDLE photo.png --mode text
  pardalis generate BUNDLE "Owl\\n" --out page.md

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
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="of text; 0: most likely (default)"
    )
    parser.add_argument(
        "--picture-temperature", type=float, default=1.0, help="of pictures (default: 1)"
    )
    parser.add_argument(
        "--top-k", type=int, default=0, help="of text and pictures; 0: all (default)"
    )
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="of text and pictures (default: 1, all)"
    )
    parser.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        help="classifier-free guidance of pictures (default: 1, none)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same answer (default: 0)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    import pardalis
    from pardalis.inference import as_document

    bundle = pardalis.load(options.bundle, options.device)
    prompt = as_document([_part(text) for text in options.prompt])
    answer = pardalis.generate(
        bundle,
        prompt,
        mode=options.mode,
        max_tokens=options.max_tokens,
        max_pictures=options.max_pictures,
        text=pardalis.SamplingConfig(
            temperature=options.temperature, top_k=options.top_k, top_p=options.top_p
        ),
        picture=pardalis.SamplingConfig(
            temperature=options.picture_temperature, top_k=options.top_k, top_p=options.top_p
        ),
        guidance=options.guidance,
        seed=options.seed,
    )
    if options.out is not None:
        _write(Document((*prompt.segments, *answer.segments)), answer, options.out)
    if options.json:
        parts = [
            {"text": s.text} if isinstance(s, Text) else {"picture": True} for s in answer.segments
        ]
        print_json({"answer": parts, "out": str(options.out) if options.out else None})
    else:
        echo("".join(s.text if isinstance(s, Text) else "[picture]" for s in answer.segments))


def _part(text: str) -> str | Path:
    path = Path(text)
    try:
        if path.is_file():
            return path
    except OSError:  # longer than a file name may be: certainly a text
        pass
    return text.replace("\\n", "\n")


def _write(document: Document, answer: Document, path: Path) -> None:
    match path.suffix.lower():
        case ".html" | ".htm":
            write_text(path, to_html(document))
        case ".md":
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, to_markdown(document, path.parent))
        case ".png":
            if not answer.pictures:
                raise RequestError(
                    f"The answer has no picture to write to {path}; ask with --mode picture."
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            open_picture(answer.pictures[0].source).save(path)
        case suffix:
            raise RequestError(
                f"An answer is written as .html, .md or .png, got {suffix or path.name!r}."
            )
