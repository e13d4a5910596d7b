"""Steps in C++ give the tokens of torch; where they cannot run, torch runs and one line says why.

The other tests of this folder run in C++, too, where there is a compiler.
"""

import copy
import logging
import multiprocessing
import os
import platform
import shutil
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import pytest
import torch
from shapes import changed
from torch import nn

from pardalis.inference import (
    Contrastive,
    EngineConfig,
    Guidance,
    Request,
    SamplingConfig,
    TokenLoop,
    generate_ids,
)
from pardalis.inference.native import library as library_module
from pardalis.inference.native import steps as steps_module
from pardalis.inference.native.linear import RowsLinear
from pardalis.inference.weights import rounded
from pardalis.model import Decoder, initialise
from pardalis.model.cross import CrossAttentionConfig, CrossConfig, CrossModel
from pardalis.tokens import Limits, Vocabulary

IDS = Vocabulary.build(n_codes=12, n_text=20)
A = IDS.text.start
TORCH = EngineConfig(native=False, speculation_window=1)
NATIVE = EngineConfig(speculation_window=1)

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler"
)


def requests(prompt=(IDS.bos_id, A, A + 1)) -> list[Request]:
    samplings = [SamplingConfig(temperature=0.0), SamplingConfig(), SamplingConfig(top_p=0.8)]
    guides = [None, Guidance(text=2.0, image=1.5), Contrastive(alpha=0.2, k=3)]
    return [
        Request(
            prompt_ids=prompt, limits=Limits(max_new_tokens=22), text=sampling, image=sampling,
            guidance=guide, seed=n,
        )
        for n, (sampling, guide) in enumerate(zip(samplings, guides, strict=True))
    ]  # fmt: skip


