"""The TOML of a first recipe, with the reasons for its numbers as comments."""

import math
import os
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import tomli_w

from pardalis.pipeline.first_recipe.choose import (
    TOKENS_PER_PARAMETER,
    Choice,
    ImageChoice,
    ModelChoice,
)
from pardalis.pipeline.first_recipe.found import Found, FoundSource
from pardalis.pipeline.first_recipe.measure import precision_on

_WIDTH = 96  # of a comment


def recipe_text(found: Found, choice: Choice, name: str, output: Path) -> str:
    """Return a recipe as it stands in the file ``output``, to which its paths are relative."""
    return "\n".join(_lines(found, choice, name, output)) + "\n"


def described(found: Found, choice: Choice) -> Iterator[tuple[str, str]]:
    """Yield what was chosen and why: a name and a sentence or two."""
    images, model = choice.images, choice.model
    yield "images", _of_images(found, images)
    if model is None:
        yield (
            "model",
            "None: the documents have no text, so an image tokenizer is trained alone. A caption "
            "is a text file beside its image: owl.txt for owl.png.",
        )
    else:
        yield (
            "text",
            (
                f"{model.vocab_size:,} text tokens for {found.n_characters:,} characters, "
                f"{model.characters_per_token:.1f} characters a token."
            ),
        )
        yield "rows", _of_rows(model)
        yield "model", _of_model(model)
    yield "held out", _of_heldout(found, choice)
    yield "time", _of_time(choice)


def _of_images(found: Found, images: ImageChoice) -> str:
    grid = math.isqrt(images.codes_per_image)
    return (
        f"{images.resolution} pixels a side ({found.median_side} is the median of the shorter "
        f"sides), {grid} x {grid} codes of {images.n_codes:,}. {images.steps:,} steps of "
        f"{images.batch_images} images, {images.step_s:.3g} s each as measured: "
        f"{_times(images.epochs)} over the images."
    )


def _of_rows(model: ModelChoice) -> str:
    rest = ""
    if model.share_in_rows < 1:
        rest = "; longer ones are split" if model.share_in_rows < 0.995 else "; a few are split"
    return (
        f"{model.row_tokens:,} tokens, which hold {model.share_in_rows:.0%} of the documents "
        f"whole{rest}."
    )


def _of_model(model: ModelChoice) -> str:
    why = (
        f"the largest measured that sees {TOKENS_PER_PARAMETER} tokens for each in the time, or "
        "that the documents need"
        if model.sees_enough
        else "the smallest, since the time is short"
    )
    return (
        f"{model.parameters / 1e6:.1f} million parameters, {why}. {model.steps:,} steps of "
        f"{model.batch_rows} rows, {model.step_s:.3g} s each as measured: {_times(model.epochs)} "
        f"over {model.n_tokens:,} tokens."
    )


def _of_heldout(found: Found, choice: Choice) -> str:
    if choice.heldout_fraction is not None:
        return f"{choice.heldout_fraction:.0%} of the documents, by a hash of their content."
    named = [source.name for source in found.sources if source.is_heldout]
    if named:
        return f"{', '.join(named)}, as the names say."
    if len(found.sources) == 1:
        [source] = found.sources
        if source.n_documents > 1 and len(set(source.places)) == 1:
            return "Nothing: the documents have the same text, so they are all on one side."
        return "Nothing: the documents are too few to divide."
    least = min(found.sources, key=lambda source: source.n_documents)
    return (
        f"Nothing: every source would be divided, and the {least.n_documents:,} of {least.name} "
        "are too few."
    )


def _of_time(choice: Choice) -> str:
    parts = [f"{choice.images.seconds / 60:.1f} for the image tokenizer"]
    if choice.model:
        parts.append(f"{choice.model.seconds / 60:.1f} for the decoder")
    spare = choice.seconds < 60 * choice.minutes * 0.8
    return (
        f"About {choice.seconds / 60:.1f} of {choice.minutes:g} minutes on {choice.device}: "
        f"{', '.join(parts)}, the rest for reading, evaluations and samples."
        + (" More passes over so few documents would teach them by heart only." if spare else "")
    )


