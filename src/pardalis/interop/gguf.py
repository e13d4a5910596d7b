"""GGUF files: reading those of Llama's family as text-only models, and writing decoders.

A file is translated to the terms of a Hugging Face folder, which :mod:`.llama` reads. What differs
is below: the names of tensors and values, the rows of queries and keys, and RoPE's scaling.
llama.cpp rotates neighbouring pairs of a head in its architecture ``llama``, so files of it have
the rows of queries and keys in that order; Qwen's have those of Hugging Face.
:mod:`.gguf_file` reads the container, and :mod:`.gguf_tokenizer` the vocabulary.
"""

import math
import re
from pathlib import Path
from typing import Any

import torch

from pardalis.config import shown
from pardalis.errors import BundleError
from pardalis.interop.gguf_file import GGUFFile, read_gguf
from pardalis.interop.gguf_tokenizer import read_tokenizer
from pardalis.interop.llama import TextSource
from pardalis.interop.model import describing, halves_from_pairs
from pardalis.interop.tensors import LazyTensor
from pardalis.model.positions import RoPEScaling

ARCHITECTURES = ("llama", "qwen2", "qwen3")

# Values of {architecture}.* and keys of config.json.
_WHOLE = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
# Other values that are understood; any further one would change the numbers.
_KNOWN = {
    *_WHOLE, "attention.layer_norm_rms_epsilon", "attention.key_length", "attention.value_length",
    "rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.original_context_length", "rope.scaling.finetuned", "rope.scale_linear",
    "rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
    "vocab_size", "tensor_data_layout",
}  # fmt: skip
_LAYOUT = "Meta AI original pth"  # the only one that llama.cpp ever wrote

# Tensors, without ``.weight`` or ``.bias``.
_OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER = re.compile(r"blk\.(\d{1,6})\.(\w+)\.(weight|bias)")
_SCALINGS = ("none", "linear", "yarn", "longrope")
FREQUENCIES = "rope_freqs.weight"
# Values that only Pardalis writes and reads.
OWN_ROPE, OWN_LICENCES = "pardalis.rope.", "pardalis.licences"


def open_gguf(path: Path) -> TextSource:
    """Open a GGUF file of a text-only model; its tensors are read and dequantised on demand.

    Raises:
        BundleError: the file cannot be read, its model is of another architecture, or it has an
            option that Pardalis does not know.
        ConfigError: the package gguf is not installed.
    """
    file = read_gguf(path)
    architecture = file.text("general.architecture")
    if architecture not in ARCHITECTURES:
        raise BundleError(
            f"{path} holds a model of the architecture {shown(architecture)}; "
            f"{', '.join(ARCHITECTURES)} can be imported."
        )
    values = _config(file, architecture)
    tokenizer = read_tokenizer(file, values["vocab_size"])
    template = "tokenizer.chat_template"
    return TextSource(
        where=path,
        config=values | tokenizer.ids,
        tensors=_tensors(file, architecture, values),
        tokenizer_json=tokenizer.json,
        chat_template=file.text(template) if template in file.values else None,
        licences=_licences(file),
    )


