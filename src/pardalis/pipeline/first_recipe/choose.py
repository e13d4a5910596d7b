"""The numbers of a first recipe, from what a folder holds and how fast this machine is.

The rules are those of the recipes that were measured (``recipes/``): the quickstart sees two tokens
for each parameter and the image tokenizer each image 96 times, in a fifth of the time.
"""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pardalis.model import AttentionConfig, ModelShape, SwiGLUConfig
from pardalis.pipeline.first_recipe import measure
from pardalis.pipeline.first_recipe.found import Found, FoundSource
from pardalis.tokens import Grammar, TextTokenizer, Vocabulary, train_text_tokenizer
from pardalis.vq import PRESETS as IMAGE_TOKENIZERS

logger = logging.getLogger(__name__)

# Width, layers, heads and feed-forward width of decoders; the first is the preset "tiny".
_SHAPES = (
    (128, 4, 4, 384),
    (160, 5, 5, 448),
    (192, 6, 6, 512),
    (256, 6, 8, 768),
    (384, 8, 6, 1024),
    (512, 8, 8, 1536),
    (768, 12, 12, 2048),
    (1024, 16, 16, 2816),
)
_RESOLUTIONS = (32, 48, 64, 96, 128, 192, 256)
_LEAST_RESOLUTION = 64  # of larger images: fewer codes show little of them

_START_S = 15.0  # of imports, checks and reading documents
_RESERVE = 0.1  # share of the time for evaluations and checkpoints
_SAMPLING_STEPS = 120  # of the decoder take as long as samples and the report, roughly
_IMAGE_TOKENIZER = 0.22  # share of the time

_IMAGE_EPOCHS = 100  # of the image tokenizer, at most
_LEAST_IMAGE_STEPS = 800  # before a larger resolution is worth its time
_EPOCHS = 60  # of the decoder, at most: it has learnt by heart what it can
_LEAST_EPOCHS = 20  # before a larger resolution is worth its time
TOKENS_PER_PARAMETER = 3  # that a larger decoder has to see
_LEAST_STEPS = 100  # of any training, however short the time
_LEAST_STEPS_BY_HEART = 1000  # of a decoder, however few documents there are
_TOO_FEW_STEPS = 500

