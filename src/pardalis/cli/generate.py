"""``pardalis generate``: ask a bundle."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    from pardalis.inference import Completion, EngineConfig

_IMAGES = (
    ".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".svg", ".heic", ".avif",
)  # fmt: skip
_LONGEST_NAME = 200  # a text of more characters is not taken for the path of a missing image
_WRITABLE = (".html", ".htm", ".md", ".png")

_DESCRIPTION = """\
Answer a prompt of texts and images. A part of the prompt that is the path of an existing file is
an image, everything else is text.

  pardalis generate BUNDLE rocket --mode image --out rocket.png
  pardalis generate BUNDLE rocket.png --mode text
  pardalis generate BUNDLE $'Rocket\\n' --out page.html
  pardalis generate BUNDLE "What is this?" rocket.png --chat

The answer is printed, with [image] where one was drawn; --out writes it with its images as HTML
(one file) or Markdown (images beside it), or the drawn image itself as PNG.

  pardalis generate BUNDLE --prompts prompts.txt --out answers
  pardalis generate BUNDLE --prompts prompts.jsonl --out answers --guidance 1.5

answers each line of a file, many at once, into answers/answers.jsonl and answers/images. Can be
interrupted; the same command goes on, as answers/settings.json tells it.
"""


def add(commands: Commands) -> None:
    parser = add_command(commands, "generate", "ask a model", _DESCRIPTION)
    parser.usage = "%(prog)s BUNDLE [PART ...] [options]"
    parser.listed = "prompt"
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder of a bundle")
    parser.add_argument("prompt", metavar="PART", nargs="*", help="a text, or the path of an image")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="a .txt or .jsonl file, a prompt a line"
    )
    parser.add_argument(
        "--mode", choices=("text", "image", "interleaved"), default="interleaved",
        help="what may be written; interleaved lets the model decide when to draw (default)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path,
        help="write the answer to FILE.html, FILE.md or FILE.png; with --prompts, a folder",
    )  # fmt: skip
    parser.add_argument(
        "--stream", action="store_true", help="print the text of the answer as it is written"
    )
    parser.add_argument("--max-new-tokens", type=int, help="ids of the answer (default: what fits)")
    parser.add_argument("--max-images", type=int, help="images of the answer (default: what fits)")
    _add_sampling(parser)
    parser.add_argument(
        "--chat",
        action="store_true",
        help="ask as a user in a conversation, for models that were trained on conversations; "
        "otherwise the model goes on with the prompt",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same answer (default: 0)"
    )
    _add_engine(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    for prefix, what, temperature, top_p in (
        ("", "text", 0.0, 1.0),
        ("image-", "images", 0.7, 0.9),
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
        "--guidance", type=float, default=1.0, metavar="S",
        help="classifier-free guidance of images by the text before them; Chameleon takes 3, a "
        "small model no more than about 2 (default: 1, none)",
    )  # fmt: skip
    parser.add_argument(
        "--image-guidance", type=float, metavar="S",
        help="guidance by earlier images, beside that by text; Chameleon takes 1.2 (default: "
        "text and images together)",
    )  # fmt: skip
    parser.add_argument(
        "--contrastive", type=float, nargs=2, metavar=("ALPHA", "K"),
        help="contrastive decoding of images in place of guidance, such as 0.1 1",
    )  # fmt: skip


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    add_dtype(parser)
    parser.add_argument(
        "--weights", choices=("stored", "int8"), default="stored",
        help="matrices as they are loaded (default), or in 8 bits, which a step reads faster",
    )  # fmt: skip
    parser.add_argument(
        "--max-slots", type=int, metavar="N",
        help="sequences written at once (default: 16, or what one prompt takes)",
    )  # fmt: skip
    parser.add_argument(
        "--cache-tokens", type=int, metavar="N",
        help="ids whose keys and values fit in memory (default: N rows as long as the context)",
    )  # fmt: skip
    parser.add_argument(
        "--speculation-window", type=int, metavar="N",
        help="codes guessed ahead in an image, 1 for none (default: where it pays)",
    )  # fmt: skip
    parser.add_argument(
        "--compile", action="store_true", help="compile the steps first; pays for long work"
    )


def _run(options: argparse.Namespace) -> None:
    if options.prompts is None:
        _answer_one(options)
    else:
        _answer_file(options)


def _answer_one(options: argparse.Namespace) -> None:
    from pardalis import load
    from pardalis.cli.prompts import ask
    from pardalis.documents import Document, Text
    from pardalis.inference import Engine, as_document, fitting

    if not options.prompt:
        raise RequestError(
            'A prompt is needed: give texts and images, "" to begin with nothing, or --prompts.'
        )
    if options.out is not None:
        _require_writable(options)
    if options.stream and options.json:
        raise RequestError("--stream and --json print the answer in two ways; choose one.")
    parts = [_part(text) for text in options.prompt]
    bundle = load(options.bundle, options.device, chosen_dtype(options))
    request = ask(bundle, parts, _asked(options))
    with Engine(bundle, _configured(fitting([request]), options)) as engine:
        writing = engine.submit_request(request)
        if options.stream:
            _print_stream(writing)
        answer = writing.wait()
    if options.json:
        _print_json(answer, options.out)
    elif not options.stream:
        echo("".join(s.text if isinstance(s, Text) else "[image]" for s in answer.segments))
    if options.out is not None:
        prompt = as_document(parts, "user" if options.chat else None)
        _write(Document((*prompt.segments, *answer.segments)), answer, options.out)


def _answer_file(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from pardalis import load
    from pardalis.cli.prompts import PromptFile, read_lines
    from pardalis.files import require_folder
    from pardalis.inference import Engine, EngineConfig

    if options.prompt or options.stream or options.out is None:
        raise RequestError(
            "--prompts takes its prompts from the file and writes answers into the folder of "
            "--out; give that, and neither parts of a prompt nor --stream."
        )
    read_lines(options.prompts)
    require_folder(options.out)
    bundle = load(options.bundle, options.device, chosen_dtype(options))
    # Nobody waits for one prompt of a file before another, so none gives its row to the next.
    config = EngineConfig(quantum_steps=bundle.model.config.context)
    with Engine(bundle, _configured(config, options)) as engine:
        work = PromptFile(engine, options.prompts, options.out, _asked(options))
        work.settle(options.bundle)
        summary = work.run()
    if options.json:
        print_json({"out": str(options.out), **asdict(summary)})
    else:
        echo(
            f"{options.out}: {summary.requests:,} prompts, {summary.unchanged:,} of them answered "
            f"before; {summary.tokens:,} ids and {summary.images:,} images in "
            f"{summary.seconds:.1f} s, {summary.tokens_per_second:.3g} ids a second"
        )
    if summary.failed:
        raise RequestError(
            f"{summary.failed} of {summary.requests} prompts could not be answered; see the "
            f"errors in {options.out / 'answers.jsonl'}."
        )


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is asked of every prompt, by the names that a line of a file has for it."""
    from pardalis.cli.prompts import DEFAULTS

    return {name: getattr(options, name) for name in DEFAULTS}