def _config(file: GGUFFile, architecture: str) -> dict[str, Any]:
    """Return the content of ``config.json``."""
    prefix = architecture + "."
    own = {k.removeprefix(prefix): v for k, v in file.values.items() if k.startswith(prefix)}
    for name, value in own.items():
        if name not in _KNOWN and value not in (0, False, ""):
            raise BundleError(
                f"{file.path} has {prefix}{name} = {shown(value)}, an option of the model that "
                "Pardalis does not know."
            )
    if own.get("tensor_data_layout", _LAYOUT) != _LAYOUT:
        raise BundleError(
            f"{file.path} has the tensor layout {shown(own['tensor_data_layout'])}; {_LAYOUT!r} is "
            "supported."
        )
    if "token_embd.weight" not in file.tensors:
        raise BundleError(f"{file.path} has no tensor token_embd.weight; convert the model again.")
    one = _one_for_all_layers(file, prefix)
    n_heads = "attention.head_count"
    values = {
        theirs: one.integer(prefix + ours, one.integer(prefix + n_heads) if "kv" in ours else None)
        for ours, theirs in _WHOLE.items()
    }
    for name in ("hidden_size", "num_attention_heads", "num_hidden_layers"):
        if not values[name]:
            raise BundleError(f"{file.path} has a {name} of 0; convert the model again.")
    width, heads = values["hidden_size"], values["num_attention_heads"]
    head = file.integer(prefix + "attention.key_length", width // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if (found := file.integer(prefix + name, head)) != head:
            raise BundleError(
                f"{file.path} has {prefix}{name} = {found}, but heads of width {head}; they must "
                "be equal."
            )
    bias = {"attention_bias": "blk.0.attn_q.bias" in file.tensors}
    return {
        "model_type": architecture,
        **values,
        **({} if architecture == "qwen2" else bias),  # whose queries, keys and values always have
        "head_dim": head,
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "rms_norm_eps": file.number(prefix + "attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_theta": file.number(prefix + "rope.freq_base", 10_000.0),
        "rope_scaling": _scaling(file, prefix, head, values["max_position_embeddings"]),
    }


def _one_for_all_layers(file: GGUFFile, prefix: str) -> GGUFFile:
    """Return the file with one value in place of a value for each layer, where all are equal."""
    values = dict(file.values)
    for name in _WHOLE:
        each = values.get(prefix + name)
        if isinstance(each, list) and each and all(value == each[0] for value in each):
            values[prefix + name] = each[0]
    return GGUFFile(path=file.path, values=values, tensors=file.tensors)


def _scaling(file: GGUFFile, prefix: str, head: int, context: int) -> dict[str, Any] | None:
    """Return the scaling of RoPE as in ``config.json``."""
    kind = file.text(prefix + "rope.scaling.type", "none")
    linear = file.number(prefix + "rope.scale_linear", 1.0)  # of early files
    if kind not in _SCALINGS:
        raise BundleError(
            f"{file.path} scales RoPE by {shown(kind)}; {', '.join(_SCALINGS)} are known."
        )
    if FREQUENCIES in file.tensors:
        if kind != "none":
            raise BundleError(
                f"{file.path} scales RoPE by {kind!r} and by {FREQUENCIES}; one of them is "
                "supported."
            )
        return _llama3(file, prefix, head)
    if kind == "none" and linear == 1.0:
        return None
    factor = file.number(prefix + "rope.scaling.factor", linear)
    values: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "none":
        values["rope_type"] = "linear"
    elif kind != "linear":
        values["original_max_position_embeddings"] = file.integer(
            prefix + "rope.scaling.original_context_length", context
        )
        for name in ("attn_factor", "yarn_beta_fast", "yarn_beta_slow"):
            if prefix + f"rope.scaling.{name}" in file.values:
                theirs = {"attn_factor": "attention_factor"}.get(name, name.removeprefix("yarn_"))
                values[theirs] = file.number(prefix + f"rope.scaling.{name}")
    return values


def _llama3(file: GGUFFile, prefix: str, head: int) -> dict[str, Any]:
    """Return the scaling of Llama 3.1 whose divisors of the frequencies a tensor lists.

    The tensor alone is what llama.cpp reads. Its settings are those that an export by Pardalis
    notes, or else those of the published models, and must give the tensor's values.
    """
    divisors = file.tensors[FREQUENCIES]
    if divisors.shape != (head // 2,):
        raise BundleError(
            f"{file.path} has {FREQUENCIES} of the shape {divisors.shape}; needed is "
            f"({head // 2},)."
        )
    found = divisors.read().double()
    with describing(file.path):
        scaling = RoPEScaling(
            factor=file.number(OWN_ROPE + "factor", found.max().item()),
            low_freq_factor=file.number(OWN_ROPE + "low_freq_factor", 1.0),
            high_freq_factor=file.number(OWN_ROPE + "high_freq_factor", 4.0),
            original_context=file.integer(OWN_ROPE + "original_context", 8192),
        )
    expected = rope_divisors(head, file.number(prefix + "rope.freq_base", 10_000.0), scaling)
    if not torch.allclose(expected, found, rtol=1e-4, atol=0):
        raise BundleError(
            f"{file.path} has RoPE frequencies ({FREQUENCIES}) that are not those of Llama 3.1's "
            "scaling; others are not supported."
        )
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_context,
    }


def rope_divisors(head: int, theta: float, scaling: RoPEScaling) -> torch.Tensor:
    """Return what the scaling divides each frequency by, in 64 bits, (H / 2,).

    The formula is that of :func:`pardalis.model.positions.rope_frequencies`.
    """
    frequencies = 1 / theta ** (torch.arange(0, head, 2, dtype=torch.float64) / head)
    turns = scaling.original_context * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - kept) / scaling.factor + kept)


