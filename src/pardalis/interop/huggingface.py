"""Hugging Face's Chameleon folders, read and written.

FOLDER/
├─ config.json                 shape of decoder and image tokenizer, and the vocabulary by name
├─ generation_config.json
├─ model.safetensors           or model-0000i-of-0000n.safetensors and model.safetensors.index.json
├─ tokenizer.json, tokenizer_config.json
├─ preprocessor_config.json    how pictures become pixels
├─ processor_config.json       how many codes a picture has
└─ pardalis.safetensors        what this layout has no place for, if anything; others ignore it

The layout holds the encoder and the codebook of the image tokenizer but not its decoder, so a model
that came from elsewhere keeps the decoder in the last file.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pardalis import config as configs
from pardalis.bundle import new_folder
from pardalis.errors import BundleError, ConfigError
from pardalis.files import write_json, write_text
from pardalis.interop.licences import licences_of
from pardalis.interop.model import (
    ForeignModel,
    Shapes,
    check_tensors,
    decoder_shapes,
    image_tokenizer_shapes,
    read_json,
    read_text,
    refuse,
    reorder_ids,
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
    SINGLE_NAMES,
    chameleon_tokenizer,
    from_foreign,
    read_vocabulary,
    to_foreign,
    token_ids,
)
from pardalis.interop.vqgan import NORM_GROUPS, unheld
from pardalis.model import ModelConfig, chameleon_7b
from pardalis.tokens import TextTokenizer, Vocabulary
from pardalis.vq import ImageTokenizerConfig, chameleon
from pardalis.vq.config import Preprocessing

QK_NORM_EPS = 1e-5  # fixed in its code, whatever rms_norm_eps says

_EXTRA = "pardalis.safetensors"
_EXTRA_VQ, _EXTRA_FOREIGN = "image_tokenizer.", "foreign."
_VQ_DECODER = "decoder."
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
# Buffers that some versions of the library wrote beside the weights; they follow from the config.
_BUFFERS = "rotary_emb.inv_freq"

# Our name and theirs of every plain value, for both directions. What a folder leaves out has the
# value of the published model, as it has in that library.
_DECODER_KEYS = {
    "vocab_size": "vocab_size",
    "context": "max_position_embeddings",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "d_ff": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "init_std": "initializer_range",
}
_LLAMA_DEFAULTS = {"rms_norm_eps": 1e-6, "initializer_range": 0.02}
_VQ_KEYS = {
    "resolution": "resolution",
    "channels": "base_channels",
    "channel_multipliers": "channel_multiplier",
    "n_res_blocks": "num_res_blocks",
    "z_channels": "latent_channels",
    "code_width": "embed_dim",
    "n_codes": "num_embeddings",
    "attention_resolutions": "attn_resolutions",
}
_ENDS = ("bos", "pad", "eos")
# How one grey level counts in preprocessor_config.json, for each convention of ours.
_RESCALE: dict[Preprocessing, float] = {"chameleon": 2 / 255, "transformers": 0.0078}


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def read_chameleon(folder: Path, image_tokenizer: Tensors | None = None) -> ForeignModel:
    """Read a folder of Hugging Face's Chameleon.

    Args:
        image_tokenizer: the same image tokenizer with its decoder, which the folder itself lacks.

    Raises:
        BundleError: something is missing, does not fit, or is an option that our decoder lacks.
    """
    where = folder / "config.json"
    values, pictures = read_config(folder), _read_preprocessing(folder)
    with _describing(where):
        n_ranks = max(1, int(values.get("model_parallel_size") or 1))
        named = _object(values, "vocabulary_map")
        reasons = [
            *_unheld_decoder(values),
            *_unheld_vq(values),
            *_unheld_pictures(values, pictures),
        ]
    refuse(folder, "our model cannot hold this one", reasons)
    tensors, extra = open_folder(folder), _open_extra(folder)
    vq_decoder = _starting(extra, _EXTRA_VQ)
    if image_tokenizer is not None:
        _check_codebook(folder, tensors, image_tokenizer)
        vq_decoder = _decoder_of(image_tokenizer)
    config = chameleon_config(values, where)
    preprocessing = _convention(pictures)
    assert preprocessing is not None, "refused above"
    vq = _vq_config(values, where, preprocessing, has_decoder=bool(vq_decoder))
    check_tensors(folder, _expected(config, vq), tensors)
    config = _group_qk_norm(config, n_ranks, tensors)

    path = folder / "tokenizer.json"
    tokenizer_json = read_text(path)
    _check_vocabulary_map(named, tokenizer_json, folder)
    vocabulary = read_vocabulary(tokenizer_json, config.vocab_size, str(path))
    if vocabulary.n_codes != vq.n_codes:
        raise BundleError(
            f"{path} names {vocabulary.n_codes} image codes, but vq_config.num_embeddings in "
            f"{where} is {vq.n_codes}. Do not mix files of different models."
        )
    image_tensors = {**_starting(tensors, TRANSFORMERS_VQ), **vq_decoder}
    check_tensors(folder, image_tokenizer_shapes(vq), image_tensors)
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


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of ``config.json``."""
    return read_json(folder / "config.json")


