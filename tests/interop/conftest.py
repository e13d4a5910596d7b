"""Small Chameleons of other libraries, on disk, with random weights and Chameleon's vocabulary."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from shapes import decoder_config
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
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

from pardalis.bundle import Bundle
from pardalis.codec import Codec
from pardalis.interop import import_model
from pardalis.model import Decoder
from pardalis.tokens import train_text_tokenizer
from pardalis.vq import ImageTokenizer, ImageTokenizerConfig

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
    """A text-only tokenizer with token ids from 0, its pre-tokenizer and decoder.

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


@pytest.fixture(scope="session")
def chameleon_file() -> Callable[[bool, str], str]:
    """The content of Chameleon's ``tokenizer.json``; see :func:`tokenizer_json`."""
    return tokenizer_json


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
    images = ChameleonImageProcessorPil(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}
    )
    ChameleonProcessor(images, tokenizer, image_seq_length=16).save_pretrained(folder)


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


@pytest.fixture(scope="session")
def imported_bundle(chameleon_folder, tmp_path_factory) -> Callable[..., Path]:
    """Return a function that imports what ``chameleon_folder`` makes, each kind once."""
    made: dict[str, Path] = {}

    def bundle(**options) -> Path:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("imported") / "bundle"
            import_model(chameleon_folder(**options), made[key])
        return made[key]

    return bundle


@pytest.fixture(scope="session")
def own_bundle(tmp_path_factory) -> Path:
    """A bundle as this library makes them, random, of a shape that the foreign layouts can hold."""
    text_tokenizer = train_text_tokenizer(TEXTS * 3, 330)
    images = ImageTokenizerConfig(
        resolution=8,
        channels=32,
        channel_multipliers=(1, 2),
        n_res_blocks=1,
        z_channels=8,
        code_width=8,
        n_codes=64,
    )
    codec = Codec.of(text_tokenizer, ImageTokenizer(images).eval())
    config = decoder_config(
        vocab_size=codec.vocabulary.size,
        context=96,
        d_model=48,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        d_ff=80,
        rope_theta=5000.0,
        qk_norm_groups=2,
        norm_placement="reordered",
        norm_eps=1e-6,
    )
    model = Decoder(config).eval()
    randomise(model, ranks=0)
    randomise(codec.image_tokenizer, ranks=0)
    folder = tmp_path_factory.mktemp("own") / "bundle"
    Bundle(model, codec, {"recipe": "own"}, "# Licences\n").save(folder)
    return folder


# ── Chameleon's original release ─────────────────────────────────────────────────────────────────

RELEASE_CODES = 64


def release_tokenizer(scattered: bool = False) -> str:
    """A ``text_tokenizer.json`` with Chameleon's names; of the reserved ones only two.

    Scattered, image codes still have ids in their order, which the release's code relies on.
    """
    names = ["<s>", "<pad>", "</s>", "<unk>", *map(image_token, range(RELEASE_CODES))]
    names += ["<eoss>", "<racm3:break>", "<reserved08706>", "<reserved08707>"]
    content = json.loads(text_model("bytes").to_str())
    pieces = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    ids = list(range(len(names) + len(pieces)))
    if scattered:
        random.Random(1).shuffle(ids)
        codes = slice(4, 4 + RELEASE_CODES)
        ids[codes] = sorted(ids[codes])
    content["model"]["vocab"] = dict(zip(names + pieces, ids, strict=True))
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    return tokenizer.to_str()


