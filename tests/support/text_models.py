"""Small text-only models of transformers on disk, with random weights, and their tokenizers."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CORPUS = ["An owl sat on the old oak.", "The owl, the cat and the fox.", "A fox ran. 3 < 4\n"] * 3
# Letters and an emoji that the corpus lacks, runs of spaces, a tab, special tokens' look-alikes.
# Languages, code, white space, control characters, marks that combine, added and special tokens.
LINES = [
    "",
    " ",
    "\n\n\n \t\r\n",
    "Die Eule saß auf der alten Eiche.",
    "La chouette était là, l'été dernier",
    "猫头鹰坐在橡树上。フクロウは木の上",
    "сова сидела на дубе",
    "بومة على الشجرة",
    "उल्लू पेड़ पर बैठा है",
    "👩‍👩‍👧‍👦 🦉🏳️‍🌈 e\u0301 \u00e9 \u200d\ufeff",
    "def f(x):\n    if x > 0:\n        return x ** 2  # 4\n\treturn None",
    "a\x00b\x07c\x1b[0m\x7f",
    "1234567890 3.14159 1e-9 0xFF",
    "I'm sure they'll say it's what we've",
    "                 many        spaces    ",
    "<think>\nso it is</think> <tool_call> <|im_start|>user<|im_end|>",
    "<s>[INST] </s> <unk> <0x41> <|eot_id|> <|begin_of_text|>",
    "\ud7ff\ue000\U0010ffff",
]
TEXTS = ["The owl and the fox.", "  two  spaces\tand a tab\n", "naïve 🦉 «où»", "<owl> <0x41> s>"]

# ── tokenizers ───────────────────────────────────────────────────────────────────────────────────


def trained(tokenizer: Tokenizer, n: int, **options) -> dict:
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=n, show_progress=False, **options)
    )
    return json.loads(tokenizer.to_str())["model"]


def bpe(
    named: list[str], pieces: dict, last: list[str], special: list[str], **options
) -> Tokenizer:
    """Return a BPE with added tokens before and after its own, some of them special."""
    ordered = sorted(pieces["vocab"], key=pieces["vocab"].__getitem__)
    vocab = {name: i for i, name in enumerate([*named, *ordered, *last])}
    merges = [tuple(merge) for merge in pieces["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, **options))
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    return tokenizer


def llama_2(metaspace: bool) -> Tokenizer:
    """SentencePiece's kind: unknown letters become bytes, and a text begins with a space."""
    specials = ["<unk>", "<s>", "</s>"]
    plain = Tokenizer(models.BPE())
    prepend = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    plain.normalizer = normalizers.Sequence(prepend)
    tokenizer = bpe(
        [*specials, *(f"<0x{byte:02X}>" for byte in range(256))], trained(plain, 60), [], specials,
        unk_token="<unk>", fuse_unk=True, byte_fallback=True,
    )  # fmt: skip
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = plain.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def byte_level(first: list[str], last: list[str]) -> Tokenizer:
    """Return a byte-level BPE in the manner of Llama 3, with special tokens first or last."""
    plain = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}{1,3}|\s+|[^\s\p{L}\p{N}]+"), "isolated")
    plain.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = bpe(
        first, trained(plain, 300, initial_alphabet=alphabet), last, [*first, *last],
        ignore_merges=True,
    )  # fmt: skip
    tokenizer.pre_tokenizer = plain.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


LLAMA_3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>", "<|eom_id|>", "<|eot_id|>"]
SMOL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "Llama 2": lambda: llama_2(metaspace=False),
    "Mistral": lambda: llama_2(metaspace=True),
    "Llama 3": lambda: byte_level([], LLAMA_3),
    "SmolLM2": lambda: byte_level(SMOL, []),
    "specials between": lambda: byte_level(SMOL[:1], LLAMA_3[:2]),
}


def qwen() -> Tokenizer:
    """Byte-level, in normal form C, with added tokens that are text beside the special ones."""
    tokenizer = byte_level([], QWEN)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in QWEN_TEXT])
    return tokenizer


QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_TEXT = ["<think>", "</think>", "        ", "<tool_call>"]
TOKENIZERS["Qwen"] = qwen


def ids_of(kind: str, tokenizer: Tokenizer) -> dict:
    """Return what a model with such a tokenizer has in its configs."""
    number = tokenizer.token_to_id
    if kind == "Llama 3":
        ends = [number(name) for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")]
        return {"bos_token_id": number("<|begin_of_text|>"), "eos_token_id": ends}
    if kind == "SmolLM2":
        return {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True}
    if kind == "Qwen":  # as in the generation config of its instruct models
        ends = [number(name) for name in ("<|im_end|>", "<|endoftext|>")]
        return {"bos_token_id": ends[1], "eos_token_id": ends, "pad_token_id": ends[1]}
    if kind == "specials between":
        return {"bos_token_id": number(LLAMA_3[0]), "eos_token_id": number(LLAMA_3[1])}
    return {"bos_token_id": 1, "eos_token_id": 2}


# ── models ───────────────────────────────────────────────────────────────────────────────────────

PEERS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
CASES = {
    "Llama 2": {"tokenizer": "Llama 2"},
    "Llama 2, tied, rows to spare": {
        "tokenizer": "Llama 2", "tie_word_embeddings": True, "spare": 13,
    },
    "Llama 3, bf16, shards": {
        "tokenizer": "Llama 3", "rope_theta": 5e5, "dtype": torch.bfloat16, "shards": "40KB",
    },
    "Llama 3.1": {
        "tokenizer": "Llama 3",
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
        },
    },
    "SmolLM2, bf16, tied, shards": {
        "tokenizer": "SmolLM2", "dtype": torch.bfloat16, "shards": "40KB",
    },
    "Mistral": {
        "tokenizer": "Mistral", "kind": "mistral", "num_key_value_heads": 1, "sliding_window": None,
    },
    "Mistral, a window of the context": {
        "tokenizer": "Mistral", "kind": "mistral", "sliding_window": 64, "head_dim": 24,
    },
    "Llama, biases, linear RoPE, wide heads": {
        "tokenizer": "Llama 2", "attention_bias": True, "head_dim": 32,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 2e4, "factor": 3.0},
    },
    "Qwen2": {"tokenizer": "Qwen", "kind": "qwen2", "spare": 11},
    "Qwen2, tied, bf16": {
        "tokenizer": "Qwen", "kind": "qwen2", "tie_word_embeddings": True, "dtype": torch.bfloat16,
    },
    "Qwen3, tied": {
        "tokenizer": "Qwen", "kind": "qwen3", "tie_word_embeddings": True, "head_dim": 32,
        "spare": 5,
    },
    "Qwen3, biases": {
        "tokenizer": "Llama 3", "kind": "qwen3", "attention_bias": True, "head_dim": 16,
    },
    "specials between": {"tokenizer": "specials between", "num_key_value_heads": 4},
}  # fmt: skip


def make_llama(
    folder: Path,
    *,
    tokenizer: str = "Llama 2",
    kind: str = "llama",
    rope_theta: float = 1e4,
    dtype: torch.dtype = torch.float32,
    shards: str = "1GB",
    spare: int = 0,
    **changes,
) -> None:
    """Write a folder of a text-only model with random weights, by the library's own classes."""
    text = TOKENIZERS[tokenizer]()
    values = {
        "vocab_size": text.get_vocab_size() + spare,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.05,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
        **ids_of(tokenizer, text),
        **changes,
    }
    config, network = PEERS[kind]
    model = network(config(**values))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * 0.1
            # Old rows have a mean, as trained ones do.
            parameter.copy_(drawn + (1 if "norm" in name else 0.05 if "proj" not in name else 0))
    model.to(dtype).save_pretrained(folder, max_shard_size=shards)
    PreTrainedTokenizerFast(tokenizer_object=text).save_pretrained(folder)


def peer(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    return PEERS[kind][1].from_pretrained(folder, dtype=dtype).eval()