def open_folder(folder: Path) -> dict[str, LazyTensor]:
    """Return all tensors of a folder's weights, sharded or not."""
    index = folder / _INDEX
    if not index.is_file():
        if not (folder / _SINGLE).is_file():
            raise BundleError(
                f"{folder} has neither {_SINGLE} nor {_INDEX}; weights of another format must be "
                "saved as safetensors first."
            )
        return _without_buffers(open_tensors(folder / _SINGLE))
    try:
        shards = sorted({str(name) for name in read_json(index)["weight_map"].values()})
    except (KeyError, AttributeError, TypeError) as error:
        raise BundleError(
            f"{index} is not an index of shards ({error!r}); copy it again."
        ) from error
    if missing := [name for name in shards if not (folder / name).is_file()]:
        raise BundleError(
            f"{index} names {len(shards)} shards, of which {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; copy the whole folder again."
        )
    tensors = {}
    for name in shards:
        tensors.update(open_tensors(folder / name))
    return _without_buffers(tensors)


def chameleon_config(values: dict[str, Any], where: Path) -> ModelConfig:
    """Return our decoder's config for a Chameleon's."""
    published = chameleon_7b()
    defaults = {theirs: getattr(published, ours) for ours, theirs in _DECODER_KEYS.items()}
    given = {name: value for name, value in values.items() if value is not None}
    return decoder_config(
        defaults | given,
        where,
        qk_norm="layer_norm",
        qk_norm_eps=QK_NORM_EPS,
        norm_placement="reordered" if values.get("swin_norm") else "pre",
    )


def decoder_config(values: dict[str, Any], where: Path, **ours: Any) -> ModelConfig:
    """Return our decoder's config for one with the keys of Llama's.

    Raises:
        BundleError: with every option that our decoder does not have.
    """
    with _describing(where):
        refuse(where, "our decoder cannot hold this one", _unheld_decoder(values))
        given = {name: value for name, value in values.items() if value is not None}
        given = {"num_key_value_heads": given["num_attention_heads"], **_LLAMA_DEFAULTS, **given}
        theta = _rope(given).get("rope_theta", given.get("rope_theta", 10_000.0))
        found = {ours: given[theirs] for ours, theirs in _DECODER_KEYS.items()}
        return configs.from_dict(ModelConfig, {**found, "rope_theta": float(theta), **ours})


def _named(values: dict[str, Any], keys: dict[str, str]) -> dict[str, Any]:
    """Return what a folder says, under our names; a null there is as good as nothing."""
    return {ours: values[theirs] for ours, theirs in keys.items() if values.get(theirs) is not None}


@contextmanager
def _describing(where: object) -> Iterator[None]:
    """Say of what goes wrong with values that ``where`` they stand there is no model's config."""
    try:
        yield
    except KeyError as error:
        raise BundleError(f"{where} lacks {error}; copy it again.") from error
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise BundleError(f"{where} is not a model's config ({error}); copy it again.") from error
    except ConfigError as error:
        raise BundleError(f"{where}: {error}") from error


def _rope(values: dict[str, Any]) -> dict[str, Any]:
    return _object(values, "rope_parameters") or _object(values, "rope_scaling")


def _unheld_decoder(values: dict[str, Any]) -> Iterable[str]:
    rope_type = _rope(values).get("rope_type", _rope(values).get("type", "default"))
    width: Any = values.get("hidden_size")
    n_heads, d_head = values.get("num_attention_heads"), values.get("head_dim")
    return _unheld(
        (f"hidden_act = {values.get('hidden_act')!r} (ours: 'silu')",
         values.get("hidden_act", "silu") != "silu"),
        ("attention_bias = true (ours: none)", values.get("attention_bias")),
        ("mlp_bias = true (ours: none)", values.get("mlp_bias")),
        (f"RoPE of type {rope_type!r} (ours: 'default')", rope_type != "default"),
        (f"head_dim = {d_head} (ours: hidden_size / num_attention_heads)",
         None not in (width, n_heads, d_head) and width / n_heads != d_head),
        ("sliding_window (ours: the whole context)", values.get("sliding_window")),
    )  # fmt: skip


