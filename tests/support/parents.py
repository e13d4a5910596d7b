"""Models to merge: decoders of many architectures with random values in every parameter."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pardalis import config as configs
from pardalis.bundle import Bundle
from pardalis.codec import Codec
from pardalis.fusion import Merged, Parent
from pardalis.interop import ForeignModel
from pardalis.interop.tensors import lazy
from pardalis.model import LanguageModel, build, config_of, initialise

CONTEXT = 40
_SHAPE = {
    "d_model": 16,
    "n_layers": 2,
    "attention": {"n_heads": 4, "n_kv_heads": 2},
    "feed_forward": {"width": 24},
    "init": {"std": 0.2},
}

# What differs from Llama's decoder with a LayerNorm of queries and keys.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "chameleon": {"attention": {"qk_norm": {"groups": 2}}, "residual": {"placement": "reordered"}},
    "gpt2": {
        "attention": {"bias": "all", "qk_norm": {"kind": "none"}},
        "feed_forward": {"kind": "mlp", "width": 24},
        "norm": {"kind": "layer_norm"},
        "position": {"kind": "learned"},
    },
    "cm3leon": {
        "attention": {"n_kv_heads": 4, "qk_norm": {"kind": "none"}},
        "feed_forward": {"kind": "mlp", "width": 24, "bias": False},
        "norm": {"kind": "layer_norm", "parameters": "none"},
        "position": {"kind": "learned"},
    },
    "qwen3": {
        "attention": {"qk_norm": {"kind": "rms_norm"}, "d_head": 6},
        "tie_embeddings": True,
    },
    "olmo2": {
        "attention": {"qk_norm": {"kind": "rms_norm", "over": "heads"}},
        "residual": {"placement": "reordered"},
        "embedding": {"norm": True, "scale": 2.0},
    },
    "post": {"residual": {"placement": "post", "skip": 0.8, "branch": 0.6}},
}


def parent_config(codec: Codec, architecture: str = "llama", **changes: Any) -> Any:
    """Return the config of a small decoder."""
    values = configs.merged(_SHAPE, ARCHITECTURES[architecture])
    sizes = {"vocab_size": codec.vocabulary.size, "context": CONTEXT}
    return config_of(configs.merged(values, changes) | sizes)


@torch.no_grad()
def random_model(config: Any, seed: int) -> LanguageModel:
    """Return a model whose norms and biases are random too."""
    model = initialise(build(config), seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 1 or parameter.std() == 0:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def in_memory(codec: Codec, seed: int, architecture: str = "llama", **changes: Any) -> Parent:
    """Return a parent as it would be read from the bundle of :func:`write_parent`."""
    config = parent_config(codec, architecture, **changes)
    weights = random_model(config, seed).state_dict()
    images = codec.image_tokenizer
    model = ForeignModel(
        config=config,
        vocabulary=codec.vocabulary,
        text_tokenizer=codec.text_tokenizer,
        image_tokenizer=images.config,
        decoder={name: lazy(tensor) for name, tensor in weights.items()},
        image_tensors={name: lazy(tensor) for name, tensor in images.state_dict().items()},
        origin="pardalis",
    )
    return Parent(Path(f"parent-{seed}"), model, "crop", {"recipe": f"parent {seed}"})


def write_parent(
    folder: Path, codec: Codec, seed: int, architecture: str = "llama", **changes: Any
) -> Path:
    """Write the bundle of a random decoder."""
    model = random_model(parent_config(codec, architecture, **changes), seed)
    Bundle(model, codec, {"recipe": f"parent {seed}", "steps": seed}).save(folder)
    return folder


def weights_of(made: Parent | Merged) -> dict[str, Tensor]:
    """Return all weights of a parent or of what was merged."""
    return {name: tensor.read() for name, tensor in made.tensors.items()}


def model_of(made: Parent | Merged) -> LanguageModel:
    """Return a parent, or what was merged, as a model in 64 bits."""
    with torch.device("meta"):
        model = build(made.config)
    model.load_state_dict({n: t.double() for n, t in weights_of(made).items()}, assign=True)
    return model.eval()


def tokens(codec: Codec, length: int = 20) -> Tensor:
    """Return two rows of random tokens."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(codec.vocabulary.size, (2, length), generator=generator)
