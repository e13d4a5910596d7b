"""The intermediate form of a conversion: a whole model with lazy tensors.

Every reader of a layout returns a :class:`ForeignModel` and every writer takes one, so each pair of
layouts converts. The decoder's tensors have the names of :mod:`pardalis.model`, its order of RoPE
dimensions within a head (:mod:`.names`) and the bundle's order of token ids (:mod:`.vocabulary`);
the image tokenizer's tensors have the names of the original VQ-GAN.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pardalis import bundle as bundles
from pardalis import files
from pardalis.config import shown
from pardalis.errors import BundleError, ConfigError, DataError
from pardalis.files import write_text
from pardalis.interop.tensors import LazyTensor, Tensors, open_tensors, write_safetensors
from pardalis.model import ModelConfig, RoPEConfig, build
from pardalis.tokens import TextTokenizer, Vocabulary, with_template_end
from pardalis.vq import ImageTokenizer, ImageTokenizerConfig
from pardalis.weights import Shapes, check_shapes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ForeignModel:
    """A model between two layouts."""

    config: ModelConfig
    vocabulary: Vocabulary
    text_tokenizer: TextTokenizer
    image_tokenizer: ImageTokenizerConfig
    decoder: Tensors
    image_tensors: Tensors
    origin: str  # layout that it was read from
    # Tensors of that layout that the bundle's decoder lacks, kept for an exact round trip.
    foreign: Tensors = field(default_factory=dict)
    licences: str = ""  # Markdown
    card: str = ""  # Markdown, only written
    chat_template: str | None = None  # Jinja source
    adds_bos: bool = True  # whether documents begin with bos


# ── bundles ──────────────────────────────────────────────────────────────────────────────────────


def read_bundle(folder: Path) -> ForeignModel:
    """Read a bundle; the folder and errors are as for :func:`pardalis.load`."""
    folder = bundles.bundle_folder(folder)
    description = bundles.describe(folder)
    codec = bundles.load_codec(folder)
    config = bundles.model_config(folder, description)
    decoder = open_tensors(folder / bundles.MODEL)
    check_tensors(folder / bundles.MODEL, decoder_shapes(config), decoder)
    foreign = folder / bundles.FOREIGN
    return ForeignModel(
        config=config,
        vocabulary=codec.vocabulary,
        text_tokenizer=codec.text_tokenizer,
        image_tokenizer=codec.image_tokenizer.config,
        decoder=decoder,
        image_tensors=open_tensors(folder / bundles.IMAGE_TOKENIZER / "model.safetensors"),
        origin="pardalis",
        foreign=open_tensors(foreign) if foreign.is_file() else {},
        licences=bundles.read_licences(folder),
        chat_template=bundles.read_chat_template(folder),
        adds_bos=codec.adds_bos,
    )


def write_bundle(model: ForeignModel, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a bundle atomically, with one tensor in memory at a time.

    Args:
        dtype: dtype of the decoder (default: as in the source).

    Raises:
        BundleError: the folder cannot be written.
    """
    with bundles.new_folder(folder) as partial:
        model.text_tokenizer.save(partial / bundles.TEXT_TOKENIZER)
        write_image_tokenizer(model, partial / bundles.IMAGE_TOKENIZER)
        decoder = {name: tensor.to(dtype) for name, tensor in model.decoder.items()}
        write_safetensors(partial / bundles.MODEL, decoder, "Decoder")
        if model.foreign:
            write_safetensors(partial / bundles.FOREIGN, model.foreign, "Foreign tensors")
        if model.licences:
            write_text(partial / bundles.LICENCES, model.licences)
        made_by = {"imported_from": model.origin}
        if model.chat_template is not None:
            write_text(partial / bundles.CHAT_TEMPLATE, model.chat_template)
        bundles.write_description(
            partial, model.config, _ending_turns(model), made_by, adds_bos=model.adds_bos
        )


def write_image_tokenizer(model: ForeignModel, folder: Path) -> None:
    """Write the image tokenizer of a model into a folder that ``ImageTokenizer.load`` reads."""
    ImageTokenizer.save_config(folder, model.image_tokenizer)
    write_safetensors(folder / "model.safetensors", model.image_tensors, "Image tokenizer")


def _ending_turns(model: ForeignModel) -> Vocabulary:
    """Return the vocabulary whose ``end_turn`` is that of the chat template, if that shows it."""
    try:
        return with_template_end(model.vocabulary, model.text_tokenizer, model.chat_template)
    except DataError as error:
        logger.warning("The end of a turn is unknown, so eos ends a completion. %s", error)
        return model.vocabulary


# ── checks ───────────────────────────────────────────────────────────────────────────────────────


def decoder_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a model by its name in :mod:`pardalis.model`."""
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in build(config).state_dict().items()}


def image_tokenizer_shapes(config: ImageTokenizerConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of an image tokenizer."""
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in ImageTokenizer(config).state_dict().items()}


def check_tensors(where: Path | str, expected: Shapes, found: Tensors) -> None:
    """Raise a BundleError that lists all tensors missing, unexpected or of another shape."""
    for name, tensor in found.items():
        if name in expected and not tensor.dtype.is_floating_point:
            raise BundleError(
                f"{name} in {where} is of type {tensor.dtype}, but weights are floating-point "
                "numbers; convert the weights first. Nothing was written."
            )
    check_shapes(
        where,
        expected,
        {name: tensor.shape for name, tensor in found.items()},
        advice="Nothing was written; copy the whole folder again, and do not mix files of "
        "different models.",
    )


def refuse(where: Path, what: str, because: Sequence[str]) -> None:
    """Raise a BundleError with all reasons why a layout cannot hold a model, if there are any."""
    if because:
        raise BundleError(f"{where}: {what}: {'; '.join(because)}. Nothing was written.")


