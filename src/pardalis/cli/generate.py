"""``pardalis generate``: generate text and images from a prompt, or from a file of prompts."""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from pardalis.cli.common import (
    Commands,
    add_adapters,
    add_bundle,
    add_command,
    add_number,
    add_placement,
    chosen_adapters,
    chosen_dtype,
    echo,
    print_result,
    set_run,
    shown,
)
from pardalis.cli.generate_otherwise import (
    add_candidates,
    add_infilling,
    add_task,
    infilled,
    of_task,
    ranked,
    refuse_unread,
)
from pardalis.cli.retrieval import add_retriever, chosen_retriever
from pardalis.errors import RequestError
from pardalis.inference.generation import GenerationConfig, option_help

if TYPE_CHECKING:
    from pardalis.documents import Document
    from pardalis.inference import Completion, EngineConfig, Response

logger = logging.getLogger(__name__)

_IMAGES = (
    ".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".svg", ".heic", ".avif",
)  # fmt: skip
_LONGEST_NAME = 200  # a longer text is not taken for the path of a missing image
_WRITABLE = (".html", ".htm", ".md", ".png")

_DESCRIPTION = """\
Complete a prompt of texts and images. A part of the prompt that is the path of an existing file is
an image, any other part is text.

  pardalis generate BUNDLE rocket --mode image --out rocket.png
  pardalis generate BUNDLE rocket.png --mode text
  pardalis generate BUNDLE $'Rocket\\n' --out page.html
  pardalis generate BUNDLE "What is this?" rocket.png --chat
  pardalis generate BUNDLE --infill "a <mask> drawing of a rocket" rocket.png
  pardalis generate BUNDLE rocket --mode image --candidates 8 --guidance 2 --out rocket.png

The completion is printed, with [image] in place of each image. --out writes prompt and completion
as HTML (one file) or Markdown (images beside it), or the first generated image as PNG.

  pardalis generate BUNDLE --prompts prompts.txt --out completions
  pardalis generate BUNDLE --prompts prompts.jsonl --out completions --guidance 1.5

complete every line of a file, many at once, into completions/completions.jsonl and
completions/images. The same command resumes an interrupted run; completions/settings.json holds its
options.

With --infill, <mask> in a text stands for text to be filled in, <mask:image> for an image and
<mask:any> for both, by a model that has learnt it (the transform cm3). The whole document is
printed and written.
"""

_NUMBERS = {
    "--max-slots": "sequences of the running batch (default: 16, or what one prompt needs)",
    "--cache-tokens": "tokens whose keys and values fit in the cache (default: max-slots whole "
    "contexts)",
    "--speculation-window": "image tokens that one pass may generate, 1 for no speculation "
    "(default: adaptive)",
}


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "generate", "generate text and images from a prompt", _DESCRIPTION
    )
    parser.usage = "%(prog)s BUNDLE [PART ...] [options]"
    parser.listed = "prompt"
    add_bundle(parser)
    parser.add_argument("prompt", metavar="PART", nargs="*", help="a text, or the path of an image")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE",
        help="complete each line of a .txt or .jsonl file; a JSONL line may have its own options",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path,
        help="write the completion to FILE.html, FILE.md or FILE.png; with --prompts, a folder",
    )  # fmt: skip
    parser.add_argument(
        "--stream", action="store_true", help="print the text while it is generated"
    )
    group = parser.add_argument_group("what to generate and how to sample it")
    add_options(group)
    add_adapters(
        group,
        "the first one is used, unless a line of the prompts names another one or null as its "
        '"adapter"; may be repeated',
    )
    add_task(group)
    add_infilling(parser.add_argument_group("infilling"))
    add_candidates(parser.add_argument_group("several candidates, of which the best is kept"))
    add_retriever(parser.add_argument_group("what is retrieved"))
    group = parser.add_argument_group("memory and speed")
    add_placement(group)
    for flag, meaning in _NUMBERS.items():
        add_number(group, flag, meaning)
    group.add_argument(
        "--compile", action="store_true",
        help="compile the decoding steps first, which takes minutes and pays for long work",
    )  # fmt: skip
    set_run(parser, _run)