def _configured(config: "EngineConfig", options: argparse.Namespace) -> "EngineConfig":
    """Return a configuration with what the command line says of it."""
    from dataclasses import replace

    if options.max_slots is not None:
        config = replace(config, max_slots=options.max_slots, cache_tokens=None)
    if options.cache_tokens is not None:
        config = replace(config, cache_tokens=options.cache_tokens)
    return replace(
        config,
        speculation_window=options.speculation_window,
        compile=options.compile,
        weights=options.weights,
    )


def _print_stream(writing: "Completion") -> None:
    from pardalis.inference import ImageBegun, TextDelta

    for event in writing:
        if isinstance(event, TextDelta):
            sys.stdout.write(event.text)
        elif isinstance(event, ImageBegun):
            sys.stdout.write("[image]")
        sys.stdout.flush()
    echo("")


def _print_json(answer: "Document", out: Path | None) -> None:
    from pardalis.documents import Image, open_image, to_data_uri, to_png

    shown = [
        {"image": to_data_uri(to_png(open_image(segment.source)))}
        if isinstance(segment, Image)
        else {"text": segment.text}
        for segment in answer.segments
    ]
    print_json({"answer": shown, "out": str(out) if out else None})


def _require_writable(options: argparse.Namespace) -> None:
    """Raise before the answer is written what would be raised after it."""
    from pardalis.files import require_folder

    path = options.out
    if path.suffix.lower() not in _WRITABLE:
        raise RequestError(f"An answer is written as {', '.join(_WRITABLE)}, got {path}.")
    if path.is_dir():
        raise RequestError(f"{path} is a folder, but a file is to be written; choose another name.")
    require_folder(path.parent)
    if path.suffix.lower() == ".png" and (options.mode == "text" or options.max_images == 0):
        raise RequestError(
            f"The answer will have no image to write to {path}; ask with --mode image."
        )


def _part(text: str) -> str | Path:
    path = Path(text)
    try:
        if path.is_file():
            return path
    except OSError:  # longer than a file name may be: certainly a text
        return text
    named = len(text) <= _LONGEST_NAME and "\n" not in text
    if named and path.suffix.lower() in _IMAGES:
        raise RequestError(f"No image at {text}; give the path of an existing file.")
    return text


def _write(document: "Document", answer: "Document", path: Path) -> None:
    from pardalis.documents import open_image, to_html, to_markdown
    from pardalis.files import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix.lower():
        case ".html" | ".htm":
            write_text(path, to_html(document))
        case ".md":
            write_text(path, to_markdown(document, path.parent))
        case _ if not answer.images:
            raise RequestError(
                f"The answer has no image to write to {path}; ask with --mode image."
            )
        case _:
            open_image(answer.images[0].source).save(path)
