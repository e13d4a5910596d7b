"""Merged models in the engine: pages of all their layers, guidance, compiled steps."""

from functools import partial
from unittest.mock import patch

import pytest
import torch
from parents import in_memory, model_of

from pardalis.fusion import CrossMergeConfig, WidthConfig
from pardalis.inference import (
    EngineConfig,
    Guidance,
    Request,
    SamplingConfig,
    generate_ids,
    generate_reference,
)
from pardalis.inference import compiled as compiled_module
from pardalis.tokens import Limits

MERGES = {
    "cross": (CrossMergeConfig(interval=1), "llama"),
    "cross, learned positions": (CrossMergeConfig(), "gpt2"),
    "width, copy": (WidthConfig(), "qwen3"),
    "width, block_diagonal": (WidthConfig(blocks="block_diagonal"), "olmo2"),
}


@torch.no_grad()
def merged(codec, name):
    """A merged model whose every parameter has changed, so that a wrong cache would show."""
    how, architecture = MERGES[name]
    parents = [in_memory(codec, seed, architecture) for seed in (1, 2)]
    model = model_of(how.merged(parents, 0)).float()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def requests(vocabulary):
    """Text, images, both, with guidance and without; prompts of several lengths."""
    kinds = [(False, None), (False, Guidance(text=3.0)), (True, Guidance(text=2.0))]
    return [
        Request(
            prompt_ids=(vocabulary.bos_id, *vocabulary.text[3 : 5 + n]),
            limits=Limits(max_new_tokens=14, text=text, max_images=1),
            seed=n,
            text=SamplingConfig(),
            image=SamplingConfig(),
            guidance=guidance,
        )
        for n, (text, guidance) in enumerate(kinds)
    ]


@pytest.mark.parametrize("name", MERGES)
def test_the_engine_equals_the_naive_loop(name, codec):
    model, wanted = merged(codec, name), requests(codec.vocabulary)
    run = partial(generate_ids, model, codec.grammar, wanted)
    expected = [generate_reference(model, codec.grammar, request) for request in wanted]
    assert run(EngineConfig(page_size=8)) == expected
    assert all(run(EngineConfig(page_size=8, weights="int8")))


@pytest.mark.parametrize("name", ["cross", "width, block_diagonal"])
def test_compiled_steps_equal_the_naive_loop(name, codec):
    model, wanted = merged(codec, name), requests(codec.vocabulary)[:2]
    expected = [generate_reference(model, codec.grammar, request) for request in wanted]
    with patch.object(compiled_module, "BACKEND", "eager"):
        found = generate_ids(model, codec.grammar, wanted, EngineConfig(page_size=8, compile=True))
    assert found == expected