def add_options(group: argparse._ArgumentGroup, without: Sequence[str] = ()) -> None:
    """Add a flag for each field of GenerationConfig, which :func:`config_of` reads.

    What is not given is no attribute of the parsed options.
    ``adapter`` has none: :func:`add_adapters` loads one, and so gives it a name.
    """
    hints = get_type_hints(GenerationConfig)
    for option in fields(GenerationConfig):
        if option.name in ("adapter", *without):
            continue
        flag, hint = "--" + option.name.replace("_", "-"), hints[option.name]
        arguments: dict[str, Any] = {"default": argparse.SUPPRESS, "help": option_help(option)}
        if hint is bool:
            arguments |= {"action": "store_true"}
        elif get_origin(hint) is Literal:
            arguments |= {"choices": get_args(hint)}
        elif get_origin(hint) is tuple:
            arguments["help"] += "; may be repeated"
            arguments |= {"action": "append", "metavar": "TEXT"}
        else:
            kind = next(kind for kind in get_args(hint) or (hint,) if kind is not NoneType)
            arguments |= {"type": kind, "metavar": "N" if kind is int else "X"}
        group.add_argument(flag, **arguments)


def config_of(options: argparse.Namespace) -> GenerationConfig:
    """Return what the flags of :func:`add_options` and :func:`add_adapters` say."""
    options.adapter = next(iter(chosen_adapters(options)), None)
    names = (option.name for option in fields(GenerationConfig))
    return GenerationConfig().with_options(
        {name: getattr(options, name) for name in names if hasattr(options, name)}
    )


def _run(options: argparse.Namespace) -> None:
    config = config_of(options)
    refuse_unread(options)
    if options.prompts is None:
        _complete_prompt(options, config)
    else:
        _complete_file(options, config)


def _complete_prompt(options: argparse.Namespace, config: GenerationConfig) -> None:
    from pardalis import load
    from pardalis.documents import Document
    from pardalis.inference import Engine, engine_config_for, to_document, to_request

    if not options.prompt:
        raise RequestError(
            'A prompt is needed: give texts and images, "" for an empty prompt, or --prompts.'
        )
    if options.out is not None:
        _require_writable(options, config)
    if options.stream and options.json:
        raise RequestError("--stream and --json both print the completion; choose one.")
    if config.logprobs and not options.json:
        raise RequestError("--logprobs adds to what --json prints; give --json too.")
    parts: list[Any] = [_part(text) for text in options.prompt]
    if options.task is not None:
        parts, config = of_task(options.task, parts, config, given=vars(options))
    if options.infill or options.candidates is not None:
        _complete_otherwise(options, config, parts)
        return
    bundle = load(options.bundle, options.device, chosen_dtype(options))
    request = to_request(bundle, parts, config, retriever=chosen_retriever(options))
    engine_config = _engine_config(engine_config_for([request]), options)
    with Engine(bundle, engine_config, adapters=chosen_adapters(options)) as engine:
        completion = engine.submit_request(request)
        if options.stream:
            _print_stream(completion)
        document = completion.wait()
    prompt = to_document(parts, "user" if config.chat else None)
    whole = Document((*prompt.segments, *document.segments))
    _show(options, config, document, whole, bundle.model.context)