def _n(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _times(epochs: float) -> str:
    return f"{epochs:.2g} passes" if epochs < 10 else f"{epochs:,.0f} passes"


# ── the file ─────────────────────────────────────────────────────────────────────────────────────


def _lines(found: Found, choice: Choice, name: str, output: Path) -> Iterator[str]:
    reasons = dict(described(found, choice))
    yield f"# pardalis run {shlex.quote(output.name)}"
    yield "#"
    yield from _comment(
        f"Written by pardalis init for {_n(found.n_documents, 'document')} with "
        f"{_n(found.n_images, 'image')}. {reasons['time']}"
    )
    if choice.device != "cpu":
        yield from _comment(f"Run it on the device {choice.device!r}, which it was measured on.")
    for warning in choice.warnings:
        yield from _comment(warning)
    yield ""
    yield _value("name", name)
    if choice.heldout_fraction is not None:
        yield ""
        yield from _comment(f"Held out, for evaluation only: {reasons['held out']}")
        yield _value("heldout_fraction", choice.heldout_fraction)
    for source in found.sources:
        yield ""
        yield from _source(source, choice, output)
    if choice.model is None:
        yield from _image_tokenizer(choice, reasons["images"])
        return
    yield ""
    yield from _comment(f"Text: {reasons['text']}")
    yield "[text_tokenizer]"
    yield _value("vocab_size", choice.model.vocab_size)
    yield from _image_tokenizer(choice, reasons["images"])
    yield from _decoder(choice.model, choice.device, reasons)
    yield from _sample(found, choice)


def _source(source: FoundSource, choice: Choice, output: Path) -> Iterator[str]:
    yield from _comment(source_facts(source))
    yield "[[heldout]]" if source.is_heldout else "[[sources]]"
    yield _value("name", source.name)
    yield _value("reader", source.reader)
    if source.options:
        options = ", ".join(_value(name, value) for name, value in source.options.items())
        why = "  # without what most pages repeat" if "repeated" in source.options else ""
        yield f"options = {{{options}}}{why}"
    yield _value("path", _relative(source.path, output))
    if len(choice.weights) > 1 and not source.is_heldout:
        yield _value("weight", choice.weights[source.name]) + "  # its share of the tokens"
    if choice.orders.get(source.name) == 2:
        yield 'transforms = [{kind = "pair_order", order = "both"}]  # text to image, and captions'


def source_facts(source: FoundSource) -> str:
    """Return what a source holds, as a sentence."""
    facts = [_n(source.n_documents, "document"), _n(source.n_images, "image")]
    facts.append(f"{source.n_characters:,} characters of text")
    if source.rejected:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in source.rejected.most_common())
        facts.append(f"left out: {kinds}")
    more = " (the first of more)" if source.is_cut else ""
    return f"{', '.join(facts)}{more}."


def _image_tokenizer(choice: Choice, reason: str) -> Iterator[str]:
    images = choice.images
    yield ""
    yield from _comment(f"Images: {reason}")
    yield "[image_tokenizer]"
    yield _value("preset", "tiny")
    yield _value("resolution", images.resolution)
    yield _value("channels", images.channels)
    yield _value("n_codes", images.n_codes)
    yield ""
    yield "[image_tokenizer_training]"
    yield _value("batch_images", images.batch_images)
    yield from _precision(choice.device)
    yield "[image_tokenizer_training.schedule]"
    yield _value("kind", "warmup_cosine")
    yield _value("learning_rate", 1.5e-3)
    yield _value("warmup_steps", min(20, images.steps // 10))
    yield _value("floor_ratio", 0.05)
    yield from _loop("image_tokenizer_loop", images.steps)


def _decoder(model: ModelChoice, device: str, reasons: dict[str, str]) -> Iterator[str]:
    shape = model.shape
    yield ""
    yield from _comment(f"Rows: {reasons['rows']}")
    yield "[prepare]"
    yield _value("row_tokens", model.row_tokens)
    yield ""
    yield from _comment(f"Model: {reasons['model']}")
    yield "[model]"
    yield _value("preset", "tiny")
    yield _value("d_model", shape.d_model)
    yield _value("n_layers", shape.n_layers)
    yield _value("attention.n_heads", shape.attention.n_heads)
    yield _value("feed_forward.width", shape.feed_forward.width)
    yield ""
    yield "[training]"
    yield _value("batch_rows", model.batch_rows)
    yield from _precision(device)
    yield "[training.schedule]"
    yield _value("kind", "warmup_cosine")
    yield _value("learning_rate", model.learning_rate)
    yield _value("warmup_steps", max(1, model.steps // 25))
    yield from _loop("training_loop", model.steps)


def _loop(table: str, steps: int) -> Iterator[str]:
    yield ""
    yield f"[{table}]"
    yield _value("steps", steps)
    yield _value("save_every", max(1, steps // 5))
    yield _value("report_every", max(1, min(20, steps // 50)))
    yield _value("evaluate_every", max(1, steps // 10))


def _sample(found: Found, choice: Choice) -> Iterator[str]:
    n_pairs = sum(source.n_pairs for source in found.sources)
    n_pages = sum(source.n_interleaved for source in found.sources)
    most = max(16, 100 * 64 // choice.images.codes_per_image)
    yield ""
    yield "[sample]  # of each split, at most"
    yield _value("images", min(100, most) if n_pairs else 0)
    yield _value("captions", min(50, most) if n_pairs else 0)
    yield _value("pages", 6 if n_pages else 0)
    yield _value("gallery", 400)
    yield "image = { temperature = 0.5 }"


def _precision(device: str) -> Iterator[str]:
    import torch

    if (precision := precision_on(torch.device(device))) != "float32":
        yield _value("precision", precision)


def _value(name: str, value: object) -> str:
    line = tomli_w.dumps({"value": value}).rstrip()
    return f"{name}{line.removeprefix('value')}"


def _comment(text: str) -> Iterator[str]:
    yield from (f"# {line}" for line in textwrap.wrap(text, _WIDTH))


def _relative(path: Path, output: Path) -> str:
    return os.path.relpath(path.resolve(), output.parent.resolve())