def decoder_from(tensors: Tensors, config: ModelConfig) -> dict[str, LazyTensor]:
    """Return the decoder's tensors under our names."""
    decoder = {}
    for line, n in lines(config.n_layers, config.qk_norm != "none"):
        tensor = tensors[line.transformers.format(n=n)]
        if line.qk_norm and config.qk_norm_groups:
            per_group = tensor.shape[0] // config.qk_norm_groups
            shape = (config.qk_norm_groups, config.d_head)
            tensor = tensor.map(lambda t, step=per_group: t[::step], shape)
        decoder[line.ours.format(n=n)] = tensor
    return decoder


def _expected(config: ModelConfig, image_tokenizer: ImageTokenizerConfig) -> Shapes:
    """Return the shape of every tensor of a folder, by the name it has there."""
    ours = decoder_shapes(config)
    expected = {}
    for line, n in lines(config.n_layers):
        expected[line.transformers.format(n=n)] = ours[line.ours.format(n=n)]
    for name, shape in image_tokenizer_shapes(image_tokenizer).items():
        if not name.startswith(_VQ_DECODER):
            expected[TRANSFORMERS_VQ + name] = shape
    return expected


def _group_qk_norm(config: ModelConfig, n_ranks: int, tensors: Tensors) -> ModelConfig:
    """Let heads share a scale as the ranks that they were trained on did, where they still do.

    Here every head has its own row, which after training in this layout may really differ.
    """
    if config.n_kv_heads % n_ranks:
        return config
    for line, n in lines(config.n_layers):
        if line.qk_norm:
            rows = tensors[line.transformers.format(n=n)].read()
            groups = torch.unflatten(rows, 0, (n_ranks, -1))
            if not torch.equal(groups, groups[:, :1].expand_as(groups)):
                return config
    return dataclasses.replace(config, qk_norm_groups=n_ranks)


def _vq_config(
    values: dict[str, Any], where: Path, preprocessing: Preprocessing, has_decoder: bool
) -> ImageTokenizerConfig:
    ours = {
        "norm_groups": NORM_GROUPS, "has_decoder": has_decoder, "preprocessing": preprocessing
    }  # fmt: skip
    with _describing(f"vq_config in {where}"):
        return configs.from_dict(
            ImageTokenizerConfig,
            {**configs.to_dict(chameleon()), **_named(_vq(values), _VQ_KEYS), **ours},
        )


def _vq(values: dict[str, Any]) -> dict[str, Any]:
    return _object(values, "vq_config")


