"""Writing the decoder of a bundle as a GGUF file, which llama.cpp and what builds on it read.

The file holds all rows of the vocabulary, so every text token keeps its id. llama.cpp knows no
images: their ids are unused tokens there, by whose names an import finds them again. Other readers
ignore the values ``pardalis.*``.
"""

import os
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pardalis.errors import BundleError, ConfigError
from pardalis.files import remove, why_unwritten, working_name
from pardalis.interop.gguf import FREQUENCIES, OWN_LICENCES, OWN_ROPE, gguf_name, rope_divisors
from pardalis.interop.gguf_file import library
from pardalis.interop.gguf_tokenizer import vocabulary_values
from pardalis.interop.huggingface import decoder_to
from pardalis.interop.model import ForeignModel, pairs_from_halves, reasons, refuse, rope_of
from pardalis.interop.tensors import LazyTensor, lazy
from pardalis.interop.text_configs import unheld_by_text
from pardalis.model import ModelConfig
from pardalis.model.positions import LinearRoPEScaling, RoPEScaling
from pardalis.progress import bar
from pardalis.weights import check_finite

Quantization = Literal["f16", "q8_0"]

_LARGEST_F16 = 65504.0
# The type of most tensors, as general.file_type has it.
_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7}
_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def write_gguf(
    model: ForeignModel,
    path: Path,
    dtype: torch.dtype | None = None,
    quantization: Quantization | None = None,
) -> None:
    """Write the decoder, the vocabulary and the chat template of a model as one file, atomically.

    Norms and biases are stored in 32 bits, as llama.cpp needs them.

    Args:
        dtype: dtype of the matrices (default: as in the model).
        quantization: how the matrices are rounded: to 16 bits, or to 8 bits with a scale for each
            32 (Q8_0) where a row is a multiple of 32.

    Raises:
        BundleError: a GGUF file cannot hold the model (the message lists every option that does not
            fit), or the file cannot be written.
        ConfigError: the package gguf is not installed, or the file exists.
    """
    gguf = library("A GGUF file")
    if path.exists():
        raise ConfigError(f"{path} exists; choose another name, or remove it first.")
    refuse(path, "GGUF cannot hold this model", unheld_by_gguf(model.config))
    architecture = _architecture(model.config)
    values = _values(model, path, architecture)
    tensors = _tensors(model, architecture)
    types = {name: _type(tensor.to(dtype), quantization) for name, tensor in tensors.items()}
    matrices = [types[name] for name, tensor in tensors.items() if len(tensor.shape) == 2]
    values["general.file_type"] = _FILE_TYPES[max(matrices, key=matrices.count)]
    if "Q8_0" in matrices:
        values["general.quantization_version"] = gguf.GGML_QUANT_VERSION
    partial = working_name(path, "partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(partial)
        try:
            _write(partial, architecture, values, tensors, types, gguf)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise BundleError(
            f"{path} could not be written: "
            f"{why_unwritten(error) or f'{error.strerror or error}; correct that'}, or choose "
            "another place."
        ) from error


def unheld_by_gguf(config: Any) -> list[str]:
    """Return why no architecture of :data:`.gguf.ARCHITECTURES` can hold a decoder."""
    if unheld := unheld_by_text(config):
        return unheld
    qk_norm, bias = config.attention.qk_norm.kind, config.attention.bias
    return reasons({
        f"model.attention.bias is {bias!r} (needed with attention.qk_norm: 'none')":
            qk_norm != "none" and bias != "none",
    })  # fmt: skip


def _architecture(config: ModelConfig) -> str:
    if config.attention.qk_norm.kind == "rms_norm":
        return "qwen3"
    return "qwen2" if config.attention.bias == "qkv" else "llama"


def _values(model: ForeignModel, path: Path, architecture: str) -> dict[str, Any]:
    """Return the values of the file by their names."""
    config = model.config
    own = {
        "block_count": config.n_layers,
        "context_length": config.context,
        "embedding_length": config.d_model,
        "feed_forward_length": config.feed_forward.width,
        "attention.head_count": config.attention.n_heads,
        "attention.head_count_kv": config.attention.kv_heads,
        "attention.key_length": config.d_head,
        "attention.value_length": config.d_head,
        "attention.layer_norm_rms_epsilon": float(config.norm.eps),
        "rope.dimension_count": config.d_head,
        "rope.freq_base": float(rope_of(config).theta),
        "vocab_size": config.vocab_size,
    }
    values = {
        "general.type": "model",
        "general.name": path.stem,
        **{f"{architecture}.{name}": value for name, value in own.items()},
        **vocabulary_values(model.vocabulary, model.text_tokenizer),
    }
    if model.chat_template:
        values["tokenizer.chat_template"] = model.chat_template
    if model.licences:
        values[OWN_LICENCES] = model.licences
    match rope_of(config).scaling:
        case LinearRoPEScaling(factor=factor):
            prefix = f"{architecture}.rope.scaling."
            values |= {prefix + "type": "linear", prefix + "factor": float(factor)}
        case RoPEScaling() as scaling:  # a tensor says the rest to other readers
            values |= {
                OWN_ROPE + "factor": float(scaling.factor),
                OWN_ROPE + "low_freq_factor": float(scaling.low_freq_factor),
                OWN_ROPE + "high_freq_factor": float(scaling.high_freq_factor),
                OWN_ROPE + "original_context": scaling.original_context,
            }
    return values


def _tensors(model: ForeignModel, architecture: str) -> dict[str, LazyTensor]:
    """Return the tensors by their names in the file, with rows in its order."""
    config = model.config
    n_heads = {"attn_q": config.attention.n_heads, "attn_k": config.attention.kv_heads}
    tensors = {}
    for theirs, tensor in decoder_to(model).items():
        name = gguf_name(theirs)
        heads = n_heads.get(name.split(".")[-2])
        if architecture == "llama" and heads is not None:
            tensor = pairs_from_halves(tensor, heads)
        tensors[name] = tensor
    scaling = rope_of(config).scaling
    if isinstance(scaling, RoPEScaling):
        divisors = rope_divisors(config.d_head, rope_of(config).theta, scaling).float()
        tensors[FREQUENCIES] = lazy(divisors)
    return tensors


def _type(tensor: LazyTensor, quantization: Quantization | None) -> str:
    """Return the type that a tensor is stored in."""
    if len(tensor.shape) == 1:
        return "F32"
    if quantization == "q8_0" and tensor.shape[-1] % 32 == 0:
        return "Q8_0"
    return "F16" if quantization else _TYPES.get(tensor.dtype, "F32")


def _write(
    path: Path,
    architecture: str,
    values: dict[str, Any],
    tensors: dict[str, LazyTensor],
    types: dict[str, str],
    gguf: ModuleType,
) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    try:
        for key, value in values.items():
            _add_value(writer, key, value)
        for name, tensor in tensors.items():
            kind = gguf.GGMLQuantizationType[types[name]]
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            n_bytes = tensor.n_elements // block * block_bytes
            writer.add_tensor_info(name, tensor.shape, np.dtype("f4"), n_bytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with bar("Decoder", len(tensors), "tensors") as advance:
            for name, tensor in tensors.items():
                writer.write_tensor_data(_stored(name, tensor.read(), types[name], gguf))
                advance()
        for file in writer.fout:
            file.flush()
            os.fsync(file.fileno())
    finally:
        writer.close()


def _add_value(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _stored(name: str, values: Tensor, kind: str, gguf: ModuleType) -> npt.NDArray[Any]:
    """Return the bytes of a tensor as it is stored, (rows, bytes), or its values."""
    check_finite("The source", [(name, values)])
    if kind == "BF16":
        return values.to(torch.bfloat16).contiguous().view(torch.int16).numpy()
    values = values.float().contiguous()
    limit = {"F16": _LARGEST_F16, "Q8_0": 127 * _LARGEST_F16}.get(kind)
    if limit is not None and values.abs().max() > limit:
        raise BundleError(
            f"{name} has values above {limit:.0f}, which {kind} cannot hold; export it without "
            "`quantization`."
        )
    stored: npt.NDArray[Any] = gguf.quantize(values.numpy(), gguf.GGMLQuantizationType[kind])
    return stored