def make_release(
    folder: Path,
    *,
    ranks: int = 1,
    scattered: bool = False,
    copies_differ: bool = False,
    dtype: torch.dtype = torch.float32,
    **params,
) -> None:
    """Write a small release with random weights; ``params`` are those of its ``params.json``.

    Every rank has its own copy of a norm's scale, which are equal unless ``copies_differ``.
    """
    home, tokenizer = folder / "models" / "7b", folder / "tokenizer"
    home.mkdir(parents=True)
    tokenizer.mkdir()
    text = release_tokenizer(scattered)
    (tokenizer / "text_tokenizer.json").write_text(text)
    vocab_size = -(-len(json.loads(text)["model"]["vocab"]) // 8) * 8
    model = {
        "dim": 64, "n_layers": 2, "n_heads": 8, "multiple_of": 32, "norm_eps": 1e-5,
        "rope_theta": 10000.0, "qk_normalization": True, "swin_norm": False,
    } | params  # fmt: skip
    (home / "params.json").write_text(json.dumps({"model_parallel_size": ranks, "model": model}))
    more = {"model_parallel_size": ranks, "vocab_size": vocab_size}
    (home / "consolidate_params.json").write_text(json.dumps(more))
    generator = torch.Generator().manual_seed(0)
    shapes = release_shapes(model, vocab_size, ranks)
    equal = {name: _drawn(name, shapes[name], generator) for name in shapes}
    for rank in range(ranks):
        tensors = {"rope.freqs": 10000.0 ** -(torch.arange(0, 8, 2) / 8)}
        for name, shape in shapes.items():
            own = _drawn(name, shape, generator)
            is_copy = name.endswith("norm.weight")
            tensors[name] = (equal[name] if is_copy and not copies_differ else own).to(dtype)
        name = "consolidated.pth" if ranks == 1 else f"consolidated.{rank:02}.pth"
        torch.save(tensors, home / name)
    _make_vqgan(tokenizer)


def release_shapes(model: dict, vocab_size: int, ranks: int) -> dict[str, tuple[int, ...]]:
    """The tensors of one rank's file."""
    dim, heads = model["dim"], model["n_heads"]
    kv_width = dim // heads * (model.get("n_kv_heads") or heads)
    hidden = int((model.get("ffn_dim_multiplier") or 1) * int(8 * dim / 3))
    hidden = -(-hidden // model["multiple_of"]) * model["multiple_of"]
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (vocab_size, dim // ranks),
        "norm.weight": (dim,),
        "output.weight": (vocab_size // ranks, dim),
    }
    for n in range(model["n_layers"]):
        layer = {
            "attention.wq.weight": (dim // ranks, dim),
            "attention.wk.weight": (kv_width // ranks, dim),
            "attention.wv.weight": (kv_width // ranks, dim),
            "attention.wo.weight": (dim, dim // ranks),
            "feed_forward.w1.weight": (hidden // ranks, dim),
            "feed_forward.w2.weight": (dim, hidden // ranks),
            "feed_forward.w3.weight": (hidden // ranks, dim),
            "attention_norm.weight": (dim,),
            "ffn_norm.weight": (dim,),
        }
        if model["qk_normalization"]:
            for which in ("q", "k"):
                layer[f"attention.{which}_normalization.weight"] = (dim // heads,)
                layer[f"attention.{which}_normalization.bias"] = (dim // heads,)
        shapes |= {f"layers.{n}.{name}": shape for name, shape in layer.items()}
    return shapes


def _drawn(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    one = 1.0 if "norm" in name and name.endswith("weight") else 0.0
    return torch.randn(shape, generator=generator) * 0.15 + one


def _make_vqgan(folder: Path) -> None:
    """An image tokenizer of 8-pixel images, with the extra tensors of its training checkpoint."""
    ddconfig = {
        "double_z": False, "z_channels": 8, "resolution": 8, "in_channels": 3, "out_ch": 3,
        "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    described = {
        "model": {
            "base_learning_rate": 4.5e-06,
            "target": "taming.models.vqgan.VQModel",
            "params": {
                "embed_dim": 8,
                "n_embed": RELEASE_CODES,
                "ddconfig": ddconfig,
                "lossconfig": {"target": "taming.modules.losses.vqperceptual.DummyLoss"},
            },
        }
    }
    (folder / "vqgan.yaml").write_text(yaml.safe_dump(described))
    config = ImageTokenizerConfig(
        resolution=8, channels=32, channel_multipliers=(1, 2), n_res_blocks=1, z_channels=8,
        code_width=8, n_codes=RELEASE_CODES,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: _drawn(name, tuple(tensor.shape), generator)
        for name, tensor in ImageTokenizer(config).state_dict().items()
    }
    training = {
        "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4),
        "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1, 4, 1, 1),
    }
    checkpoint = {"epoch": 3, "state_dict": tensors | training, "optimizer_states": [{"lr": 1e-4}]}
    torch.save(checkpoint, folder / "vqgan.ckpt")


@pytest.fixture(scope="session")
def release_folder(tmp_path_factory) -> Callable[..., Path]:
    """Return a function that makes a release with :func:`make_release`, each kind once."""
    made: dict[str, Path] = {}

    def folder(**options) -> Path:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("release") / "chameleon"
            make_release(made[key], **options)
        return made[key]

    return folder
