"""Compiled steps equal the reference loop; where compilation fails, eager steps run."""

import logging
import subprocess
import sys

import torch

from pardalis.inference import (
    EngineConfig,
    Guidance,
    Request,
    SamplingConfig,
    TokenLoop,
    generate_ids,
    generate_reference,
)
from pardalis.inference import compiled as compiled_module
from pardalis.model import (
    AttentionConfig,
    Decoder,
    InitConfig,
    ModelConfig,
    SwiGLUConfig,
    initialise,
)
from pardalis.tokens import Grammar, Limits, Vocabulary

IDS = Vocabulary.build(n_codes=12, n_text=20)
A = IDS.text.start


def requests() -> list[Request]:
    """Text, images, both, and guided images; prompts of several lengths."""
    limits = [
        Limits(max_new_tokens=12, max_images=0),
        Limits(max_new_tokens=12, text=False, max_images=2),
        Limits(max_new_tokens=20),
    ]
    return [
        Request(
            prompt_ids=(IDS.bos_id, *range(A, A + n)),
            limits=limits[n % 3],
            image=SamplingConfig(temperature=1.0),
            guidance=Guidance(text=3.0) if n % 2 else None,
            seed=n,
        )
        for n in range(7)
    ]


def make(context: int = 48, seed: int = 0) -> tuple[Decoder, Grammar]:
    config = ModelConfig(
        vocab_size=IDS.size,
        context=context,
        d_model=32,
        n_layers=2,
        attention=AttentionConfig(n_heads=4, n_kv_heads=2),
        feed_forward=SwiGLUConfig(width=64),
        init=InitConfig(std=0.3),
    )
    return initialise(Decoder(config), seed=seed).eval(), Grammar(IDS, codes_per_image=4)


def main() -> None:
    """Compare completions, with the compiler's tracer but without its generated code."""
    torch.set_num_threads(1)
    compiled_module.BACKEND = "aot_eager"
    (model, grammar), (other, _) = make(), make(seed=1)
    expected = [generate_reference(model, grammar, request) for request in requests()]
    of_other = [generate_reference(other, grammar, request) for request in requests()]
    for window in (1, 3):
        config = EngineConfig(compile=True, speculation_window=window, max_slots=4, page_size=3)
        loop = TokenLoop(model, grammar, config)
        assert run(loop) == expected
        graphs = n_graphs()
        loop.reload(model)
        assert run(loop) == expected
        assert n_graphs() == graphs  # nothing is compiled again
        loop.reload(other)
        assert run(loop) == of_other != expected
        assert loop.runner.compiled is not None
        assert loop.runner.compiled.works
    assert 4 <= n_graphs() <= 12


def run(loop: TokenLoop) -> list[list[int]]:
    completions: dict[int, list[int]] = {loop.submit(request): [] for request in requests()}
    while not loop.idle:
        for progress in loop.step():
            completions[progress.key] += progress.ids
    return list(completions.values())


def n_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_equals_the_reference():
    """Runs in its own process, since the runtime shape checks of the tests cannot be compiled."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_continues_without_a_compiler(monkeypatch, caplog):
    def broken(function, **options):
        def call(*arguments):
            raise RuntimeError("no C++ compiler found")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    model, grammar = make()
    caplog.set_level(logging.WARNING)
    config = EngineConfig(compile=True, max_slots=4)
    completions = generate_ids(model, grammar, requests(), config)
    assert completions == generate_ids(model, grammar, requests(), EngineConfig(max_slots=4))
    [record] = caplog.records
    assert "no C++ compiler found" in record.message


if __name__ == "__main__":
    main()