_CHARACTERS_PER_TOKEN = 250  # of the vocabulary: how often a token occurs, roughly
_VOCABULARIES = (512, 1024, 2048, 4096, 8192, 16384)
_FRACTIONS = (0.05, 0.1, 0.15, 0.2, 0.3)
_FEW_DOCUMENTS = 400  # below this a twentieth of them says little


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageChoice:
    """The image tokenizer, and its training."""

    resolution: int
    channels: int
    n_codes: int
    codes_per_image: int
    batch_images: int
    steps: int
    step_s: float
    epochs: float

    @property
    def seconds(self) -> float:
        return self.steps * self.step_s


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelChoice:
    """The text tokenizer, the rows, the decoder, and its training."""

    vocab_size: int
    characters_per_token: float
    row_tokens: int
    share_in_rows: float  # of the documents that fit a row whole
    shape: ModelShape
    parameters: int
    batch_rows: int
    learning_rate: float
    steps: int
    step_s: float
    epochs: float
    n_tokens: int  # of all training documents, in each order
    sees_enough: bool  # of tokens for its size

    @property
    def seconds(self) -> float:
        return self.steps * self.step_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Everything that a first recipe says, with what it was chosen by."""

    minutes: float
    device: str
    heldout_fraction: float | None
    orders: dict[str, int]  # by source: 2 if its pairs are learnt in both orders
    weights: dict[str, float]  # by source
    images: ImageChoice
    model: ModelChoice | None  # None: the documents have no text
    read_s: float  # of decoding images, in all stages
    warnings: list[str]

    @property
    def seconds(self) -> float:
        trained = self.images.seconds
        if self.model:
            trained += self.model.seconds + _SAMPLING_STEPS * self.model.step_s
        return _START_S + self.read_s + trained / (1 - _RESERVE)


def choose(found: Found, minutes: float | int, device: torch.device) -> Choice:
    """Choose a recipe for a stated time; measures steps for some seconds."""
    # For the image tokenizer, for shards (there each time that it occurs), and for the report.
    read_s = found.decode_s * (2 * found.n_different_images + found.n_images)
    load = _load() if device.type == "cpu" else 0.0
    seconds = max(60 * minutes - _START_S - read_s, 6 * minutes) * (1 - _RESERVE)
    orders = {source.name: 1 + _is_of_pairs(source) for source in found.training}
    images, model = _sizes(found, orders, seconds, device)
    choice = Choice(
        minutes=float(minutes),
        device=str(device),
        heldout_fraction=heldout_fraction(found.sources),
        orders=orders,
        weights=_weights(found, orders, images, model),
        images=images,
        model=model,
        read_s=read_s,
        warnings=[],
    )
    return replace(choice, warnings=list(_warnings(choice, load)))


def heldout_fraction(sources: list[FoundSource]) -> float | None:
    """Return the share to hold out: the smallest that leaves each source documents on both sides.

    None: a source names its held-out documents, or there are too few documents.
    """
    if any(source.is_heldout for source in sources):
        return None
    n_documents = sum(source.n_documents for source in sources)
    for fraction in _FRACTIONS:
        if fraction == _FRACTIONS[0] and n_documents < _FEW_DOCUMENTS:
            continue
        if all(min(s.places) < fraction <= max(s.places) for s in sources):
            return fraction
    return None


# ── sizes ────────────────────────────────────────────────────────────────────────────────────────


def _sizes(
    found: Found, orders: dict[str, int], seconds: float, device: torch.device
) -> tuple[ImageChoice, ModelChoice | None]:
    """Choose the largest resolution at which both trainings come far enough, and the model."""
    has_text = any(source.n_characters for source in found.training)
    share = _IMAGE_TOKENIZER if has_text else 1.0
    text = _text_tokenizer(found) if has_text else None
    chosen: ImageChoice | None = None
    for resolution in _resolutions(found.median_side):
        if chosen and chosen.steps < _LEAST_IMAGE_STEPS:
            break
        images = _image_choice(found, resolution, seconds * share, device)
        if chosen and images.steps < _LEAST_IMAGE_STEPS:
            break
        if chosen and text is not None:
            rest = seconds - images.seconds
            least = _model_choice(found, orders, images, text, rest, device, _SHAPES[:1])
            if least.epochs < _LEAST_EPOCHS:
                break
        chosen = images
    assert chosen is not None  # there is at least one resolution, and the first is taken
    if text is None:
        return chosen, None
    return chosen, _model_choice(found, orders, chosen, text, seconds - chosen.seconds, device)


def _resolutions(side: int) -> Iterator[int]:
    """Yield resolutions from the least that shows such images up to their own."""
    fitting = [each for each in _RESOLUTIONS if each <= side * 1.25] or [_RESOLUTIONS[0]]
    least = min(_LEAST_RESOLUTION, fitting[-1])
    yield from (each for each in fitting if each >= least)


def _image_choice(
    found: Found, resolution: int, seconds: float, device: torch.device
) -> ImageChoice:
    is_fast = device.type == "cuda"
    n_images = found.n_different_images
    n_codes = 512 if n_images < 300 else 1024 if n_images < 5000 else 2048
    config = replace(
        IMAGE_TOKENIZERS["small" if is_fast else "tiny"](), resolution=resolution, n_codes=n_codes
    )
    batch = min(32 if resolution < 128 or is_fast else 16, 2 ** (n_images.bit_length() - 1))
    step_s = measure.image_tokenizer_step_s(config, found.images, batch, device)
    logger.info("An image tokenizer at %d pixels takes %.3f s a step.", resolution, step_s)
    most = math.ceil(_IMAGE_EPOCHS * n_images / batch)
    steps = _rounded(max(_LEAST_STEPS, min(seconds / step_s, max(most, _LEAST_IMAGE_STEPS))))
    return ImageChoice(
        resolution=resolution,
        channels=config.channels,
        n_codes=n_codes,
        codes_per_image=config.codes_per_image,
        batch_images=batch,
        steps=steps,
        step_s=step_s,
        epochs=steps * batch / n_images,
    )


def _text_tokenizer(found: Found) -> TextTokenizer:
    """Train the text tokenizer on a sample, as large as the amount of text allows."""
    wanted = found.n_characters / _CHARACTERS_PER_TOKEN
    size = max((each for each in _VOCABULARIES if each <= wanted), default=_VOCABULARIES[0])
    return train_text_tokenizer(found.text, size)


def _model_choice(
    found: Found,
    orders: dict[str, int],
    images: ImageChoice,
    text: TextTokenizer,
    seconds: float,
    device: torch.device,
    shapes: Sequence[tuple[int, int, int, int]] = _SHAPES,
) -> ModelChoice:
    """Choose the largest of some shapes that sees enough tokens in the time."""
    n_characters = sum(map(len, found.text))
    per_token = max(1.0, n_characters / max(1, sum(len(text.encode(each)) for each in found.text)))
    vocabulary = Vocabulary.build(images.n_codes, text.size)
    per_image = Grammar(vocabulary, images.codes_per_image).tokens_per_image
    lengths = {
        source.name: 1 + np.array(source.lengths) @ np.array([per_image, 1 / per_token])
        for source in found.training
    }
    every = np.concatenate([*lengths.values()])
    row_tokens = _row_tokens(every, per_image, device)
    n_tokens = int(sum(orders[name] * each.sum() for name, each in lengths.items()))
    rows = max(2, (16384 if device.type == "cuda" else 1024) // row_tokens)
    best: ModelChoice | None = None
    for width, layers, heads, inner in shapes:
        shape = ModelShape(
            d_model=width,
            n_layers=layers,
            attention=AttentionConfig(n_heads=heads),
            feed_forward=SwiGLUConfig(width=inner),
        )
        parameters = measure.n_parameters(shape, vocabulary, row_tokens)
        needed = TOKENS_PER_PARAMETER * parameters / (rows * row_tokens)
        if best and seconds / best.step_s < needed:  # no larger one is faster
            break
        step_s = measure.decoder_step_s(shape, vocabulary, row_tokens, rows, device)
        logger.info("A decoder of width %d takes %.3g s a step.", width, step_s)
        possible = seconds / step_s - _SAMPLING_STEPS
        if best and possible < needed:
            break
        most = max(_EPOCHS * n_tokens / (rows * row_tokens), _LEAST_STEPS_BY_HEART)
        steps = _rounded(max(_LEAST_STEPS, min(possible, most)))
        best = ModelChoice(
            vocab_size=text.size,
            characters_per_token=per_token,
            row_tokens=row_tokens,
            share_in_rows=float((every <= row_tokens).mean()),
            shape=shape,
            parameters=parameters,
            batch_rows=rows,
            learning_rate=float(f"{4e-3 * 128 / width:.1g}"),
            steps=steps,
            step_s=step_s,
            epochs=steps * rows * row_tokens / max(1, n_tokens),
            n_tokens=n_tokens,
            sees_enough=possible >= needed,
        )
        if possible > most and parameters > n_tokens:
            break  # a larger one would learn the same by heart
    assert best is not None
    return best


def _row_tokens(lengths: np.ndarray, per_image: int, device: torch.device) -> int:
    """Return a length that holds nine of ten documents, within what is usual on the device."""
    longest = 4096 if device.type == "cuda" else 1024
    least = max(256, per_image + 64)
    wanted = float(np.quantile(lengths, 0.9))
    return -(-int(max(least, min(wanted, max(longest, least)))) // 64) * 64


def _is_of_pairs(source: FoundSource) -> bool:
    """Whether it holds captioned images, which are learnt in both orders; pages keep theirs."""
    return source.reader != "html" and source.n_pairs > 0.8 * source.n_documents


def _weights(
    found: Found, orders: dict[str, int], images: ImageChoice, model: ModelChoice | None
) -> dict[str, float]:
    """Return shares of rows by which documents are seen equally often; none below a twentieth."""
    per_token = model.characters_per_token if model else 1.0
    tokens = {
        source.name: orders[source.name]
        * (source.n_images * (images.codes_per_image + 2) + source.n_characters / per_token)
        for source in found.training
    }
    total = sum(tokens.values())
    return {name: max(0.05, round(each / total, 2)) for name, each in tokens.items()}


def _rounded(steps: float | int) -> int:
    """Return a number of steps with two digits, rounded down."""
    digits = max(0, int(math.log10(steps)) - 1)
    return int(steps // 10**digits * 10**digits)


def _warnings(choice: Choice, load: float) -> Iterator[str]:
    minutes, images, model = choice.minutes, choice.images, choice.model
    if load >= 1:
        yield (
            f"While steps were measured, other processes used the machine ({load:.1f} for each "
            "core); write the recipe again when it is idle, for more steps in the same time."
        )
    if choice.read_s > 60 * minutes / 3:
        yield (
            f"Decoding the images takes about {choice.read_s / 60:.0f} of the {minutes:g} minutes; "
            "smaller image files would leave more for training."
        )
    steps = [images.steps] if images.epochs < _IMAGE_EPOCHS else []
    if model is not None and model.epochs < _EPOCHS:
        steps.append(model.steps)
    if steps and min(steps) < _TOO_FEW_STEPS:
        yield (
            f"{_shown_minutes(minutes)} short for these documents on this machine: a training has "
            f"only {min(steps):,} steps. Expect rough results; more time gives better ones."
        )
    if choice.seconds > 1.1 * 60 * minutes:
        yield (
            f"The run takes about {choice.seconds / 60:.1f} minutes, more than the {minutes:g} "
            f"that were given, since no training has fewer than {_LEAST_STEPS} steps."
        )


def _shown_minutes(minutes: float) -> str:
    return "1 minute is" if minutes == 1 else f"{minutes:g} minutes are"


def _load() -> float:
    """Return how many processes wait for each core, as the system counts them over a minute."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)