def reasons(holds: Mapping[str, object]) -> list[str]:
    """Return the texts whose condition is true."""
    return [text for text, condition in holds.items() if condition]


def unlike(values: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return a reason for each given value that differs from ``ours``; a missing one agrees."""
    return reasons(
        {
            f"{prefix}{name} = {shown(values[name])} (supported: {needed!r})": values[name]
            != needed
            for name, needed in ours.items()
            if name in values
        }
    )


def unheld_options(config: Any, others: Mapping[str, tuple[Any, ...]] | None = None) -> list[str]:
    """Return the options of a decoder that layouts of Llama's and Chameleon's kind cannot hold.

    Args:
        others: the values that a layout holds of an option, where they differ from theirs.
    """
    found = reasons(
        {f"model.kind is {config.kind!r} (needed: 'decoder')": config.kind != "decoder"}
    )
    if found:
        return found
    for name, needed in (_ONLY | dict(others or {})).items():
        value = attrgetter(name)(config)
        if value not in needed:
            found.append(f"model.{name} is {value!r} (needed: {' or '.join(map(repr, needed))})")
    return found


# Options of a decoder that have no place in the layouts of Llama and Chameleon.
_ONLY: dict[str, tuple[Any, ...]] = {
    "attention.bias": ("none",),
    "attention.qk_norm.kind": ("none", "layer_norm"),
    "feed_forward.kind": ("swiglu",),
    "norm.kind": ("rms_norm",),
    "norm.groups": (1,),
    "position.kind": ("rope",),
    "residual.placement": ("pre", "reordered"),
    "residual.skip": (1.0,),
    "residual.branch": (1.0,),
    "embedding.scale": (1.0,),
}


def rope_of(config: ModelConfig) -> RoPEConfig:
    """Return the RoPE of a model that :func:`unheld_options` does not refuse."""
    assert isinstance(config.position, RoPEConfig)
    return config.position


@contextmanager
def describing(where: object) -> Iterator[None]:
    """Turn errors of reading a config into a BundleError that names the file ``where``."""
    try:
        yield
    except KeyError as error:
        raise BundleError(f"{where} lacks {error}; copy it again.") from error
    except (OSError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise BundleError(f"{where} is not a model's config ({error}); copy it again.") from error
    except ConfigError as error:
        raise BundleError(f"{where}: {error}") from error


def read_text(path: Path) -> str:
    """Return the content of a text file; raises BundleError if it is missing or not text."""
    if not path.is_file():
        raise BundleError(f"{path} is missing; copy the whole folder again.")
    try:
        return files.read_text(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is not a text file ({error}); copy it again.") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raises BundleError if it holds none."""
    try:
        values = files.parse_json(read_text(path))
    except ValueError as error:
        raise BundleError(f"{path} is not JSON ({error}); copy it again.") from error
    if not isinstance(values, dict):
        raise BundleError(f"{path} holds no JSON object; copy it again.")
    return values


# ── transforms ───────────────────────────────────────────────────────────────────────────────────


def halves_from_pairs(tensor: LazyTensor, n_heads: int) -> LazyTensor:
    """Reorder the output dimensions of each head from interleaved RoPE (Meta) to half-split RoPE.

    Dimension 2i of a head moves to i, 2i + 1 to i + H/2. The shape of ``tensor`` is
    (heads * H, ...), or (groups, H) for QK-norm.
    """
    return tensor.map(lambda t: _swap(t, n_heads, pairs_last=True), tensor.shape)


def pairs_from_halves(tensor: LazyTensor, n_heads: int) -> LazyTensor:
    """Undo :func:`halves_from_pairs`."""
    return tensor.map(lambda t: _swap(t, n_heads, pairs_last=False), tensor.shape)


def _swap(tensor: Tensor, n_heads: int, pairs_last: bool) -> Tensor:
    rows = tensor if tensor.shape[0] == n_heads else torch.unflatten(tensor, 0, (n_heads, -1))
    half = rows.shape[1] // 2
    pairs = torch.unflatten(rows, 1, (half, 2) if pairs_last else (2, half))
    return pairs.transpose(1, 2).reshape(tensor.shape)


def without_embedding_norm(model: ForeignModel) -> ForeignModel:
    """Fold an embedding norm into the embedding table, since other layouts have no such norm."""
    if not model.config.embedding.norm:
        return model
    model = untied(model)  # the head reads the table as it is
    config, table = model.config, model.decoder["embedding.weight"]

    def normalised(rows: Tensor) -> Tensor:
        return F.rms_norm(rows.float(), rows.shape[-1:], eps=config.norm.eps).to(rows.dtype)

    return dataclasses.replace(
        model,
        config=dataclasses.replace(
            config, embedding=dataclasses.replace(config.embedding, norm=False)
        ),
        decoder={**model.decoder, "embedding.weight": table.map(normalised, table.shape)},
    )


def untied(model: ForeignModel) -> ForeignModel:
    """Give a model whose head is tied to the embedding a head of its own, with equal values."""
    if not model.config.tie_embeddings:
        return model
    return dataclasses.replace(
        model,
        config=dataclasses.replace(model.config, tie_embeddings=False),
        decoder={**model.decoder, "head.weight": model.decoder["embedding.weight"]},
    )


def reorder_ids(tensors: Tensors, rows: Sequence[int]) -> dict[str, LazyTensor]:
    """Permute the token dimension of embedding and head: new id i gets the old row ``rows[i]``."""
    if isinstance(rows, range):  # the identity
        return dict(tensors)
    index = torch.tensor(rows)
    moved = {
        name: tensors[name].map(lambda t: t[index], tensors[name].shape)
        for name in ("embedding.weight", "head.weight")
        if name in tensors
    }
    return {**tensors, **moved}
