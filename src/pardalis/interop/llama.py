"""Import of text-only models as mixed-modal decoders that need more training, and their export.

The architectures are those of :data:`.text_configs.TEXT_ARCHITECTURES`: Llama and its relatives.

The text part of embedding and head is the model's own. The rows of new tokens (image codes, and
the special tokens that the model lacks) are initialised as :class:`NewRows` says. A document has
one token at its beginning and another at its end; a model that uses one token for both gets a new
one for the end, with the rows of the first. A model whose tokenizer names image codes, as an export
does, gets no new ones.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pardalis.bundle import new_folder
from pardalis.config import shown
from pardalis.errors import BundleError
from pardalis.files import parse_json
from pardalis.interop.huggingface import (
    EMBEDDING,
    decoder_from,
    decoder_to,
    expected_decoder,
    open_folder,
    read_chat_template,
    without_tied_head,
    write_files,
)
from pardalis.interop.licences import licences_of
from pardalis.interop.model import (
    ForeignModel,
    check_tensors,
    describing,
    image_tokenizer_shapes,
    read_json,
    read_text,
    refuse,
    reorder_ids,
)
from pardalis.interop.tensors import LazyTensor, Tensors, shards_of
from pardalis.interop.text_configs import (
    TEXT_ARCHITECTURES,
    text_config,
    text_files,
    unheld_by_text,
    unheld_text,
)
from pardalis.interop.vocabulary import (
    extend_text_vocabulary,
    named_tokenizer,
    to_foreign,
    token_ids,
)
from pardalis.model import ModelConfig
from pardalis.seeds import derive
from pardalis.tokens import TextTokenizer, Vocabulary, unmarked_turn_marks
from pardalis.vq import ImageTokenizerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class NewRows:
    """Initialisation of the rows of new tokens in embedding and head.

    ``normal``: normal with the config's ``init_std``, as in a model trained from scratch. The logit
    of a new token is then near 0, which may be far above the logits of all text tokens.
    ``mean``: the mean of the old rows plus normal noise of a hundredth of their standard deviation.
    The logit of a new token is then about the mean of the old ones, so at first no new token is
    more likely than an average old one, and text is generated as before (Hewitt 2021,
    "Initializing New Word Embeddings for Pretrained Language Models").
    """

    init: Literal["normal", "mean"] = "mean"
    seed: int = 0

    def sample(self, name: str, old: Tensor, n: int, std: float) -> Tensor:
        """Return n new rows, (n, D), for a matrix with the rows ``old``, in its dtype."""
        generator = torch.Generator().manual_seed(derive(self.seed, "new rows", name))
        noise = torch.randn(n, old.shape[1], generator=generator)
        if self.init == "normal":
            return (noise * std).to(old.dtype)
        rows = old.float()
        return (rows.mean(0) + noise * rows.std(0) / 100).to(old.dtype)


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """What the files of a text-only model hold, in the terms of a Hugging Face folder.

    A reader of another layout translates to these terms; nothing below depends on where they are
    from.
    """

    where: Path  # the folder or file, as messages name it
    config: dict[str, Any]  # config.json
    tensors: Tensors  # by the names of transformers
    tokenizer_json: str  # tokenizer.json
    generation: dict[str, Any] = field(default_factory=dict)  # generation_config.json
    chat_template: str | None = None  # Jinja
    licences: str = ""  # Markdown


def open_text_folder(folder: Path) -> TextSource:
    """Open a Hugging Face folder of a text-only model; raises BundleError if files are missing."""
    tokenizer, generation = folder / "tokenizer.json", folder / "generation_config.json"
    if not tokenizer.is_file():
        raise BundleError(
            f"{tokenizer} is missing; save the tokenizer with the tokenizers library first."
        )
    return TextSource(
        where=folder,
        config=read_json(folder / "config.json"),
        tensors=open_folder(folder),
        tokenizer_json=read_text(tokenizer),
        generation=read_json(generation) if generation.is_file() else {},
        chat_template=read_chat_template(folder),
        licences=licences_of(folder),
    )


def add_images(
    source: TextSource,
    image_tokenizer: ImageTokenizerConfig,
    image_tensors: Tensors,
    new_rows: NewRows | None = None,
) -> ForeignModel:
    """Return a text-only model with an image tokenizer and the rows of new tokens.

    Raises as :func:`.convert.import_model`.
    """
    new_rows = new_rows or NewRows()
    where, values = source.where, source.config
    if not isinstance(kind := values.get("model_type"), str) or kind not in TEXT_ARCHITECTURES:
        raise BundleError(
            f"{where} is a model of type {shown(kind)}; text-only models of the types "
            f"{', '.join(TEXT_ARCHITECTURES)} can be read."
        )
    of_config, of_tokenizer = f"The config of {where}", f"The tokenizer of {where}"
    with describing(of_config):
        unheld = unheld_text(values)
    refuse(where, "Pardalis cannot hold this model", unheld)
    config = text_config(values, of_config)
    tensors = without_tied_head(source.tensors, config, where)
    check_tensors(where, expected_decoder(config), tensors)
    shapes = image_tokenizer_shapes(image_tokenizer)
    check_tensors("the `image_tokenizer`", shapes, image_tensors)

    tokenizer_json = source.tokenizer_json
    unknown = token_ids(tokenizer_json, of_tokenizer).get(
        parse_json(tokenizer_json)["model"].get("unk_token")
    )
    singles = _single_ids(source, config.vocab_size, unknown)
    vocabulary, text_tokenizer = _tokenizer(
        source, config.vocab_size, singles, image_tokenizer.n_codes, of_tokenizer
    )
    decoder = decoder_from(tensors, config)
    extended = replace(config, vocab_size=vocabulary.size)
    for name in {"embedding.weight", "head.weight"} & decoder.keys():
        decoder[name] = _extend(decoder[name], name, extended, vocabulary, new_rows)
    return ForeignModel(
        config=extended,
        vocabulary=vocabulary,
        text_tokenizer=text_tokenizer,
        image_tokenizer=image_tokenizer,
        decoder=reorder_ids(decoder, to_foreign(vocabulary)),
        image_tensors=image_tensors,
        origin=str(values["model_type"]),
        licences=source.licences,
        chat_template=source.chat_template,
        adds_bos=text_tokenizer.begins_with(to_foreign(vocabulary)[vocabulary.bos_id]),
    )


def _tokenizer(
    source: TextSource, size: int, singles: dict[str, int], n_codes: int, where: str
) -> tuple[Vocabulary, TextTokenizer]:
    """Return the vocabulary with image tokens, and the text tokenizer."""
    content = source.tokenizer_json
    vocabulary = extend_text_vocabulary(content, size, singles, n_codes, where)
    tokenizer = TextTokenizer.from_json(content, vocabulary, where)
    if control := unmarked_turn_marks(vocabulary, tokenizer, source.chat_template):
        vocabulary = extend_text_vocabulary(content, size, singles, n_codes, where, control)
        tokenizer = TextTokenizer.from_json(content, vocabulary, where)
    return vocabulary, tokenizer


def _extend(
    tensor: LazyTensor, name: str, config: ModelConfig, vocabulary: Vocabulary, new_rows: NewRows
) -> LazyTensor:
    n_old, width = tensor.shape
    if config.vocab_size == n_old:
        return tensor
    foreign = to_foreign(vocabulary)
    bos, eos = foreign[vocabulary.bos_id], foreign[vocabulary.eos_id]

    def extended(old: Tensor) -> Tensor:
        new = new_rows.sample(name, old, config.vocab_size - n_old, config.init.std)
        if eos >= n_old:  # the model's own end token is taken as the beginning
            new[eos - n_old] = old[bos]
        return torch.cat([old, new])

    return tensor.map(extended, (config.vocab_size, width))


def _single_ids(source: TextSource, size: int, unknown: int | None) -> dict[str, int]:
    """Return the special tokens that a text-only model has, as its configs name them.

    If there are several end tokens, the first ends a document and the last one ends a turn; but if
    one of them also begins documents (Qwen), it ends them too. No id has two roles: the first role
    in the order below keeps it, and the others get new ids.
    """
    values = source.config | {n: v for n, v in source.generation.items() if v is not None}

    def named(key: str) -> list[int]:
        found = values.get(key)
        every = found if isinstance(found, list) else [found]
        return [i for i in every if isinstance(i, int) and 0 <= i < size]  # -1 often means none

    for key in ("bos_token_id", "eos_token_id"):
        if not named(key):
            raise BundleError(
                f"The config of {source.where} names no {key} below {size}, with which documents "
                f"{'begin' if key.startswith('bos') else 'end'}; add it."
            )
    bos, ends = named("bos_token_id")[0], named("eos_token_id")
    ends.sort(key=lambda i: i != bos)
    roles = {
        "bos": bos,
        "eos": ends[0],
        "end_turn": ends[-1],
        "unk": unknown,
        "pad": next(iter(named("pad_token_id")), None),
    }
    singles: dict[str, int] = {}
    for role, i in roles.items():
        if i is not None and i not in singles.values():
            singles[role] = i
    return singles


def write_text_model(model: ForeignModel, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write the decoder and its tokenizer as a folder that transformers' text models load.

    All rows of embedding and head are kept, those of image tokens too, which the tokenizer names.
    The image tokenizer is left out, since such a folder has no place for it.

    Args:
        dtype: dtype of all weights (default: as in the model).

    Raises:
        BundleError: no architecture can hold the model (the message lists every option that does
            not fit), or the folder cannot be written.
    """
    refuse(
        folder, "Hugging Face's text models cannot hold this model", unheld_by_text(model.config)
    )
    tokenizer_json = named_tokenizer(model.vocabulary, model.text_tokenizer)
    files = shards_of({name: tensor.to(dtype) for name, tensor in decoder_to(model).items()})
    stored = next(iter(files.values()))[EMBEDDING].dtype
    with new_folder(folder) as partial:
        names = {i: name for name, i in token_ids(tokenizer_json, "The text tokenizer").items()}
        write_files(model, partial, tokenizer_json, text_files(model, names, stored), files)
