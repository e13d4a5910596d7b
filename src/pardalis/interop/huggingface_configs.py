"""The JSON files of Hugging Face's Chameleon, and the configs of Pardalis.

Each table serves both directions. It maps a field to the key of the file, or lists the keys whose
value must be the given one.
"""

from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from pardalis import config as configs
from pardalis.interop.model import (
    ForeignModel,
    describing,
    reasons,
    rope_of,
    unheld_options,
    unlike,
)
from pardalis.interop.vocabulary import PLACEHOLDER, SINGLE_NAMES, to_foreign
from pardalis.interop.vqgan import NORM_GROUPS, unheld
from pardalis.model import ModelConfig, chameleon_7b, config_of
from pardalis.tokens import Vocabulary
from pardalis.vq import ImageTokenizerConfig, chameleon
from pardalis.vq.config import Preprocessing

QK_NORM_EPS = 1e-5  # a constant in its code, independent of rms_norm_eps

# Of Chameleon, and of the text-only models in :mod:`.text_configs`.
DECODER_KEYS = {
    "vocab_size": "vocab_size",
    "context": "max_position_embeddings",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "attention.n_heads": "num_attention_heads",
    "attention.n_kv_heads": "num_key_value_heads",
    "feed_forward.width": "intermediate_size",
    "norm.eps": "rms_norm_eps",
    "init.std": "initializer_range",
}
_DECODER_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
_LLAMA_DEFAULTS = {"rms_norm_eps": 1e-6, "initializer_range": 0.02}

_ROPE_KEYS = {  # of each kind of scaling
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_context": "original_max_position_embeddings",
    },
    "linear": {"factor": "factor"},
}
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
# In place of an image tokenizer that the layout cannot hold; its classes need one.
_VQ_SMALLEST = {
    "base_channels": NORM_GROUPS,
    "channel_multiplier": [1],
    "num_res_blocks": 1,
    "latent_channels": NORM_GROUPS,
    "attn_resolutions": [],
}
_VQ_FIXED = {"double_latent": False, "in_channels": 3, "attn_type": "vanilla"}

# rescale_factor in preprocessor_config.json for each preprocessing.
_RESCALE: dict[Preprocessing, float] = {"chameleon": 2 / 255, "transformers": 0.0078}

_SINGLE_IDS = {"bos_token_id": "bos", "pad_token_id": "pad", "eos_token_id": "eos"}
_SINGLE_TOKENS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "pad_token": "pad",
    "unk_token": "unk",
    "sep_token": "end_turn",
}