def _object(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Return values within values; none when the name is missing or null."""
    value = values.get(name) or {}
    if not isinstance(value, dict):
        raise TypeError(f"{name} is {value!r}, not values by name")
    return value


def _unheld_vq(values: dict[str, Any]) -> Iterable[str]:
    vq = _vq(values)
    return _unheld(
        ("vq_config.double_latent = true (ours: false)", vq.get("double_latent")),
        (f"vq_config.in_channels = {vq.get('in_channels')} (ours: 3)",
         vq.get("in_channels", 3) != 3),
        (f"vq_config.attn_type = {vq.get('attn_type')!r} (ours: 'vanilla')",
         vq.get("attn_type", "vanilla") != "vanilla"),
    )  # fmt: skip


def _read_preprocessing(folder: Path) -> dict[str, Any]:
    """Return how a folder prepares pictures; newer ones say it in the processor's file."""
    values: dict[str, Any] = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            content = read_json(folder / name)
            with _describing(folder / name):
                values |= _object(content, "image_processor") or content
    return values


def _unheld_pictures(values: dict[str, Any], found: dict[str, Any]) -> Iterable[str]:
    side = _vq(values).get("resolution") or chameleon().resolution
    ours = {
        "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0], "resample": 1,
        "size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side},
        "do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True,
    }  # fmt: skip
    return _unheld(
        *(
            (f"{name} of pictures = {found.get(name)} (ours: {value})",
             found.get(name, value) != value)
            for name, value in ours.items()
        ),
        (f"rescale_factor of pictures = {found.get('rescale_factor')} (ours: 0.0078 or 2/255)",
         _convention(found) is None),
    )  # fmt: skip


def _convention(pictures: dict[str, Any]) -> Preprocessing | None:
    """Return which of our conventions a folder's picture preprocessing is, None if neither.

    The release converted to this layout has 0.0078 for a grey level instead of 2/255. A folder with
    2/255 was made by :func:`write_chameleon`, or by someone who cares.
    """
    factor = pictures.get("rescale_factor", _RESCALE["transformers"])
    if not isinstance(factor, float):
        return None
    return next((name for name, ours in _RESCALE.items() if abs(factor - ours) < 1e-7), None)


def _decoder_of(image_tokenizer: Tensors) -> dict[str, LazyTensor]:
    """Return what completes a folder; raises BundleError if it is not there either."""
    decoder = {n: t for n, t in image_tokenizer.items() if n.startswith(_VQ_DECODER)}
    if not decoder:
        raise BundleError(
            "The image tokenizer that was named has no decoder either; name one that can draw, "
            "such as the vqgan.ckpt of the original release."
        )
    return decoder


def _check_codebook(folder: Path, tensors: Tensors, image_tokenizer: Tensors) -> None:
    """Refuse an image tokenizer of other codes, whose decoder would draw something else."""
    name = "quantize.embedding.weight"
    theirs, ours = tensors.get(TRANSFORMERS_VQ + name), image_tokenizer.get(name)
    if theirs is None or ours is None:
        return  # reported with all that is missing
    if theirs.shape != ours.shape or not torch.equal(theirs.read(), ours.read().to(theirs.dtype)):
        raise BundleError(
            f"The image tokenizer that was named has another codebook than {folder}, so its "
            "decoder would draw other pictures; name the one of the same release."
        )


def _check_vocabulary_map(named: dict[str, Any], tokenizer_json: str, folder: Path) -> None:
    """Refuse a tokenizer that names ids otherwise than the model's own config."""
    names = token_ids(tokenizer_json, str(folder / "tokenizer.json"))
    differ = [name for name, i in named.items() if names.get(name) != i]
    if differ:
        raise BundleError(
            f"{folder / 'tokenizer.json'} and vocabulary_map in config.json differ in "
            f"{len(differ)} tokens, first {differ[0]!r}: {names.get(differ[0])} and "
            f"{named[differ[0]]}. Do not mix files of different models."
        )


def _open_extra(folder: Path) -> dict[str, LazyTensor]:
    path = folder / _EXTRA
    return open_tensors(path) if path.is_file() else {}


def _starting(tensors: Tensors, prefix: str) -> dict[str, LazyTensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _without_buffers(tensors: Tensors) -> dict[str, LazyTensor]:
    return {name: t for name, t in tensors.items() if not name.endswith(_BUFFERS)}


def _unheld(*reasons: tuple[str, Any]) -> Iterable[str]:
    return [reason for reason, holds in reasons if holds]


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def write_chameleon(model: ForeignModel, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a folder that Hugging Face's Chameleon classes load as it is.

    Args:
        dtype: of all weights; as they are when left out.

    Raises:
        BundleError: the layout cannot hold the model (the message names every option why), or the
            folder cannot be written.
    """
    config, vq = model.config, model.image_tokenizer
    refuse(folder, "Hugging Face's Chameleon cannot hold this model", _unheld_by_chameleon(model))
    tensors = decoder_to(model, config)
    tensors |= {
        TRANSFORMERS_VQ + name: tensor
        for name, tensor in model.image_tensors.items()
        if not name.startswith(_VQ_DECODER)
    }
    files = shards_of({name: tensor.to(dtype) for name, tensor in tensors.items()})
    extra = {_EXTRA_FOREIGN + name: tensor for name, tensor in model.foreign.items()}
    extra |= {
        _EXTRA_VQ + name: tensor
        for name, tensor in model.image_tensors.items()
        if name.startswith(_VQ_DECODER)
    }
    tokenizer_json = chameleon_tokenizer(
        model.vocabulary, model.text_tokenizer, placeholder=PLACEHOLDER, adds_bos=True
    )
    with new_folder(folder) as partial:
        write_text(partial / "tokenizer.json", tokenizer_json)
        write_json(partial / "tokenizer_config.json", _tokenizer_config(config))
        names = token_ids(tokenizer_json, "tokenizer.json")
        stored = next(iter(files.values()))["model.embed_tokens.weight"].dtype
        write_json(partial / "config.json", _config(model, names, stored))
        write_json(partial / "generation_config.json", _generation_config(model))
        write_json(partial / "preprocessor_config.json", _preprocessor_config(vq))
        write_json(partial / "processor_config.json", _processor_config(vq))
        if model.licences:
            write_text(partial / "LICENCES.md", model.licences)
        if extra:
            write_safetensors(partial / _EXTRA, extra, "What only we have")
        write_shards(partial, files, "Model")
        if len(files) > 1:
            write_json(partial / _INDEX, shard_index(files))


def decoder_to(model: ForeignModel, config: ModelConfig) -> dict[str, LazyTensor]:
    """Return the decoder's tensors under Hugging Face's names, ids as they were there."""
    decoder = reorder_ids(model.decoder, from_foreign(model.vocabulary))
    tensors = {}
    for line, n in lines(config.n_layers):
        tensor = decoder[line.ours.format(n=n)]
        if line.qk_norm:
            heads = config.n_heads if ".q_norm." in line.ours else config.n_kv_heads
            tensor = _for_each_head(tensor, heads)
        tensors[line.transformers.format(n=n)] = tensor
    return tensors


def _for_each_head(tensor: LazyTensor, n_heads: int) -> LazyTensor:
    n_groups, width = tensor.shape

    def spread(rows: Tensor) -> Tensor:
        return rows.repeat_interleave(n_heads // n_groups, 0)

    return tensor.map(spread, (n_heads, width))


def _unheld_by_chameleon(model: ForeignModel) -> Iterable[str]:
    config = model.config
    return [
        *_unheld(
            ("model.qk_norm is 'none' (needed: 'layer_norm')", config.qk_norm == "none"),
            (f"model.qk_norm_eps is {config.qk_norm_eps} (needed: {QK_NORM_EPS})",
             config.qk_norm_eps != QK_NORM_EPS),
        ),
        *unheld(model.image_tokenizer),
    ]  # fmt: skip


def _config(model: ForeignModel, names: dict[str, int], dtype: torch.dtype) -> dict[str, Any]:
    config, vq = model.config, model.image_tokenizer
    return {
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        "dtype": str(dtype).removeprefix("torch."),
        **_special_ids(model.vocabulary),
        **{theirs: getattr(config, ours) for ours, theirs in _DECODER_KEYS.items()},
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "swin_norm": config.norm_placement == "reordered",
        "model_parallel_size": config.qk_norm_groups or 1,
        "vq_config": {
            "model_type": "chameleon_vqgan",
            **{theirs: getattr(vq, ours) for ours, theirs in _VQ_KEYS.items()},
            "double_latent": False,
            "in_channels": 3,
            "attn_type": "vanilla",
        },
        "vocabulary_map": names,
    }


def _special_ids(vocabulary: Vocabulary) -> dict[str, int]:
    """Return the ids that both configs name; the class's own default takes <pad> for <bos>."""
    ids = to_foreign(vocabulary)
    return {f"{name}_token_id": ids[getattr(vocabulary, f"{name}_id")] for name in _ENDS}


def _generation_config(model: ForeignModel) -> dict[str, Any]:
    ids = _special_ids(model.vocabulary)
    end_turn = to_foreign(model.vocabulary)[model.vocabulary.end_turn_id]
    return {**ids, "eos_token_id": [ids["eos_token_id"], end_turn]}


def _tokenizer_config(config: ModelConfig) -> dict[str, Any]:
    extra = {
        "image_token": PLACEHOLDER,
        "boi_token": SINGLE_NAMES["begin_image_id"],
        "eoi_token": SINGLE_NAMES["end_image_id"],
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "ChameleonProcessor",
        "bos_token": SINGLE_NAMES["bos_id"],
        "eos_token": SINGLE_NAMES["eos_id"],
        "pad_token": SINGLE_NAMES["pad_id"],
        "unk_token": SINGLE_NAMES["unk_id"],
        "sep_token": SINGLE_NAMES["end_turn_id"],
        "extra_special_tokens": extra,
        "padding_side": "left",
        "model_max_length": config.context,
        "clean_up_tokenization_spaces": False,
    }


def _preprocessor_config(vq: ImageTokenizerConfig) -> dict[str, Any]:
    return {
        "image_processor_type": "ChameleonImageProcessor",
        "processor_class": "ChameleonProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": vq.resolution},
        "resample": 1,  # Lanczos
        "do_center_crop": True,
        "crop_size": {"height": vq.resolution, "width": vq.resolution},
        "do_rescale": True,
        "rescale_factor": _RESCALE[vq.preprocessing],
        "do_normalize": True,
        "image_mean": [1.0, 1.0, 1.0],
        "image_std": [1.0, 1.0, 1.0],
    }


def _processor_config(vq: ImageTokenizerConfig) -> dict[str, Any]:
    return {
        "processor_class": "ChameleonProcessor",
        "image_seq_length": vq.codes_per_picture,
        "image_token": PLACEHOLDER,
    }