def _tensors(file: GGUFFile, architecture: str, values: dict[str, Any]) -> dict[str, LazyTensor]:
    """Return the tensors by the names of transformers, with rows in its order."""
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in file.tensors.items():
        if name == FREQUENCIES:
            continue
        theirs = _name(name)
        if theirs is None:
            raise BundleError(
                f"{file.path} has a tensor {shown(name)}, which Pardalis does not know."
            )
        tensors[theirs] = _halves(tensor, name, values) if architecture == "llama" else tensor
    return tensors


def _halves(tensor: LazyTensor, name: str, values: dict[str, Any]) -> LazyTensor:
    """Return queries or keys with the rows of each head in Hugging Face's order."""
    for part, heads in ((".attn_q.", "num_attention_heads"), (".attn_k.", "num_key_value_heads")):
        # Another shape is refused later.
        if part in name and values[heads] and tensor.shape[0] == values[heads] * values["head_dim"]:
            return halves_from_pairs(tensor, values[heads])
    return tensor


def _name(name: str) -> str | None:
    """Return the name of a tensor in transformers; None for an unknown one."""
    if found := _LAYER.fullmatch(name):
        number, part, kind = found.groups()
        return f"model.layers.{int(number)}.{_INNER[part]}.{kind}" if part in _INNER else None
    part, _, kind = name.rpartition(".")
    return f"{_OUTER[part]}.{kind}" if part in _OUTER and kind == "weight" else None


def gguf_name(theirs: str) -> str:
    """Return the name in GGUF files of a tensor of transformers; the inverse of :func:`_name`."""
    part, _, kind = theirs.rpartition(".")
    if not part.startswith("model.layers."):
        return f"{_THEIRS[part]}.{kind}"
    number, _, part = part.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{_THEIRS[part]}.{kind}"


_THEIRS = {theirs: ours for ours, theirs in (_OUTER | _INNER).items()}


# What a file says about its origin, in the order of the text.
_ORIGIN = {
    "general.name": "name",
    "general.organization": "organization",
    "general.author": "author",
    "general.license": "license",
    "general.license.name": "name of the license",
    "general.license.link": "link to the license",
    "general.source.url": "source",
    "general.source.repo_url": "repository of the source",
    "general.base_model.0.name": "base model",
    "general.base_model.0.repo_url": "repository of the base model",
}


def _licences(file: GGUFFile) -> str:
    """Return what the file says about its terms, in Markdown."""
    carried = file.values.get(OWN_LICENCES)
    if isinstance(carried, str):
        return carried
    lines = [
        f"    {what}: {' '.join(text.split())[:500]}"
        for key, what in _ORIGIN.items()
        if isinstance(text := file.values.get(key), str)
    ]
    says = ["It says:", *lines] if lines else ["It says nothing of its terms."]
    heading = f"# Weights imported from {file.path.name}"
    return "\n\n".join([heading, says[0], "\n".join(says[1:])]).strip() + "\n"
