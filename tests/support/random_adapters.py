"""Adapters with random values that change what a model generates."""

import copy
from dataclasses import replace

import torch

from pardalis.adapters import Adapter, LoRAConfig, adapter_of, install, row_ids, start
from pardalis.model import Decoder
from pardalis.tokens import Vocabulary


def random_adapter(
    model: Decoder, config: LoRAConfig, vocabulary: Vocabulary, seed: int = 0, scale: float = 0.15
) -> Adapter:
    """Return an adapter of a model, which is unchanged; ``scale`` is that of random changes."""
    adapted, ids = copy.deepcopy(model), row_ids(config.rows, vocabulary)
    names = install(adapted, config, ids)
    start(adapted, config, seed)
    generator = torch.Generator().manual_seed(seed)
    state = adapted.state_dict()
    trained = {
        name: state[name] + torch.randn(state[name].shape, generator=generator) * scale
        for name in names
    }
    return adapter_of(config, model, vocabulary, trained)


def of_another_model(adapter: Adapter) -> Adapter:
    return replace(adapter, base="0" * 32)