def _images_fixed(side: int) -> dict[str, Any]:
    return {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 1,  # Lanczos
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [1.0, 1.0, 1.0],
        "image_std": [1.0, 1.0, 1.0],
    }


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def inside(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a nested object; an empty one if the name is missing or null."""
    value = values.get(name) or {}
    if not isinstance(value, dict):
        raise TypeError(f"{name} is {configs.shown(value)}, not an object")
    return value


def unheld_decoder(values: dict[str, Any]) -> list[str]:
    """Return why the decoder of Pardalis cannot hold a Chameleon's config."""
    given = given_values(values)
    width: Any = values.get("hidden_size")
    n_heads, d_head = values.get("num_attention_heads"), values.get("head_dim")
    return unlike(given, _DECODER_FIXED) + unheld_rope(values) + reasons({
        f"head_dim = {d_head} (supported: hidden_size / num_attention_heads)":
            None not in (width, n_heads, d_head) and width / n_heads != d_head,
        "sliding_window (supported: full attention)": values.get("sliding_window"),
    })  # fmt: skip


def unheld_image_tokenizer(values: dict[str, Any], images: dict[str, Any]) -> list[str]:
    """Return why the image tokenizer of Pardalis cannot hold a Chameleon's.

    ``images`` is the image preprocessing in ``preprocessor_config.json``.
    """
    vq = inside(values, "vq_config")
    side = vq.get("resolution") or chameleon().resolution
    found = configs.shown(images.get("rescale_factor"))
    factor = f"rescale_factor = {found} (supported: 0.0078 or 2/255)"
    return [
        *unlike(vq, _VQ_FIXED, "vq_config."),
        *unlike(images, _images_fixed(side), "image_processor."),
        *reasons({f"image_processor.{factor}": _convention(images) is None}),
    ]


def chameleon_config(values: dict[str, Any], where: Path) -> ModelConfig:
    """Return the decoder's config for a Chameleon's ``config.json``.

    Missing values default to those of the published model, as in transformers.
    """
    published = chameleon_7b().sized(vocab_size=65_536, context=4096)
    defaults = {theirs: attrgetter(ours)(published) for ours, theirs in DECODER_KEYS.items()}
    return decoder_config(
        defaults | given_values(values),
        where,
        {
            "attention.qk_norm.eps": QK_NORM_EPS,
            "residual.placement": "reordered" if values.get("swin_norm") else "pre",
        },
    )


def decoder_config(values: dict[str, Any], where: object, others: dict[str, Any]) -> ModelConfig:
    """Return the decoder's config for a ``config.json`` with Llama's keys.

    Args:
        others: options without a key in the file, by their dotted names.
    """
    with describing(where):
        given = given_values(values)
        given = {"num_key_value_heads": given["num_attention_heads"], **_LLAMA_DEFAULTS, **given}
        found = {ours: given[theirs] for ours, theirs in DECODER_KEYS.items()}
        rope = _rope(given)
        found["position.theta"] = float(rope.get("rope_theta", given.get("rope_theta", 10_000.0)))
        if (kind := _rope_type(rope)) in _ROPE_KEYS:
            scaling = {ours: rope[theirs] for ours, theirs in _ROPE_KEYS[kind].items()}
            found["position.scaling"] = {"kind": kind, **scaling}
        found["tie_embeddings"] = bool(given.get("tie_word_embeddings", False))
        config: ModelConfig = config_of(configs.from_dotted({**found, **others}))
        return config


def image_tokenizer_config(
    values: dict[str, Any], images: dict[str, Any], where: Path, has_decoder: bool
) -> ImageTokenizerConfig:
    """Return the image tokenizer's config; arguments as in :func:`unheld_image_tokenizer`."""
    with describing(f"vq_config in {where}"):
        vq = given_values(inside(values, "vq_config"))
        found = {ours: vq[theirs] for ours, theirs in _VQ_KEYS.items() if theirs in vq}
        fixed = {
            "norm_groups": NORM_GROUPS,
            "has_decoder": has_decoder,
            "preprocessing": _convention(images),
        }
        return configs.from_dict(
            ImageTokenizerConfig, {**configs.to_dict(chameleon()), **found, **fixed}
        )


def unheld_rope(values: dict[str, Any]) -> list[str]:
    """Return why the decoder of Pardalis cannot hold the RoPE of a config."""
    rope = _rope(values)
    kind, share = _rope_type(rope), rope.get("partial_rotary_factor", 1.0)
    return reasons({
        f"RoPE of type {configs.shown(kind)} (supported: 'default', 'linear' and 'llama3')":
            kind not in ("default", *_ROPE_KEYS),
        f"RoPE of a part of a head, {share} (supported: 1.0)": share != 1,
        "RoPE of each kind of layer (supported: one)":
            any(isinstance(value, dict) for value in rope.values()),
    })  # fmt: skip


def given_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that are not null; a null means a missing key."""
    return {name: value for name, value in values.items() if value is not None}


def _rope(values: dict[str, Any]) -> dict[str, Any]:
    return inside(values, "rope_parameters") or inside(values, "rope_scaling")


def _rope_type(rope: dict[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type", "default"))


def _convention(images: dict[str, Any]) -> Preprocessing | None:
    """Return the preprocessing of a folder by its rescale_factor; None if it is neither.

    The release as converted to this layout has 0.0078 instead of 2/255. A folder with 2/255 was
    exported by Pardalis, or corrected by hand.
    """
    factor = images.get("rescale_factor", _RESCALE["transformers"])
    if not isinstance(factor, float):
        return None
    return next((name for name, ours in _RESCALE.items() if abs(factor - ours) < 1e-7), None)


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def unheld_by_chameleon(config: ModelConfig) -> list[str]:
    """Return why Hugging Face's Chameleon cannot hold a decoder."""
    if unheld_by_both := unheld_options(config):
        return unheld_by_both
    qk_norm = config.attention.qk_norm
    eps = getattr(qk_norm, "eps", QK_NORM_EPS)
    return reasons({
        "model.attention.qk_norm.kind is 'none' (needed: 'layer_norm')": qk_norm.kind == "none",
        f"model.attention.qk_norm.eps is {eps} (needed: {QK_NORM_EPS})": eps != QK_NORM_EPS,
        "model.attention.d_head is not d_model / n_heads":
            config.d_head * config.attention.n_heads != config.d_model,
    })  # fmt: skip


def chameleon_files(
    model: ForeignModel, names: dict[str, int], dtype: torch.dtype
) -> dict[str, dict[str, Any]]:
    """Return the content of every JSON file of a folder except ``tokenizer.json``.

    ``names`` are the token ids of that tokenizer by name. Without an image tokenizer that the
    layout can hold there are no files of the processor: it would encode images wrongly.
    """
    vocabulary, vq = model.vocabulary, model.image_tokenizer
    ids = single_ids(vocabulary)
    files = {
        "config.json": _config(model, names, dtype),
        "generation_config.json": {
            **ids,
            "eos_token_id": [ids["eos_token_id"], to_foreign(vocabulary)[vocabulary.end_turn_id]],
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "ChameleonProcessor",
            **{theirs: SINGLE_NAMES[ours] for theirs, ours in _SINGLE_TOKENS.items()},
            "extra_special_tokens": {
                "image_token": PLACEHOLDER,
                "boi_token": SINGLE_NAMES["begin_image"],
                "eoi_token": SINGLE_NAMES["end_image"],
            },
            "padding_side": "left",
            "model_max_length": model.config.context,
            "clean_up_tokenization_spaces": False,
        },
    }
    if unheld(vq):
        return files
    return {
        **files,
        "preprocessor_config.json": {
            "image_processor_type": "ChameleonImageProcessor",
            "processor_class": "ChameleonProcessor",
            **_images_fixed(vq.resolution),
            "rescale_factor": _RESCALE[vq.preprocessing],
        },
        "processor_config.json": {
            "processor_class": "ChameleonProcessor",
            "image_seq_length": vq.codes_per_image,
            "image_token": PLACEHOLDER,
        },
    }


def _config(model: ForeignModel, names: dict[str, int], dtype: torch.dtype) -> dict[str, Any]:
    config, vq = model.config, model.image_tokenizer
    return {
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        "dtype": str(dtype).removeprefix("torch."),
        **single_ids(model.vocabulary),
        **{theirs: attrgetter(ours)(config) for ours, theirs in DECODER_KEYS.items()},
        "num_key_value_heads": config.attention.kv_heads,  # which ours may leave open
        **_DECODER_FIXED,
        **rope_values(config),
        "tie_word_embeddings": config.tie_embeddings,
        "swin_norm": config.residual.placement == "reordered",
        "model_parallel_size": getattr(config.attention.qk_norm, "groups", None) or 1,
        "vq_config": {
            "model_type": "chameleon_vqgan",
            **{theirs: getattr(vq, ours) for ours, theirs in _VQ_KEYS.items()},
            **(_VQ_SMALLEST if unheld(vq) else {}),
            **_VQ_FIXED,
        },
        "vocabulary_map": names,
    }


def rope_values(config: ModelConfig) -> dict[str, Any]:
    """Return RoPE's keys of a ``config.json``."""
    theta, scaling = rope_of(config).theta, rope_of(config).scaling
    kind = "default" if scaling is None else scaling.kind
    scaled = {t: getattr(scaling, ours) for ours, t in _ROPE_KEYS.get(kind, {}).items()}
    parameters = {"rope_type": kind, "rope_theta": theta, **scaled}
    return {"rope_theta": theta, "rope_parameters": parameters}


def single_ids(vocabulary: Vocabulary) -> dict[str, int]:
    """Return the ids that both configs name; the default of transformers takes <pad> for <bos>."""
    ids = to_foreign(vocabulary)
    return {theirs: ids[vocabulary.special[ours]] for theirs, ours in _SINGLE_IDS.items()}