def _complete_otherwise(
    options: argparse.Namespace, config: GenerationConfig, parts: list[Any]
) -> None:
    """Fill in masks, or keep the best of several candidates."""
    from pardalis import load
    from pardalis.documents import Document
    from pardalis.inference import to_document

    if options.infill and options.candidates is not None:
        raise RequestError("--infill and --candidates cannot stand together; choose one.")
    if options.stream:
        raise RequestError(
            "--stream prints one plain completion while it is generated; leave it out."
        )
    if options.infill and options.retrieve is not None:
        raise RequestError("--retrieve does not apply to --infill; leave it out.")
    retriever = chosen_retriever(options)
    bundle = load(options.bundle, options.device, chosen_dtype(options))
    how = {"adapters": chosen_adapters(options), "engine_options": _engine_options(options)}
    if options.infill:
        filled = infilled(bundle, parts, options, config, how)
        _show(options, config, filled, filled, bundle.model.context)
        return
    best, more = ranked(bundle, parts, options, config, how | {"retriever": retriever})
    prompt = to_document(parts, "user" if config.chat else None)
    whole = Document((*prompt.segments, *best.segments))
    _show(options, config, best, whole, bundle.model.context, more)


def _show(
    options: argparse.Namespace,
    config: GenerationConfig,
    document: "Response",
    whole: "Document",
    context: int,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Print a completion, and write it with its prompt as ``--out`` says.

    Args:
        whole: prompt and completion.
        more: what else ``--json`` prints.
    """
    from pardalis.documents import Text

    if options.json:
        print_result(options, _result(document, options, config) | dict(more or {}))
    elif not options.stream:
        echo("".join(s.text if isinstance(s, Text) else "[image]" for s in document.segments))
    if not options.json:
        _report_retrieved(document)
    if document.truncated:
        _report_truncation(document, context)
    if document.usage.images and options.out is None and not options.json:
        sys.stderr.write("The images are not kept; --out FILE.png, .html or .md writes them.\n")
    if options.out is not None:
        _write(whole, _generated(document), options.out)


def _generated(document: "Response") -> "Document":
    """Return what the model has generated of a completion, or of a document with masks."""
    from pardalis.documents import Document

    if not document.filled:
        return document
    return Document(tuple(segment for each in document.filled for segment in each.segments))


def _result(
    response: "Response", options: argparse.Namespace, config: GenerationConfig
) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    result = {
        "completion": _json_segments(response),
        "reason": response.reason,
        "usage": asdict(response.usage),
        "out": str(options.out) if options.out else None,
    }
    if response.filled:
        result["filled"] = [_json_segments(each) for each in response.filled]
    if config.logprobs:
        result["logprobs"] = [asdict(token) for token in response.log_probs]
    if options.retrieve is not None:
        result["retrieved"] = [asdict(each) for each in response.retrieved]
    return result


def _report_retrieved(response: "Response") -> None:
    for each in response.retrieved:
        logger.info(
            "Retrieved by %s, score %.2f: %s (%s).", each.by, each.score, each.name, each.source
        )


def _report_truncation(response: "Response", context: int) -> None:
    usage = response.usage
    if usage.prompt_tokens + usage.completion_tokens < context:
        cause = f"at {usage.completion_tokens} tokens; raise --max-new-tokens for a longer one."
    else:
        cause = f"because the model's context of {context} tokens is full."
    logger.warning("The completion is truncated %s", cause)


def _complete_file(options: argparse.Namespace, config: GenerationConfig) -> None:
    from pardalis import load
    from pardalis.bundle import bundle_folder
    from pardalis.files import require_folder
    from pardalis.inference import Engine, EngineConfig, PromptFile
    from pardalis.inference.prompt_lines import read_lines

    if options.infill or options.task or options.candidates is not None:
        raise RequestError(
            "--infill, --task and --candidates are for one prompt; leave --prompts out."
        )
    if options.prompt or options.stream or options.out is None:
        raise RequestError(
            "--prompts reads prompts from a file and writes completions to the folder --out; give "
            "--out, and neither parts of a prompt nor --stream."
        )
    read_lines(options.prompts)  # fails before the bundle is loaded
    require_folder(options.out)
    path = bundle_folder(options.bundle)
    bundle = load(path, options.device, chosen_dtype(options))
    # No client waits for a single prompt of a file, so preemption gains nothing.
    engine_config = EngineConfig(quantum_steps=bundle.model.config.context)
    engine_config = _engine_config(engine_config, options)
    retriever = chosen_retriever(options)
    adapters = chosen_adapters(options)
    with Engine(bundle, engine_config, adapters=adapters, retriever=retriever) as engine:
        file = PromptFile(engine, options.prompts, options.out, config, bundle_path=path)
        summary = file.run()
    print_result(
        options,
        {"out": str(options.out), **asdict(summary)},
        f"{options.out}: {summary.requests:,} prompts, {summary.unchanged:,} of them completed "
        f"before; {summary.tokens:,} tokens and {summary.images:,} images in "
        f"{summary.seconds:.1f} s, {summary.tokens_per_second:.3g} tokens a second",
    )
    if summary.failed:
        raise RequestError(
            f"{summary.failed} of {summary.requests} prompts failed; see the errors in "
            f"{file.completions}."
        )


def _engine_config(config: "EngineConfig", options: argparse.Namespace) -> "EngineConfig":
    """Replace what the command line sets."""
    return replace(config, **_engine_options(options))


def _engine_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of ``EngineConfig`` that the command line sets."""
    found = {name: getattr(options, name) for name in ("speculation_window", "compile", "weights")}
    if options.max_slots is not None:
        found |= {"max_slots": options.max_slots, "cache_tokens": None}
    if options.cache_tokens is not None:
        found["cache_tokens"] = options.cache_tokens
    return found


def _print_stream(completion: "Completion") -> None:
    from pardalis.inference import ImageBegun, TextDelta

    for event in completion:
        if isinstance(event, TextDelta):
            sys.stdout.write(shown(event.text))
        elif isinstance(event, ImageBegun):
            sys.stdout.write("[image]")
        sys.stdout.flush()
    echo("")


def _json_segments(completion: "Document") -> list[dict[str, str]]:
    from pardalis.documents import Image, open_image, to_data_uri, to_png

    return [
        {"image": to_data_uri(to_png(open_image(segment.source)))}
        if isinstance(segment, Image)
        else {"text": segment.text}
        for segment in completion.segments
    ]


def _require_writable(options: argparse.Namespace, config: GenerationConfig) -> None:
    """Check --out before the completion is generated."""
    from pardalis.files import require_folder

    path = options.out
    if path.suffix.lower() not in _WRITABLE:
        raise RequestError(f"A completion is written as {', '.join(_WRITABLE)}, got {path}.")
    if path.is_dir():
        raise RequestError(f"{path} is a folder, but a file is to be written; choose another name.")
    require_folder(path.parent)
    if path.suffix.lower() == ".png" and (config.mode == "text" or config.max_images == 0):
        raise RequestError(
            f"The completion will have no image to write to {path}; use --mode image."
        )


def _part(text: str) -> str | Path:
    from pardalis.documents.document import is_unicode

    path = Path(text)
    try:
        if path.is_file():
            return path
    except OSError:  # longer than any file name, so it is text
        return text
    named = len(text) <= _LONGEST_NAME and "\n" not in text
    if named and path.suffix.lower() in _IMAGES:
        raise RequestError(f"No image at {text}; give the path of an existing file.")
    if not is_unicode(text):
        raise RequestError(f"The part {text!r} of the prompt is neither a file nor UTF-8 text.")
    return text


def _write(document: "Document", completion: "Document", path: Path) -> None:
    from pardalis.documents import to_html, to_markdown, to_png
    from pardalis.files import write_bytes, write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix.lower():
        case ".html" | ".htm":
            write_text(path, to_html(document))
        case ".md":
            write_text(path, to_markdown(document, path.parent))
        case _ if not completion.images:
            raise RequestError(f"The completion has no image to write to {path}; use --mode image.")
        case _:
            write_bytes(path, to_png(completion.images[0].source))
