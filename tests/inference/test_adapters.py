"""Adapters in one batch give what the merged models give, and requests without any theirs."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from random_adapters import of_another_model, random_adapter

import pardalis
from pardalis.adapters import DoRAConfig, LoRAConfig, merge, save_adapter
from pardalis.errors import BundleError, ConfigError, RequestError
from pardalis.inference import (
    Contrastive,
    Engine,
    EngineConfig,
    Guidance,
    Request,
    SamplingConfig,
    ScoreRequest,
    TokenLoop,
    generate_ids,
    generate_reference,
)
from pardalis.inference import compiled as compiled_module
from pardalis.inference.adapters import LoadedAdapters
from pardalis.inference.weights import Int8Linear, packed
from pardalis.model import Decoder, initialise
from pardalis.tokens import Limits, Vocabulary

IDS = Vocabulary.build(n_codes=12, n_text=20)
A = IDS.text.start
CODES = [IDS.image.start + c for c in (3, 1, 4, 1)]
IMAGE = (IDS.begin_image_id, *CODES, IDS.end_image_id)
CONFIGS = {
    "lora": LoRAConfig(rank=4, alpha=8.0),
    "dora": DoRAConfig(rank=3, alpha=4.0, rslora=True, targets=("q", "v", "up", "down")),
    "rows": LoRAConfig(rank=2, targets=("o",), rows=("image", "begin_image", "text")),
}
NAMES = (None, *CONFIGS)
OPTIONS = [
    {"limits": Limits(max_new_tokens=25)},
    {"limits": Limits(max_new_tokens=25, max_images=0)},
    {"limits": Limits(max_new_tokens=25, text=False, max_images=2)},
    {"limits": Limits(max_new_tokens=25), "guidance": Guidance(text=3.0, image=1.2)},
    {"limits": Limits(max_new_tokens=20, max_images=1), "guidance": Contrastive(alpha=0.2, k=3)},
]


@pytest.fixture(scope="module")
def model(tiny_config) -> Decoder:
    torch.set_num_threads(1)
    return initialise(Decoder(tiny_config), seed=0).eval()


@pytest.fixture(scope="module")
def adapters(model):
    return {
        name: random_adapter(model, config, IDS, seed=n)
        for n, (name, config) in enumerate(CONFIGS.items())
    }


@pytest.fixture(scope="module")
def merged(model, adapters):
    """The model of each adapter, and that without."""
    return {None: model} | {
        name: merge(copy.deepcopy(model), adapter) for name, adapter in adapters.items()
    }


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    """The same prompts with each adapter and none, greedy and sampled."""
    prompts = [(IDS.bos_id, A, A + 1, A + 2), (IDS.bos_id, A, *IMAGE, A + 5, A, A, A, A)]
    return [
        Request(
            prompt_ids=prompt,
            text=SamplingConfig(temperature=float(n % 2)),
            image=SamplingConfig(temperature=float(n % 2)),
            seed=n,
            adapter=name,
            **options,
        )
        for n, (options, prompt) in enumerate(itertools.product(OPTIONS, prompts))
        for name in NAMES
    ]


@pytest.fixture(scope="module")
def expected(requests, merged, grammar) -> list[list[int]]:
    return [generate_reference(merged[r.adapter], grammar, r) for r in requests]


@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(max_waiting=100, page_size=4),
        EngineConfig(max_waiting=100, page_size=4, max_slots=3, speculation_window=3),
        # Little memory: requests lose their pages, and find them again by their prefixes.
        EngineConfig(max_waiting=100, page_size=4, cache_tokens=160, quantum_steps=3),
        EngineConfig(max_waiting=100, page_size=4, prefill_tokens=2, overlap=True),
    ],
    ids=["plain", "speculative", "preempted", "overlapping"],
)
def test_a_mixed_batch_gives_the_tokens_of_the_merged_models(
    config, model, grammar, adapters, requests, expected
):
    assert generate_ids(model, grammar, requests, config, adapters) == expected


def test_every_adapter_generates_something_else(requests, expected):
    by_name = {
        name: [ids for r, ids in zip(requests, expected, strict=True) if r.adapter == name]
        for name in NAMES
    }
    assert all(by_name[a] != by_name[b] for a in NAMES for b in NAMES if a != b)


def test_prefixes_are_shared_within_an_adapter_only(model, grammar, adapters):
    prompt = (IDS.bos_id, *range(A, A + 11))
    loop = TokenLoop(model, grammar, EngineConfig(page_size=4), adapters)
    reused = []
    for name in (None, "lora", "dora", None, "lora"):
        limits = Limits(max_new_tokens=2, max_images=0)
        loop.submit(Request(prompt_ids=prompt, limits=limits, adapter=name))
        while not loop.idle:
            loop.step()
        reused.append(loop.statistics.reused_tokens)
    assert reused == [0, 0, 0, 8, 16]


def test_requests_without_adapter_are_the_same_to_the_bit(model, grammar, adapters):
    """In a batch with others, and in an engine that has loaded some."""
    request = Request(prompt_ids=(IDS.bos_id, A), limits=Limits(max_new_tokens=20), logprobs=2)

    def log_probs(loop: TokenLoop, *others: Request):
        key, *_ = [loop.submit(each) for each in (request, *others)]
        found = []
        while not loop.idle:
            found += [t for p in loop.step() if p.key == key for t in p.log_probs]
        return found

    others = [
        Request(prompt_ids=(IDS.bos_id, A + n), limits=Limits(max_new_tokens=20), adapter=name)
        for n, name in enumerate(adapters)
    ]
    plain = log_probs(TokenLoop(model, grammar, EngineConfig(native=False)))
    assert log_probs(TokenLoop(model, grammar, EngineConfig(), adapters)) == plain
    assert log_probs(TokenLoop(model, grammar, EngineConfig(), adapters), *others) == plain


def test_scores_are_those_of_the_merged_models(model, grammar, adapters, merged):
    continuation = (A + 3, *IMAGE, A + 1)
    loop = TokenLoop(model, grammar, EngineConfig(page_size=4), adapters)
    keys = {
        loop.submit(
            ScoreRequest(
                prompt_ids=(IDS.bos_id, *range(A, A + 8)),
                continuation_ids=continuation,
                adapter=name,
            )
        ): name
        for name in NAMES
    }
    found = {name: [] for name in NAMES}
    while not loop.idle:
        for progress in loop.step():
            found[keys[progress.key]] += [token.log_prob for token in progress.log_probs]
    ids = torch.tensor([[IDS.bos_id, *range(A, A + 8), *continuation]])
    for name, other in merged.items():
        logits = other(ids)[0, 8:-1].log_softmax(-1)
        theirs = logits.gather(1, ids[0, 9:, None])[:, 0].tolist()
        assert found[name] == pytest.approx(theirs, abs=1e-4)  # measured: 2e-6


@pytest.mark.parametrize("name", CONFIGS)
def test_adapters_stand_beside_matrices_of_8_bits(name, model, adapters):
    """The matrices are rounded as without adapters; what an adapter adds is not."""
    bank = LoadedAdapters(adapters, model)
    ids = torch.randint(0, IDS.size, (1, 9), generator=torch.Generator().manual_seed(0))
    number = bank.names.index(name) + 1
    with torch.inference_mode():
        narrow = packed(model, "int8", bank)
        assert any(isinstance(module, Int8Linear) for module in narrow.modules())
        plain = packed(model, "int8").hidden(ids)
        assert torch.equal(narrow.hidden(ids), plain)
        with bank.using([number], torch.full((9,), number)):
            found = narrow.hidden(ids)
        wide = merge(copy.deepcopy(model), adapters[name]).hidden(ids)
    change = (wide - model.hidden(ids)).norm()
    assert (found - wide).norm() < 0.1 * change  # measured: 0.05 at most
    assert (plain - wide).norm() > 0.8 * change


def test_compiled_steps_run_what_has_no_adapter(
    model, grammar, adapters, requests, expected, monkeypatch
):
    monkeypatch.setattr(compiled_module, "BACKEND", "eager")
    config = EngineConfig(max_waiting=100, compile=True)
    chosen = [0, 1, 2, 3, 8, 9, 10, 11]
    loop = TokenLoop(model, grammar, config, adapters)
    assert loop.runner.compiled is not None
    some = [requests[n] for n in chosen]
    assert generate_ids(model, grammar, some, config, adapters) == [expected[n] for n in chosen]


def test_what_is_wrong_is_told(model, grammar, adapters, bundle, tmp_path):
    loop = TokenLoop(model, grammar, EngineConfig(), adapters)
    request = Request(prompt_ids=(IDS.bos_id,), limits=Limits(max_new_tokens=3), adapter="nora")
    with pytest.raises(RequestError, match=r"adapter 'nora' is not loaded; the engine has 'lora'"):
        loop.submit(request)
    assert loop.idle
    with pytest.raises(ConfigError, match="The adapters lora, dora, rows are of the model"):
        loop.reload(model)
    own = random_adapter(bundle.model, CONFIGS["lora"], bundle.codec.vocabulary)
    with pytest.raises(BundleError, match="The adapter 'a' was trained on another model"):
        Engine(bundle, adapters={"a": of_another_model(own)})
    with pytest.raises(BundleError, match="The adapter 'a' was trained on another model"):
        Engine(bundle, adapters={"a": adapters["lora"]})
    with pytest.raises(BundleError, match=f"No adapter at {tmp_path / 'none'}"):
        Engine(bundle, adapters={"a": tmp_path / "none"})
    with pytest.raises(ConfigError, match="adapters has 257 adapters; an engine takes 256"):
        Engine(bundle, adapters={str(n): own for n in range(257)})
    with pytest.raises(RequestError, match="adapter 'a' is not loaded; the engine has none"):
        pardalis.generate(bundle, "owl", adapter="a")


def test_python_takes_folders(bundle, tmp_path):
    vocabulary = bundle.codec.vocabulary
    folders, models = {}, {}
    for n, (name, config) in enumerate(CONFIGS.items()):
        adapter = random_adapter(bundle.model, config, vocabulary, seed=n)
        folders[name] = tmp_path / name
        save_adapter(adapter, folders[name], vocabulary)
        models[name] = replace(bundle, model=merge(copy.deepcopy(bundle.model), adapter))
    how = {"mode": "text", "max_new_tokens": 12, "logprobs": 1}
    for name in CONFIGS:
        found = pardalis.generate(bundle, "an owl", adapters=folders, adapter=name, **how)
        theirs = pardalis.generate(models[name], "an owl", **how)
        assert [token.token_id for token in found.log_probs] == [
            token.token_id for token in theirs.log_probs
        ]
        [score] = pardalis.score(bundle, [("an", " owl")], adapters=folders, adapter=name)
        [other] = pardalis.score(models[name], [("an", " owl")])
        assert score.log_prob == pytest.approx(other.log_prob, abs=1e-4)
    several = pardalis.generate_many(bundle, ["a", "b"], adapters=folders, adapter="dora", **how)
    theirs = pardalis.generate_many(models["dora"], ["a", "b"], **how)
    assert [r.text for r in several] == [r.text for r in theirs]
