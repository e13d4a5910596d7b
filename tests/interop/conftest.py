"""Small Chameleons of other libraries, on disk, with random weights and Chameleon's vocabulary."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.chameleon.image_processing_pil_chameleon import (
    ChameleonImageProcessorPil,
)

from pardalis.tokens import train_text_tokenizer

N_CODES = 8192
N_NAMED = 8806  # ids before text: specials, image codes, reserved ones
TEXTS = [
    "Describe the picture: an owl on an old oak, </b> and 3 < 4.",
    "The fox and the owl. <p>Is it a fox?</p>\n\tnaïve 🦉",
]


def image_token(code: int) -> str:
    """Chameleon's name of an image code: digits as letters between IMGIMG and Z."""
    return "IMGIMG" + str(code).translate(str.maketrans("0123456789", "ABCDEFGHIJ")) + "Z"


def special_names() -> dict[str, int]:
    """All names of Chameleon's vocabulary that are not text, in its own places."""
    names = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    names |= {image_token(code): code + 4 for code in range(N_CODES)}
    names |= {"<eoss>": 8196, "<racm3:break>": 8197}
    return names | {f"<reserved{n:05}>": n + 4 for n in range(8194, N_NAMED - 4)}


def text_model(kind: str) -> Tokenizer:
    """A tokenizer of text alone, its pieces numbered from 0, with how it cuts text and joins it.

    ``bytes`` knows every byte. ``sentencepiece`` marks spaces with U+2581, one more before every
    text, and falls back to pieces for single bytes. ``letters`` knows the letters of its training
    text and calls every other ``<unk>``.
    """
    if kind == "bytes":
        return Tokenizer.from_str(train_text_tokenizer(TEXTS * 3, 330).to_json())
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    trainer = trainers.BpeTrainer(vocab_size=90, show_progress=False)
    if kind == "letters":
        tokenizer.decoder = decoders.Fuse()
        tokenizer.train_from_iterator(TEXTS * 3, trainer)
        return tokenizer
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    content = json.loads(tokenizer.to_str())
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), *content["model"]["vocab"]]
    content["model"]["vocab"] = {piece: p for p, piece in enumerate(pieces)}
    content["model"] |= {"byte_fallback": True, "fuse_unk": True}
    return Tokenizer.from_str(json.dumps(content))


def tokenizer_json(scattered: bool = False, text: str = "bytes") -> str:
    """A ``tokenizer.json`` with Chameleon's names; scattered, all ids but the first 4 are shuffled.

    ``text`` is a kind of :func:`text_model`.
    """
    names = special_names()
    names["<image>"] = names.pop("<reserved08707>")
    content = json.loads(text_model(text).to_str())
    pieces = {piece: N_NAMED + p for piece, p in content["model"]["vocab"].items()}
    ids = list(range(4, N_NAMED + len(pieces)))
    if scattered:
        random.Random(0).shuffle(ids)
    place = dict(zip(range(4, N_NAMED + len(pieces)), ids, strict=True))
    place |= {i: i for i in range(4)}
    content["model"]["vocab"] = {name: place[i] for name, i in (names | pieces).items()}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    return tokenizer.to_str()


def make_chameleon(
    folder: Path,
    *,
    scattered: bool = False,
    text: str = "bytes",
    ranks: int = 1,
    dtype: torch.dtype = torch.float32,
    shard: str = "5GB",
    **changes,
) -> None:
    """Write a folder of Hugging Face's Chameleon with random weights, by its own classes."""
    text = tokenizer_json(scattered, text)
    names = dict(json.loads(text)["model"]["vocab"])
    config = ChameleonConfig(
        **{
            "vocab_size": len(names) + 6,  # some ids without a name
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128,
            "model_parallel_size": ranks,
            "vocabulary_map": names,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "vq_config": {
                "base_channels": 32,
                "channel_multiplier": [1, 2],
                "num_res_blocks": 1,
                "embed_dim": 8,
                "latent_channels": 8,
                "num_embeddings": N_CODES,
                "resolution": 8,
            },
        }
        | changes
    )
    model = ChameleonForConditionalGeneration(config)
    randomise(model, ranks)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        sep_token="<reserved08706>",
        padding_side="left",
    ).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    pictures = ChameleonImageProcessorPil(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}
    )
    ChameleonProcessor(pictures, tokenizer, image_seq_length=16).save_pretrained(folder)


@torch.no_grad()
def randomise(model: torch.nn.Module, ranks: int) -> None:
    """Fill every parameter; QK-norm equal in the heads of a rank, unless ranks is 0."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator) * 0.15
        if "norm" in name and name.endswith("weight"):
            drawn += 1
        if ("q_norm" in name or "k_norm" in name) and ranks:
            heads = parameter.shape[0]
            drawn = drawn[:: heads // ranks].repeat_interleave(heads // ranks, 0)
        parameter.copy_(drawn)


@pytest.fixture(scope="session")
def chameleon_folder(tmp_path_factory) -> Callable[..., Path]:
    """Return a function that makes a Hugging Face folder of a Chameleon, each kind once."""
    made: dict[str, Path] = {}

    def folder(**options) -> Path:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("chameleon") / "hf"
            make_chameleon(made[key], **options)
        return made[key]

    return folder
