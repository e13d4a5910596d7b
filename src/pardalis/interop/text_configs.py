"""The JSON files of Hugging Face's text-only models, and the configs of Pardalis."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

import torch

from pardalis.interop.huggingface_configs import (
    DECODER_KEYS,
    decoder_config,
    given_values,
    rope_values,
    single_ids,
    unheld_rope,
)
from pardalis.interop.model import ForeignModel, reasons, unheld_options, unlike
from pardalis.interop.vocabulary import to_foreign
from pardalis.model import ModelConfig, NoQKNormConfig, QKRMSNormConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TextArchitecture:
    """What distinguishes an architecture from Llama, whose keys and tensors it shares."""

    class_name: str  # in transformers
    # Projections of attention with a bias; None: all or none, as the key attention_bias says.
    bias: Literal["none", "qkv"] | None = None
    qk_norm: bool = False  # RMSNorm over each head of queries and keys
    # What transformers takes for a key that the file lacks.
    defaults: Mapping[str, Any] = field(default_factory=dict)


# By model_type.
TEXT_ARCHITECTURES = {
    "llama": TextArchitecture(class_name="LlamaForCausalLM"),
    "mistral": TextArchitecture(
        class_name="MistralForCausalLM",
        bias="none",
        defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    "qwen2": TextArchitecture(
        class_name="Qwen2ForCausalLM", bias="qkv", defaults={"num_key_value_heads": 32}
    ),
    "qwen3": TextArchitecture(
        class_name="Qwen3ForCausalLM",
        qk_norm=True,
        defaults={"num_key_value_heads": 32, "head_dim": 128},
    ),
}

_FIXED = {"hidden_act": "silu", "mlp_bias": False, "partial_rotary_factor": 1.0}
_FULL = "full_attention"


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def unheld_text(values: dict[str, Any]) -> list[str]:
    """Return why the decoder of Pardalis cannot hold a ``config.json``.

    Its ``model_type`` is in :data:`TEXT_ARCHITECTURES`.
    """
    values = _complete(values)
    window = _window(values)
    context = values.get("max_position_embeddings")
    return [
        *unlike(given_values(values), _FIXED),
        *unheld_rope(values),
        *reasons({
            f"sliding_window = {window} (supported: full attention; max_position_embeddings = "
            f"{window} or less is the same model for sequences of that length)":
                window and context and window < context,
            "quantization_config (supported: floating-point weights)":
                values.get("quantization_config"),
        }),
    ]  # fmt: skip


def text_config(values: dict[str, Any], where: object) -> ModelConfig:
    """Return the decoder's config for a ``config.json`` that :func:`unheld_text` does not refuse.

    Raises:
        BundleError: a value is missing or wrong; ``where`` names the file.
    """
    architecture = TEXT_ARCHITECTURES[values["model_type"]]
    given = given_values(_complete(values))
    width, n_heads, d_head = (
        given.get(name) for name in ("hidden_size", "num_attention_heads", "head_dim")
    )
    others: dict[str, Any] = {
        "attention.bias": architecture.bias or ("all" if given.get("attention_bias") else "none"),
        "attention.qk_norm.kind": "none",
    }
    if d_head is not None and (width is None or n_heads is None or d_head * n_heads != width):
        others["attention.d_head"] = d_head
    if architecture.qk_norm:
        eps = given.get("rms_norm_eps", 1e-6)
        others |= {"attention.qk_norm.kind": "rms_norm", "attention.qk_norm.eps": eps}
    return decoder_config(given, where, others)


def _complete(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with those that a missing key stands for. A null stays."""
    return {**TEXT_ARCHITECTURES[values["model_type"]].defaults, **values}


def _window(values: dict[str, Any]) -> int | None:
    """Return the positions that a layer attends to, if there is a layer without full attention."""
    window, layers = values.get("sliding_window"), values.get("layer_types")
    if not isinstance(window, int) or values.get("use_sliding_window") is False:
        return None
    if isinstance(layers, list) and all(layer == _FULL for layer in layers):
        return None
    return window


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def unheld_by_text(config: Any) -> list[str]:
    """Return why no architecture of :data:`TEXT_ARCHITECTURES` can hold a decoder."""
    held = {
        "attention.bias": ("none", "qkv", "all"),
        "attention.qk_norm.kind": ("none", "rms_norm"),
        "residual.placement": ("pre",),
    }
    if unheld := unheld_options(config, held):
        return unheld
    qk_norm, bias, eps = config.attention.qk_norm, config.attention.bias, config.norm.eps
    has_norm = isinstance(qk_norm, QKRMSNormConfig)
    return reasons({
        "model.attention.qk_norm.over is 'heads' (needed: 'head')":
            has_norm and qk_norm.over != "head",
        "model.attention.qk_norm.groups is more than 1": has_norm and qk_norm.groups > 1,
        f"model.attention.qk_norm.eps is not model.norm.eps, {eps}":
            has_norm and qk_norm.eps != eps,
        "model.attention.bias is 'qkv' (needed with attention.qk_norm: 'none' or 'all')":
            has_norm and bias == "qkv",
    })  # fmt: skip


def text_files(
    model: ForeignModel, names: Mapping[int, str], dtype: torch.dtype
) -> dict[str, dict[str, Any]]:
    """Return the content of every JSON file of a folder except ``tokenizer.json``.

    Args:
        names: the tokens of that file by their ids.
    """
    config, vocabulary = model.config, model.vocabulary
    ids = single_ids(vocabulary)
    model_type = _model_type(config)
    architecture = TEXT_ARCHITECTURES[model_type]
    return {
        "config.json": {
            "architectures": [architecture.class_name],
            "model_type": model_type,
            "dtype": str(dtype).removeprefix("torch."),
            **ids,
            **{theirs: attrgetter(ours)(config) for ours, theirs in DECODER_KEYS.items()},
            "num_key_value_heads": config.attention.kv_heads,
            "head_dim": config.d_head,
            "hidden_act": "silu",
            **({} if architecture.bias else {"attention_bias": config.attention.bias == "all"}),
            **rope_values(config),
            "tie_word_embeddings": config.tie_embeddings,
        },
        "generation_config.json": {
            **ids,
            "eos_token_id": [ids["eos_token_id"], to_foreign(vocabulary)[vocabulary.end_turn_id]],
        },
        # Without it transformers knows no token that begins or ends a text.
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{name.removesuffix("_id"): names[i] for name, i in ids.items()},
            "model_max_length": config.context,
            "clean_up_tokenization_spaces": False,
        },
    }


def _model_type(config: ModelConfig) -> str:
    if not isinstance(config.attention.qk_norm, NoQKNormConfig):
        return "qwen3"
    return "qwen2" if config.attention.bias == "qkv" else "llama"