def make(config, seed: int = 0) -> Decoder | CrossModel:
    kind = CrossModel if isinstance(config, CrossConfig) else Decoder
    model = initialise(kind(config), seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "norm" in name:  # also biases, and scales that would be 1
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


VARIANTS = {
    "as Llama": {"qk_norm": "none"},
    "odd widths": {"d_model": 36, "n_heads": 6, "n_kv_heads": 3, "d_ff": 50},
    "reordered": {"residual": {"placement": "reordered", "skip": 0.9, "branch": 0.4}},
    "post": {
        "residual": {"placement": "post"},
        "norm": {"kind": "layer_norm", "groups": 2},
        "feed_forward": {"kind": "mlp", "width": 40, "activation": "gelu"},
    },
    "as OPT": {
        "norm": {"kind": "layer_norm"},
        "feed_forward": {"kind": "mlp", "width": 40, "activation": "relu"},
        "attention": {"bias": "all"},
        "position": {"kind": "learned"},
        "tie_embeddings": True,
    },
    "as GPT-2": {
        "feed_forward": {"kind": "mlp", "width": 40, "activation": "gelu_tanh"},
        "attention": {"bias": "qkv", "qk_norm": {"kind": "rms_norm", "over": "heads", "groups": 2}},
        "embedding": {"norm": True, "scale": 3.0},
        "norm": {"kind": "rms_norm", "groups": 2},
    },
    "as Qwen3": {"attention": {"qk_norm": {"kind": "rms_norm"}}},
}


@needs_compiler
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_every_option_of_a_decoder(options, tiny_config, grammar):
    model = make(changed(tiny_config, **options))
    loop = TokenLoop(model, grammar, NATIVE)
    assert loop.runner.native is not None
    expected = generate_ids(model, grammar, requests(), TORCH)
    assert generate_ids(model, grammar, requests(), NATIVE) == expected


TWO_TRUNKS = {
    "after each layer": ({}, 1, True),
    "after every second": ({"d_model": 36, "n_heads": 6, "n_kv_heads": 3, "d_ff": 50}, 2, True),
    "without feed-forward": ({"norm": {"kind": "layer_norm"}, "tie_embeddings": True}, 1, False),
    "apart": ({"position": {"kind": "learned"}}, 9, True),
    "reordered": (VARIANTS["reordered"], 1, True),
    "as OPT": (VARIANTS["as OPT"], 2, False),
}


@needs_compiler
@pytest.mark.parametrize(("options", "interval", "forward"), TWO_TRUNKS.values(), ids=TWO_TRUNKS)
def test_two_trunks(options, interval, forward, tiny_config, grammar, monkeypatch):
    config = changed(tiny_config, **options)
    values = {each.name: getattr(config, each.name) for each in fields(config)} | {"kind": "cross"}
    cross = CrossAttentionConfig(interval=interval, feed_forward=forward)
    model = make(CrossConfig(**values, cross=cross))
    expected = generate_ids(model, grammar, requests(), TORCH)
    assert TokenLoop(model, grammar, NATIVE).runner.native is not None
    assert generate_ids(model, grammar, requests(), NATIVE) == expected
    monkeypatch.setattr(steps_module, "_BYTES_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert generate_ids(model, grammar, requests(), EngineConfig(speculation_window=3)) == expected


@needs_compiler
@pytest.mark.skipif(
    library_module.processor() not in ("AVX2", "AVX512"), reason="the processor has no AVX2"
)
@pytest.mark.parametrize("options", [["-mavx2", "-mfma"], []], ids=["AVX2", "4 numbers"])
def test_narrower_vectors(options, tiny_config, grammar, monkeypatch):
    """Of processors that are not this one; 4 numbers are NEON's width."""
    this = platform.machine(), library_module.processor()
    monkeypatch.setattr(library_module, "_PROCESSORS", {this: options})
    model = make(changed(tiny_config, d_model=36, n_heads=6, n_kv_heads=3, d_ff=50))
    expected = generate_ids(model, grammar, requests(), TORCH)
    assert generate_ids(model, grammar, requests(), NATIVE) == expected


@needs_compiler
@pytest.mark.parametrize("threads", [2, 3])
def test_several_threads(threads, tiny_config, grammar, monkeypatch):
    """Again and again: texts whose logits are not kept between guided images, whose are."""
    model = make(tiny_config)
    expected = generate_ids(model, grammar, requests(), TORCH)
    monkeypatch.setattr(steps_module, "_BYTES_A_THREAD", 1)
    monkeypatch.setattr(library_module, "_OPERATIONS_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for _ in range(10):
        assert generate_ids(model, grammar, requests(), NATIVE) == expected


@needs_compiler
def test_engines_at_the_same_time_and_forked_processes_have_threads_of_their_own(
    tiny_config, grammar, monkeypatch
):
    model = make(tiny_config)
    expected = generate_ids(model, grammar, requests(), NATIVE)
    monkeypatch.setattr(steps_module, "_BYTES_A_THREAD", 1)
    monkeypatch.setattr(library_module, "_OPERATIONS_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)

    def generate(*_) -> bool:
        return generate_ids(model, grammar, requests(), NATIVE) == expected

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(generate, range(8)))
    context = multiprocessing.get_context("fork")
    forked = context.Process(target=lambda: os._exit(0 if generate() else 1))
    forked.start()
    forked.join(60)
    forked.kill()
    assert forked.exitcode == 0


@pytest.fixture(params=[None, ["-msse2"], ["-mavx2", "-mfma"]], ids=["own", "4", "8"])
def compiled(request, monkeypatch):
    """The library for this processor, and as it is where vectors have so many numbers."""
    if request.param:
        if platform.machine() != "x86_64":
            pytest.skip("the options are those of x86-64")
        this = platform.machine(), library_module.processor()
        monkeypatch.setattr(library_module, "_PROCESSORS", {this: request.param})
    return library_module.library()


@needs_compiler
@pytest.mark.parametrize("width", [1, 15, 32, 47, 288, 28_672])
def test_products_with_8_bits_round_the_vectors_and_sum_exactly(width, compiled):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (21, width), generator=generator, dtype=torch.int8)
    weight[1], weight[2] = 127, -127
    scale = torch.rand(21, generator=generator) + 0.1
    x = torch.randn(70, width, generator=generator) * torch.logspace(-6, 6, 70)[:, None]
    x[3], x[4], x[5] = 7.5, -7.5, 0  # the largest sums there are
    x[6, -1], x[7, 0] = float("inf"), float("nan")
    linear = RowsLinear(compiled, weight, scale)
    product = linear(x)
    assert product[6:8].isnan().all()
    finite = [i for i in range(70) if i not in (6, 7)]
    exact = x[finite].double() @ (weight.double() * scale[:, None]).T
    # Each number of a vector is rounded by half a step at most; 12 bits are the fewest there are.
    step = x[finite].abs().amax(1).double() / (32767 if width < 8_192 else 2_340)
    bound = step[:, None] / 2 * (weight.double().abs().sum(1) * scale)
    assert ((product[finite] - exact).abs() <= bound + 2e-7 * exact.abs()).all()
    assert (product[5] == 0).all()
    for rows in (slice(0, 1), slice(2, 4), slice(5, 6), slice(8, 24)):
        assert torch.equal(linear(x[rows]), product[rows])


@needs_compiler
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("is_tied", [False, True], ids=["head", "tied head"])
def test_rounded_weights_are_computed_with_in_32_bits(weights, is_tied, tiny_config, grammar):
    model = make(replace(tiny_config, tie_embeddings=is_tied))
    exact = copy.deepcopy(model)
    with torch.no_grad():
        for module in exact.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                values, scale = rounded(module.weight, weights)
                module.weight.copy_(values.float() * (1 if scale is None else scale[:, None]))
    expected = generate_ids(exact, grammar, requests(), TORCH)
    assert generate_ids(model, grammar, requests(), EngineConfig(weights=weights)) == expected


@needs_compiler
def test_a_model_in_16_bits_is_computed_with_in_32(tiny_config, grammar):
    model = make(tiny_config).bfloat16()
    expected = generate_ids(copy.deepcopy(model).float(), grammar, requests(), TORCH)
    assert generate_ids(model, grammar, requests(), NATIVE) == expected
    loop = TokenLoop(model, grammar, NATIVE)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert loop.runner.head.text.weight.untyped_storage().data_ptr() in own
    assert loop.cache.dtype == torch.float32


@needs_compiler
def test_weights_are_not_copied(tiny_config, grammar):
    model = make(tiny_config)
    runner = TokenLoop(model, grammar, NATIVE).runner
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    packed = runner.model.trunk.blocks[0]
    for linear in (packed.attention.q_proj, packed.feed_forward.down_proj, runner.head.text):
        assert linear.weight.untyped_storage().data_ptr() in own


# ── where they cannot run ────────────────────────────────────────────────────────────────────────


@pytest.fixture
def log(monkeypatch, tmp_path, caplog):
    """What is logged; the cache is empty, and nothing has been logged before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(library_module, "_found", {})
    steps_module._log_once.cache_clear()
    caplog.set_level(logging.INFO)
    return caplog


def assert_torch_runs(log, model, grammar, reason: str) -> None:
    """A request is completed as by torch, and one line says why; a second engine says nothing."""
    expected = generate_ids(model, grammar, requests(), TORCH)
    for _ in range(2):
        loop = TokenLoop(model, grammar, NATIVE)
        assert loop.runner.native is None
    assert generate_ids(model, grammar, requests(), NATIVE) == expected
    said = [r.message for r in log.records if r.message.startswith("Decoding ")]
    assert len(said) == 1
    assert reason in said[0]


def compiler(tmp_path, script: str) -> str:
    path = tmp_path / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(stat.S_IRWXU)
    return str(path)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo no header >&2; exit 3", "failed with exit code 3 (no header); set CXX to one"),
        ("exit 0", "failed with exit code 0 (no message)"),
        ('for last; do :; done; echo garbage > "$last"', "cannot be loaded"),
        ("sleep 60 & wait", "took more than 0.3 seconds; set CXX to one that works"),
    ],
    ids=["fails", "writes nothing", "writes garbage", "hangs"],
)
def test_a_bad_compiler(script, reason, log, tiny_model, grammar, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", compiler(tmp_path, script))
    monkeypatch.setattr(library_module, "TIME_LIMIT_S", 0.3 if "sleep" in script else 60)
    start = time.monotonic()
    assert_torch_runs(log, tiny_model, grammar, reason)
    assert time.monotonic() - start < 50


def test_no_compiler(log, tiny_model, grammar, tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_torch_runs(log, tiny_model, grammar, "no C++ compiler was found; install one")
    assert "but no C++ compiler" in library_module.outlook()


def test_a_compiler_that_is_not_there(log, tiny_model, grammar, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "absent"))
    assert_torch_runs(log, tiny_model, grammar, "absent cannot be started (No such file")


def test_a_cache_that_cannot_be_written(log, tiny_model, grammar, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file in its place")
    monkeypatch.setenv("CXX", compiler(tmp_path, "exit 0"))
    assert_torch_runs(log, tiny_model, grammar, "cannot keep the compiled library")


def test_a_library_that_others_may_write(log, tiny_model, grammar, tmp_path, monkeypatch):
    script = 'for last; do :; done; echo > "$last"'
    monkeypatch.setenv("CXX", compiler(tmp_path, script))
    assert_torch_runs(log, tiny_model, grammar, "cannot be loaded")
    [path] = (tmp_path / "cache").rglob("*.so")
    path.chmod(0o777)
    library_module._found.clear()
    log.clear()
    assert_torch_runs(log, tiny_model, grammar, "is not of this user alone; delete it")


def test_another_processor(log, tiny_model, grammar, monkeypatch):
    monkeypatch.setattr(library_module, "processor", lambda: "NO AVX")
    assert_torch_runs(log, tiny_model, grammar, "NO AVX) has neither AVX2 nor NEON")


def test_another_dtype(log, tiny_model, grammar):
    assert_torch_runs(log, tiny_model.half(), grammar, "cannot run embedding.weight in float16")


def test_a_layer_of_another_kind(log, tiny_model, grammar):
    class Own(type(tiny_model.trunk.blocks[0].feed_forward)):
        pass

    tiny_model.trunk.blocks[1].feed_forward.__class__ = Own
    assert_torch_runs(log, tiny_model, grammar, "cannot run a Own")


@needs_compiler
def test_weights_that_are_not_finite(log, tiny_model, grammar, monkeypatch):
    monkeypatch.undo()  # the library that the other tests use
    steps_module._log_once.cache_clear()
    with torch.no_grad():
        tiny_model.trunk.norm.weight[3] = torch.inf
    assert_torch_runs(log, tiny_model, grammar, "trunk.norm.weight, which has numbers that are")


@needs_compiler
def test_a_call_without_memory_is_left_to_torch(tiny_model, grammar, monkeypatch):
    expected = generate_ids(tiny_model, grammar, requests(), TORCH)
    monkeypatch.setattr(library_module.Library, "decode", lambda *_: False)
    assert generate_ids(tiny_model, grammar, requests(), NATIVE) == expected
