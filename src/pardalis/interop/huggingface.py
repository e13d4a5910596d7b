"""Reading and writing Hugging Face's Chameleon folders.

FOLDER/
├─ config.json                 shape of decoder and image tokenizer, and the vocabulary by name
├─ generation_config.json
├─ model.safetensors           or model-0000i-of-0000n.safetensors and model.safetensors.index.json
├─ tokenizer.json, tokenizer_config.json
├─ preprocessor_config.json    image preprocessing
├─ processor_config.json       number of codes per image
├─ pardalis.safetensors        tensors that this layout cannot hold, if any; other readers ignore it
└─ image_tokenizer/            an image tokenizer of which the layout cannot even hold the encoder

The layout holds the encoder and the codebook of the image tokenizer but not its decoder, so an
export puts the decoder in ``pardalis.safetensors``. Its encoder has one architecture, that of the
original VQ-GAN; a model with another one is exported with the image tokenizer beside it, and takes
images as token ids. ``pytorch_model.bin`` or its shards are read if there are
no safetensors. :mod:`.huggingface_configs` reads and writes the JSON files.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch

from pardalis.bundle import CARD, CHAT_TEMPLATE, IMAGE_TOKENIZER, LICENCES, new_folder
from pardalis.config import shown
from pardalis.errors import BundleError
from pardalis.files import is_bare_name, write_json, write_text
from pardalis.interop.huggingface_configs import (
    QK_NORM_EPS,
    chameleon_config,
    chameleon_files,
    image_tokenizer_config,
    inside,
    unheld_by_chameleon,
    unheld_decoder,
    unheld_image_tokenizer,
)
from pardalis.interop.licences import licences_of
from pardalis.interop.model import (
    ForeignModel,
    check_tensors,
    decoder_shapes,
    describing,
    image_tokenizer_shapes,
    read_json,
    read_text,
    refuse,
    reorder_ids,
    write_image_tokenizer,
)
from pardalis.interop.names import TRANSFORMERS_VQ, lines
from pardalis.interop.tensors import (
    LazyTensor,
    Tensors,
    open_tensors,
    shard_index,
    shards_of,
    write_safetensors,
    write_shards,
)
from pardalis.interop.vocabulary import (
    PLACEHOLDER,
    chameleon_tokenizer,
    check_codes,
    from_foreign,
    read_vocabulary,
    to_foreign,
    token_ids,
)
from pardalis.interop.vqgan import plain_codebook, unheld
from pardalis.model import ModelConfig, QKLayerNormConfig, QKRMSNormConfig
from pardalis.tokens import TextTokenizer
from pardalis.vq import ImageTokenizerConfig

logger = logging.getLogger(__name__)

_EXTRA = "pardalis.safetensors"
_EXTRA_VQ, _EXTRA_FOREIGN = "image_tokenizer.", "foreign."
_VQ_DECODER = "decoder."
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_CODEBOOK = "quantize.embedding.weight"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in order of preference, whole or sharded
_INDEX = ".index.json"
# Buffers that some versions of transformers saved; they follow from the config.
_BUFFERS = "rotary_emb.inv_freq"


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def read_chameleon(
    folder: Path, image_tokenizer: tuple[ImageTokenizerConfig, Tensors] | None = None
) -> ForeignModel:
    """Read a folder of Hugging Face's Chameleon; raises as :func:`.convert.import_model`.

    An ``image_tokenizer``, that of the original release, replaces the folder's own, which has no
    decoder, may have rounded weights, and has another preprocessing; the folder's own may then be
    missing.
    """
    where = folder / "config.json"
    values, images = read_json(where), _read_preprocessing(folder)
    with describing(where):
        n_ranks = max(1, int(values.get("model_parallel_size") or 1))
        named = inside(values, "vocabulary_map")
        unheld = unheld_decoder(values)
        if image_tokenizer is None:
            unheld += unheld_image_tokenizer(values, images)
    refuse(folder, "Pardalis cannot hold this model", unheld)
    config = chameleon_config(values, where)
    tensors = without_tied_head(open_folder(folder), config, folder)
    extra = open_tensors(folder / _EXTRA) if (folder / _EXTRA).is_file() else {}
    own = _starting(tensors, TRANSFORMERS_VQ)
    image_tensors: Tensors
    if image_tokenizer is None:
        decoder = _starting(extra, _EXTRA_VQ)
        vq = image_tokenizer_config(values, images, where, has_decoder=bool(decoder))
        image_tensors = own | decoder
        shapes = image_tokenizer_shapes(vq)
        held = {TRANSFORMERS_VQ + n: s for n, s in shapes.items() if not n.startswith(_VQ_DECODER)}
        check_tensors(folder, expected_decoder(config) | held, tensors)
        check_tensors(folder / _EXTRA, shapes, image_tensors)
    else:
        vq, image_tensors = image_tokenizer
        check_tensors("the `image_tokenizer`", image_tokenizer_shapes(vq), image_tensors)
        _check_replacement(folder, own, vq, image_tensors)
        others = {n: t for n, t in tensors.items() if not n.startswith(TRANSFORMERS_VQ)}
        check_tensors(folder, expected_decoder(config), others)
    config = _group_qk_norm(config, n_ranks, tensors)

    path = folder / "tokenizer.json"
    tokenizer_json = read_text(path)
    _check_vocabulary_map(named, tokenizer_json, folder)
    vocabulary = read_vocabulary(tokenizer_json, config.vocab_size, str(path))
    check_codes(vocabulary, vq.n_codes, path)
    return ForeignModel(
        config=config,
        vocabulary=vocabulary,
        text_tokenizer=TextTokenizer.load(path, vocabulary),
        image_tokenizer=vq,
        decoder=reorder_ids(decoder_from(tensors, config), to_foreign(vocabulary)),
        image_tensors=image_tensors,
        origin="transformers",
        foreign=_starting(extra, _EXTRA_FOREIGN),
        licences=licences_of(folder),
    )


def open_folder(folder: Path) -> dict[str, LazyTensor]:
    """Return all tensors of a folder, in safetensors or PyTorch files, sharded or not."""
    for name in _WEIGHTS:
        files = [folder / name]
        if (folder / (name + _INDEX)).is_file():
            files = _shards(folder / (name + _INDEX))
        if all(file.is_file() for file in files):
            every = {n: t for file in files for n, t in open_tensors(file).items()}
            return {n: t for n, t in every.items() if not n.endswith(_BUFFERS)}
    raise BundleError(
        f"{folder} has neither {' nor '.join(_WEIGHTS)}, whole or in shards with their index; copy "
        "the whole folder again."
    )


def read_chat_template(folder: Path) -> str | None:
    """Return the Jinja template of chats of a folder; None if it has none.

    It is a file of its own or, in folders of earlier versions, in ``tokenizer_config.json``: one
    template, or several by name, of which ``default`` is meant.

    Raises:
        BundleError: a file cannot be read, or the template is not text.
    """
    own, where = folder / CHAT_TEMPLATE, folder / "tokenizer_config.json"
    if own.is_file():
        return read_text(own)
    found = read_json(where).get("chat_template") if where.is_file() else None
    with describing(where):
        if isinstance(found, list):
            found = {each["name"]: each["template"] for each in found}.get("default")
        if found is not None and not isinstance(found, str):
            raise TypeError(f"chat_template is {shown(found)}, not text")
    return found


def _shards(index: Path) -> list[Path]:
    try:
        shards = sorted({str(name) for name in read_json(index)["weight_map"].values()})
        if outside := [name for name in shards if not is_bare_name(name)]:
            raise TypeError(f"it names {shown(outside[0])}, which is no file beside it")
    except (KeyError, AttributeError, TypeError) as error:
        raise BundleError(
            f"{index} is not an index of shards ({error!r}); copy it again."
        ) from error
    if missing := [name for name in shards if not (index.parent / name).is_file()]:
        raise BundleError(
            f"{index} names {len(shards)} shards, of which {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; copy the whole folder again."
        )
    return [index.parent / name for name in shards]


def without_tied_head(tensors: Tensors, config: ModelConfig, where: Path) -> dict[str, LazyTensor]:
    """Return the tensors without a copy of the embedding as head, which some files hold.

    Raises:
        BundleError: the head is tied to the embedding and has other values.
    """
    own = tensors.get(HEAD)
    if not config.tie_embeddings or own is None or EMBEDDING not in tensors:
        return dict(tensors)
    if not torch.equal(own.read(), tensors[EMBEDDING].to(own.dtype).read()):
        raise BundleError(
            f"{where} has tie_word_embeddings = true and a {HEAD} that differs from "
            f"{EMBEDDING}; set tie_word_embeddings = false to keep both."
        )
    return {name: tensor for name, tensor in tensors.items() if name != HEAD}


def decoder_from(tensors: Tensors, config: ModelConfig) -> dict[str, LazyTensor]:
    """Return the decoder's tensors under the names of Pardalis."""
    decoder = {}
    qk_norm = config.attention.qk_norm
    groups = getattr(qk_norm, "groups", None)
    for line, n in lines(config):
        tensor = tensors[line.transformers.format(n=n)]
        if line.qk_norm and isinstance(qk_norm, QKRMSNormConfig):
            tensor = tensor.map(lambda t: t[None], (1, config.d_head))
        elif line.qk_norm and groups:
            per_group = tensor.shape[0] // groups
            shape = (groups, config.d_head)
            tensor = tensor.map(lambda t, step=per_group: t[::step], shape)
        decoder[line.ours.format(n=n)] = tensor
    return decoder


def expected_decoder(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a decoder by its name in transformers."""
    ours, flat = decoder_shapes(config), isinstance(config.attention.qk_norm, QKRMSNormConfig)
    shapes = {}
    for line, n in lines(config):
        shape = ours[line.ours.format(n=n)]
        shapes[line.transformers.format(n=n)] = shape[1:] if line.qk_norm and flat else shape
    return shapes


def _read_preprocessing(folder: Path) -> dict[str, Any]:
    """Return the image preprocessing of a folder; newer folders have it in the processor's file."""
    values: dict[str, Any] = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            content = read_json(folder / name)
            with describing(folder / name):
                values |= inside(content, "image_processor") or content
    return values


def _check_replacement(
    folder: Path, own: Tensors, config: ImageTokenizerConfig, tensors: Tensors
) -> None:
    """Refuse a replacement that has no decoder or another codebook."""
    if own and not config.has_decoder:
        raise BundleError(
            "The `image_tokenizer` has no decoder either; name one that has, such as the "
            "vqgan.ckpt of the original release."
        )
    theirs, ours = own.get(_CODEBOOK), tensors[_CODEBOOK]
    if theirs is None:
        return
    if theirs.shape != ours.shape or not torch.equal(theirs.read(), ours.to(theirs.dtype).read()):
        raise BundleError(
            f"The `image_tokenizer` has another codebook than {folder}, so its decoder would "
            "produce other images; name the one of the same release."
        )


def _group_qk_norm(config: ModelConfig, n_ranks: int, tensors: Tensors) -> ModelConfig:
    """Group the scales of QK-norm by the model-parallel ranks of training, if they are still equal.

    This layout has one scale per head; further training in it may have made them differ.
    """
    if config.attention.kv_heads % n_ranks:
        return config
    for line, n in lines(config):
        if line.qk_norm:
            rows = tensors[line.transformers.format(n=n)].read()
            groups = torch.unflatten(rows, 0, (n_ranks, -1))
            if not torch.equal(groups, groups[:, :1].expand_as(groups)):
                return config
    qk_norm = QKLayerNormConfig(groups=n_ranks, eps=QK_NORM_EPS)
    attention = dataclasses.replace(config.attention, qk_norm=qk_norm)
    return dataclasses.replace(config, attention=attention)


def _check_vocabulary_map(named: dict[str, Any], tokenizer_json: str, folder: Path) -> None:
    """Refuse a tokenizer whose ids differ from the ``vocabulary_map`` of the model's config."""
    names = token_ids(tokenizer_json, str(folder / "tokenizer.json"))
    differ = [name for name, i in named.items() if names.get(name) != i]
    if differ:
        raise BundleError(
            f"{folder / 'tokenizer.json'} and vocabulary_map in config.json differ in "
            f"{len(differ)} tokens, first {shown(differ[0])}: {names.get(differ[0])} and "
            f"{shown(named[differ[0]])}. Do not mix files of different models."
        )


def _starting(tensors: Tensors, prefix: str) -> dict[str, LazyTensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def write_chameleon(model: ForeignModel, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a folder that Hugging Face's Chameleon classes load unchanged.

    Args:
        dtype: dtype of all weights that these classes load (default: as in the model).

    Raises:
        BundleError: the layout cannot hold the decoder (the message lists every option that does
            not fit), or the folder cannot be written.
    """
    refused = unheld_by_chameleon(model.config)
    refuse(folder, "Hugging Face's Chameleon cannot hold this model", refused)
    tensors = decoder_to(model)
    extra = {_EXTRA_FOREIGN + name: tensor for name, tensor in model.foreign.items()}
    is_beside = bool(because := unheld(model.image_tokenizer))
    if is_beside:
        logger.warning(
            "Hugging Face's Chameleon cannot hold the image tokenizer: %s. %s gets the decoder, "
            "which takes images as token ids, and for Pardalis the image tokenizer beside it.",
            "; ".join(because),
            folder,
        )
    held = {} if is_beside else plain_codebook(model.image_tokenizer, model.image_tensors)
    for name, tensor in held.items():
        if name.startswith(_VQ_DECODER):
            extra[_EXTRA_VQ + name] = tensor
        else:
            tensors[TRANSFORMERS_VQ + name] = tensor
    files = shards_of({name: tensor.to(dtype) for name, tensor in tensors.items()})
    tokenizer_json = chameleon_tokenizer(
        model.vocabulary, model.text_tokenizer, placeholder=PLACEHOLDER, adds_bos=True
    )
    names = token_ids(tokenizer_json, "tokenizer.json")
    stored = next(iter(files.values()))[EMBEDDING].dtype
    with new_folder(folder) as partial:
        if extra:
            write_safetensors(partial / _EXTRA, extra, "Extra tensors")
        if is_beside:
            write_image_tokenizer(model, partial / IMAGE_TOKENIZER)
        write_files(model, partial, tokenizer_json, chameleon_files(model, names, stored), files)


def write_files(
    model: ForeignModel,
    folder: Path,
    tokenizer_json: str,
    others: dict[str, dict[str, Any]],
    shards: dict[str, dict[str, LazyTensor]],
) -> None:
    """Write the files that every folder has; ``others`` are the contents of JSON files by name."""
    write_text(folder / "tokenizer.json", tokenizer_json)
    for name, content in others.items():
        write_json(folder / name, content)
    if model.licences:
        write_text(folder / LICENCES, model.licences)
    if model.card:
        write_text(folder / CARD, model.card)
    if model.chat_template is not None:
        write_text(folder / CHAT_TEMPLATE, model.chat_template)
    write_shards(folder, shards, "Model")
    if len(shards) > 1:
        write_json(folder / (_WEIGHTS[0] + _INDEX), shard_index(shards))


def decoder_to(model: ForeignModel) -> dict[str, LazyTensor]:
    """Return the decoder's tensors under Hugging Face's names and in the order of foreign ids."""
    config = model.config
    decoder = reorder_ids(model.decoder, from_foreign(model.vocabulary))
    tensors = {}
    for line, n in lines(config):
        tensor = decoder[line.ours.format(n=n)]
        if line.qk_norm and isinstance(config.attention.qk_norm, QKRMSNormConfig):
            tensor = tensor.map(lambda t: t[0], tensor.shape[1:])
        elif line.qk_norm:
            (n_groups, width), n_heads = tensor.shape, line.n_heads(config)
            repeats = n_heads // n_groups
            tensor = tensor.map(lambda t, n=repeats: t.repeat_interleave(n, 0), (n_heads, width))
        tensors[line.transformers.format(n=n)] = tensor
    return tensors
