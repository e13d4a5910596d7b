"""Decoding compared with transformers' Chameleon and with llama.cpp.

All have the same weights, prompts, threads and sampling, and each peer its fastest form.

transformers' is ``generate`` with a dynamic or a static cache, the static one compiled or not. Its
forward overwrites the logits of the image tokens that its configuration names, so it is built
without any, which also saves it that work, and a logits processor restricts it to the tokens of one
modality. llama.cpp (see llama_cpp_peer.py) takes part where llama-cpp-python is installed; for
images it has a vocabulary of image tokens alone, and it knows no guidance.

Before any time is taken, all must choose the same tokens greedily; llama.cpp those of a text. Peak
memory is measured in one process for each side. The last line is JSON.

    python bench/decoding.py                              # two threads, float32: all sizes
    python bench/decoding.py --weights int8 --threads 1 --peers llama.cpp
    python bench/decoding.py --sizes 15M --rounds 1 --codes 64
    python bench/decoding.py --device cuda                # one GPU: ours, Chameleon-7B's shape
"""

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import ChameleonForConditionalGeneration, LogitsProcessor
from transformers.generation import CompileConfig
from transformers.generation.streamers import BaseStreamer

import llama_cpp_peer
from decoder import alternate, chameleon_like, peer_of, product_gflops
from llama_cpp_peer import LlamaCpp
from pardalis.inference.config import STEPS_PER_SYNC, EngineConfig
from pardalis.inference.generation import Guidance, SamplingConfig
from pardalis.inference.request import Request
from pardalis.inference.token_loop import TokenLoop
from pardalis.inference.weights import Weights
from pardalis.model import (
    AttentionConfig,
    Decoder,
    ModelConfig,
    NoQKNormConfig,
    SwiGLUConfig,
    chameleon_7b,
    initialise,
    tiny,
)
from pardalis.seeds import numpy_generator
from pardalis.tokens import Grammar, Limits, Vocabulary
from training import print_json, seconds_of, status_mib

VOCABULARY = Vocabulary.build(n_codes=8192, n_text=65_536 - 8 - 8192)
PROMPT, LONG_PROMPT, CODES = 32, 512, 256
SIZES = {
    "15M": tiny().sized(VOCABULARY.size, context=1024),
    "120M": ModelConfig(
        vocab_size=VOCABULARY.size,
        context=1024,
        d_model=512,
        n_layers=16,
        attention=AttentionConfig(n_heads=8),
        feed_forward=SwiGLUConfig(width=1536),
    ),
    "SmolLM2": ModelConfig(  # the blocks of SmolLM2-135M, with our vocabulary
        vocab_size=VOCABULARY.size,
        context=1024,
        d_model=576,
        n_layers=30,
        attention=AttentionConfig(n_heads=9, n_kv_heads=3, qk_norm=NoQKNormConfig()),
        feed_forward=SwiGLUConfig(width=1536),
    ),
}
PLAIN = SamplingConfig()  # the whole distribution: what costs the peer least
RELEASE = SamplingConfig(temperature=0.7, top_p=0.9)  # as Chameleon's release samples
GREEDY = SamplingConfig(temperature=0.0)
SCALE = 3.0  # of guidance, as in Chameleon's release
WARM_UPS = 3  # the peer compiles in its first two calls

# The window stays 1: a model with random weights is no measure of how well codes are guessed.
ENGINES = {
    "native": EngineConfig(speculation_window=1),  # steps in C++; in torch where they cannot run
    "eager": EngineConfig(speculation_window=1, native=False),
    "compiled": EngineConfig(speculation_window=1, compile=True),
}
PEERS = {
    "dynamic cache": {},
    "static cache": {"cache_implementation": "static"},
    "static cache, compiled": {"cache_implementation": "static", "compile_config": CompileConfig()},
}
PEERS["static cache, compiled"]["compile_config"]._compile_all_devices = True  # on a CPU too
MATRICES: dict[Weights, llama_cpp_peer.Matrices] = {
    "stored": "F32", "bfloat16": "BF16", "int8": "Q8_0"
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """A batch of requests of one kind."""

    kind: Literal["image", "text"]
    batch: int
    length: int = CODES  # codes of an image, without its end_image, or tokens of a text
    sampling: SamplingConfig = PLAIN
    guided: bool = False
    prompt: int = PROMPT  # tokens

    @property
    def sequences(self) -> int:
        return self.batch * (2 if self.guided else 1)

    @property
    def allowed(self) -> range:
        return VOCABULARY.image if self.kind == "image" else VOCABULARY.text

    def prompts(self, number: int) -> torch.Tensor:
        """Sample prompts, new ones for each number; those of images end with begin_image."""
        text = VOCABULARY.text
        ids = numpy_generator(number, "prompts").integers(
            text.start, text.stop, (self.batch, self.prompt)
        )
        ids[:, 0] = VOCABULARY.bos_id
        if self.kind == "image":
            ids[:, -1] = VOCABULARY.begin_image_id
        return torch.from_numpy(ids)

    def requests(self, number: int) -> list[Request]:
        limits = Limits(max_new_tokens=self.length, max_images=0)
        if self.kind == "image":
            limits = Limits(max_new_tokens=self.length + 1, text=False, max_images=0)
        return [
            Request(
                prompt_ids=tuple(ids), limits=limits, text=self.sampling, image=self.sampling,
                guidance=Guidance(text=SCALE) if self.guided else None, seed=number + index,
            )
            for index, ids in enumerate(self.prompts(number).tolist())
        ]  # fmt: skip


def loop_for(model: Decoder, config: EngineConfig, case: Case) -> TokenLoop:
    """Build a token loop with slots and cache for one case, and for others of its size."""
    length = case.prompt + case.length + 2 + STEPS_PER_SYNC + 2 * config.page_size
    config = replace(config, max_slots=case.sequences, cache_tokens=case.sequences * length)
    return TokenLoop(model, Grammar(VOCABULARY, case.length), config)


class Ours:
    """The token loop on one case."""

    def __init__(self, loop: TokenLoop, case: Case) -> None:
        self.loop, self.case = loop, case

    def run(self, number: int) -> list[list[int]]:
        """Complete the requests of a number; an image's end_image is left out."""
        keys = [self.loop.submit(request) for request in self.case.requests(number)]
        generated: dict[int, list[int]] = {key: [] for key in keys}
        while not self.loop.idle:
            for progress in self.loop.step():
                generated[progress.key] += progress.ids
        return [ids[: self.case.length] for ids in generated.values()]

    def seconds_to_first(self, number: int) -> float:
        start = time.perf_counter()
        [key] = [self.loop.submit(request) for request in self.case.requests(number)]
        while not any(progress.ids for progress in self.loop.step()):
            pass
        seconds = time.perf_counter() - start
        self.loop.abort(key)
        while not self.loop.idle:
            self.loop.step()
        return seconds


class Transformers:
    """``generate`` of transformers, restricted to the tokens of one modality."""

    def __init__(
        self, model: ChameleonForConditionalGeneration, options: dict[str, object], case: Case
    ) -> None:
        self.model, self.case = model, case
        self.options: dict[str, object] = {
            **options,
            "max_new_tokens": case.length,
            "min_new_tokens": case.length,
            "do_sample": case.sampling.temperature > 0,
            "logits_processor": [_Allowed(case.allowed)],
        }
        if case.sampling.temperature > 0:
            sampling = case.sampling
            self.options |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
            self.options["top_k"] = sampling.top_k
        if case.guided:
            ids = torch.tensor([[VOCABULARY.bos_id, VOCABULARY.begin_image_id]] * case.batch)
            self.options |= {
                "guidance_scale": SCALE,
                "negative_prompt_ids": ids,
                "negative_prompt_attention_mask": torch.ones_like(ids),
            }

    def run(self, number: int, streamer: BaseStreamer | None = None) -> list[list[int]]:
        prompts = self.case.prompts(number)
        torch.manual_seed(number)
        ids = self.model.generate(
            prompts, attention_mask=torch.ones_like(prompts), streamer=streamer, **self.options
        )
        return ids[:, self.case.prompt :].tolist()

    def seconds_to_first(self, number: int) -> float:
        clock = _FirstToken()
        with suppress(_Arrived):
            self.run(number, clock)
        return time.perf_counter() - clock.start


class _Allowed(LogitsProcessor):
    """Allow a range of token ids, at the least cost that this interface permits."""

    def __init__(self, allowed: range) -> None:
        self.columns = slice(allowed.start, allowed.stop)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        masked = torch.full_like(scores, -torch.inf)
        masked[:, self.columns] = scores[:, self.columns]
        return masked


class _Arrived(Exception):
    """Ends a call of ``generate`` at its first token."""


class _FirstToken(BaseStreamer):
    def __init__(self) -> None:
        self.calls, self.start = 0, time.perf_counter()

    def put(self, value: torch.Tensor) -> None:
        self.calls += 1
        if self.calls == 2:  # the first is the prompt
            raise _Arrived

    def end(self) -> None:
        pass


class InLlamaCpp:
    """llama.cpp on one case; for an image, with a vocabulary of image tokens alone."""

    def __init__(self, peer: LlamaCpp, case: Case, samples: bool = True) -> None:
        self.peer, self.case = peer, case
        sampling = case.sampling
        self.sampling = (sampling.temperature, sampling.top_p) if samples else None

    def prompts(self, number: int) -> list[list[int]]:
        size = self.peer.n_vocabulary
        return [[i % size for i in ids] for ids in self.case.prompts(number).tolist()]

    def run(self, number: int) -> list[list[int]]:
        return self.peer.run(self.prompts(number), self.case.length, self.sampling, number)

    def greedy(self, number: int) -> list[list[int]]:
        prompts, allowed = self.prompts(number), self.case.allowed
        return [self.peer.greedy(prompt, self.case.length, allowed) for prompt in prompts]

    def seconds_to_first(self, number: int) -> float:
        start = time.perf_counter()
        self.peer.run(self.prompts(number), 1, self.sampling, number)
        return time.perf_counter() - start


Side = Ours | Transformers | InLlamaCpp


class Comparison:
    """All sides on the weights of one size."""

    def __init__(self, config: ModelConfig, options: argparse.Namespace, folder: Path) -> None:
        self.config, self.options, self.folder = config, options, folder
        self.model = initialise(Decoder(config), seed=0).eval()
        self.peer = peer_of(self.model) if has_transformers(config, options) else None
        self.loops: dict[tuple[str, int, int], TokenLoop] = {}
        self.contexts: dict[tuple[str, str, int, int], LlamaCpp] = {}

    def ours(self, form: str, case: Case) -> Ours:
        """Return our side; cases of as many sequences and tokens share its weights."""
        key = form, case.sequences, case.prompt + case.length
        if key not in self.loops:
            config = replace(ENGINES[form], weights=self.options.weights)
            self.loops[key] = loop_for(self.model, config, case)
        return Ours(self.loops[key], case)

    def llama_cpp(self, form: str, case: Case, samples: bool = True) -> InLlamaCpp:
        length = case.prompt + case.length
        key = case.kind, form, case.batch, length
        if key not in self.contexts:
            file = gguf_of(self.folder, case.kind, self.model, MATRICES[self.options.weights])
            threads = self.options.threads
            self.contexts[key] = LlamaCpp(file, form, case.batch, length, threads)
        return InLlamaCpp(self.contexts[key], case, samples)

    def sides(self, case: Case) -> dict[str, dict[str, Side]]:
        """Return every form of all sides for one case."""
        sides: dict[str, dict[str, Side]] = {
            "pardalis": {form: self.ours(form, case) for form in self.options.engines}
        }
        if self.peer is not None:
            sides["transformers"] = {
                form: Transformers(self.peer, options, case) for form, options in PEERS.items()
            }
        if "llama.cpp" in self.options.peers and not case.guided:
            sides["llama.cpp"] = {f: self.llama_cpp(f, case) for f in llama_cpp_peer.FORMS}
            if case.kind == "text" and case.sampling == PLAIN:  # what it takes to sample itself
                sides["llama.cpp, unsampled"] = {
                    form: self.llama_cpp(form, case, samples=False) for form in llama_cpp_peer.FORMS
                }
        return sides

    def check(self, name: str, case: Case) -> dict[str, int]:
        """Return how many greedy tokens each peer has in common with ours; exits if one differs.

        A peer whose weights are rounded in another way may differ from some token on.
        """
        case = replace(case, sampling=GREEDY)
        [ours] = self.ours(self.options.engines[0], case).run(0)
        n = case.length if case.kind == "image" else case.length - 1  # a text ends with eos
        found = {}
        if self.peer is not None:
            [peers] = Transformers(self.peer, PEERS["static cache"], case).run(0)
            found["transformers"] = equal_tokens(ours[:n], peers[:n])
        if "llama.cpp" in self.options.peers and case.kind == "text":
            [peers] = self.llama_cpp("f32 cache", case).greedy(0)
            found["llama.cpp"] = equal_tokens(ours[:n], peers[:n])
        for peer, equal in found.items():
            if equal < n and self.options.weights == "stored":
                raise SystemExit(f"{name}: {peer} chose another token after {equal} equal ones.")
        return found

    def compare(self, cases: dict[str, Case], rounds: int) -> dict[str, dict[str, Any]]:
        """Time the fastest form of each side on each case, all in alternating order."""
        forms_of: dict[tuple[object, ...], str] = {}
        result = {}
        for number, (name, case) in enumerate(cases.items(), 1):
            chosen: dict[str, tuple[str, Side]] = {}
            for side, forms in self.sides(case).items():
                # The fastest form depends on the model's work, not on sampling.
                key = side, case.kind, case.batch, case.guided
                if key not in forms_of:
                    forms_of[key] = fastest(forms)
                chosen[side] = forms_of[key], forms[forms_of[key]]
            # Each case has its own prompts, so none is found in a cache; all sides have the same.
            numbers = {side: count(1000 * number) for side in chosen}
            seconds = alternate(
                rounds,
                **{
                    side: lambda run=run, numbers=numbers[side]: run.run(next(numbers))
                    for side, (_, run) in chosen.items()
                },
            )
            forms = {side: form for side, (form, _) in chosen.items()}
            result[name] = summary(case, forms, seconds)
            print_json({name: result[name]})
        return result

    def first_tokens(self, forms: dict[str, str], rounds: int) -> dict[str, float]:
        """Return milliseconds until the first token after a longer prompt, on each side."""
        case = Case("text", 1, length=8, prompt=LONG_PROMPT)
        found = {}
        for name, side in self.sides(case).items():
            if name in forms and name != "llama.cpp, unsampled":
                run = side[forms[name]]
                taken = [run.seconds_to_first(number) for number in range(WARM_UPS + rounds)]
                found[name] = round(1e3 * statistics.median(taken[WARM_UPS:]), 1)
        return found


def has_transformers(config: ModelConfig, options: argparse.Namespace) -> bool:
    """Whether its Chameleon can be such a model: with QK-norm, and with weights as they are."""
    is_chameleon = config.attention.qk_norm.kind == "layer_norm"
    return "transformers" in options.peers and is_chameleon and options.weights == "stored"


def gguf_of(folder: Path, kind: str, model: Decoder, matrices: llama_cpp_peer.Matrices) -> Path:
    """Return a file of the model for one kind of cases; it is written the first time."""
    path = folder / f"{kind}-{matrices}.gguf"
    if not path.exists():
        vocabulary = VOCABULARY.image if kind == "image" else None
        llama_cpp_peer.write_gguf(model, path, matrices, vocabulary)
    return path


def equal_tokens(ours: list[int], peers: list[int]) -> int:
    """Return how many tokens are equal before the first that differs."""
    return next(
        (i for i, pair in enumerate(zip(ours, peers, strict=True)) if len({*pair}) > 1), len(ours)
    )


def fastest(forms: dict[str, Side]) -> str:
    """Return the name of the form that takes least time, after warm-up of all."""
    seconds = {}
    for name, side in forms.items():
        warm_ups = WARM_UPS if "compiled" in name else 1
        for number in range(warm_ups):
            side.run(number)
        seconds[name] = seconds_of(lambda side=side: side.run(WARM_UPS))
    return min(seconds, key=lambda name: seconds[name])


def summary(case: Case, forms: dict[str, str], taken: dict[str, list[float]]) -> dict[str, Any]:
    """Return medians and spread of all sides, and the ratio of each peer's time to ours."""
    medians = {side: statistics.median(seconds) for side, seconds in taken.items()}
    tokens = case.batch * case.length
    return {
        "forms": forms,
        "tokens_per_second": {side: round(tokens / s, 1) for side, s in medians.items()},
        "range": {
            side: [round(tokens / max(s), 1), round(tokens / min(s), 1)]
            for side, s in taken.items()
        },
        "ms_per_step": {side: round(1e3 * s / case.length, 3) for side, s in medians.items()},
        "seconds_of_batch": {side: round(s, 3) for side, s in medians.items()},
        "ratio": {
            side: round(s / medians["pardalis"], 2)
            for side, s in medians.items()
            if side != "pardalis"
        },
    }


@dataclass(frozen=True, slots=True)
class Work:
    """The least work of a step at the middle of a completion."""

    bytes: float  # weights, and the mean keys and values, each read once
    flops: float

    @classmethod
    def of(
        cls, config: ModelConfig, case: Case, head: range, weight_bytes: int, cache_bytes: int = 4
    ) -> "Work":
        """Count a step of a case; ``head`` is the range of token ids with a computed logit."""
        d, kv = config.d_model, config.attention.kv_heads * config.d_head
        multiplied = config.n_layers * (2 * d * d + 2 * d * kv + 3 * d * config.feed_forward.width)
        multiplied += len(head) * d
        seen = case.sequences * (case.prompt + case.length / 2)  # positions of all sequences
        if case.guided:  # the unconditional branch does not attend to the prompt
            seen -= case.batch * (case.prompt - 2)
        keys_and_values = 2 * config.n_layers * kv * seen
        attention = 4 * config.n_layers * d * seen
        return cls(
            bytes=weight_bytes * multiplied + cache_bytes * keys_and_values,
            flops=2 * multiplied * case.sequences + attention,
        )


class Machine:
    """The machine's rates, measured in the same run."""

    def __init__(self) -> None:
        self.flops = product_gflops() * 1e9

    @staticmethod
    def read(n_bytes: float) -> float:
        """Return bytes per second when so many are read repeatedly, from a cache if they fit."""
        x = torch.ones(int(n_bytes) // 4)
        return 4 * x.numel() / min(alternate(20, read=lambda: x.sum())["read"])

    def limits(self, work: Work) -> dict[str, float]:
        """Return the seconds of reading and of computing, each without the other."""
        return {"reading": work.bytes / self.read(work.bytes), "computing": work.flops / self.flops}


def shares(
    machine: Machine, config: ModelConfig, cases: dict[str, Case], found: dict[str, dict],
    weight_bytes: int,
) -> dict[str, dict[str, object]]:  # fmt: skip
    """Return the share of the machine's limit that each case reaches, on our side."""
    lines = {}
    for name, case in cases.items():
        head = VOCABULARY.image if case.kind == "image" else VOCABULARY.text
        work = Work.of(config, case, head, weight_bytes)
        limits = machine.limits(work)
        bound = max(limits, key=lambda kind: limits[kind])
        seconds = found[name]["ms_per_step"]["pardalis"] / 1e3
        lines[name] = {
            "mbytes_per_step": round(work.bytes / 1e6, 1),
            "mflops_per_step": round(work.flops / 1e6, 1),
            "limit": bound,
            "limit_ms": round(1e3 * limits[bound], 3),
            "share": round(limits[bound] / seconds, 2),
        }
    return lines


def peak_memory(
    side: str, size: str, form: str, case: Case, options: argparse.Namespace
) -> dict[str, int]:
    """Run a case once in its own process; return MiB of its peak above the imports.

    ``file_mib`` is the part of it that is pages of files, which the system may drop.
    """
    what = [side, size, form, case.kind, str(case.batch), str(case.length)]
    command = [sys.executable, __file__, "--weights", options.weights, "--memory-of", *what]
    command += ["--threads", str(options.threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_peak_memory(options: argparse.Namespace) -> None:
    side, size, form, kind, batch, length = options.memory_of
    case = Case(kind, int(batch), int(length))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        file = made / "weights.safetensors"
        if side == "pardalis":
            save_file(initialise(Decoder(SIZES[size]), seed=0).state_dict(), file)
        elif side == "llama.cpp":
            model = initialise(Decoder(SIZES[size]), seed=0)
            file = gguf_of(made, kind, model, MATRICES[options.weights])
            del model
        gc.collect()
        reset_peak()
        before = status_mib("VmRSS")
        runner: Side
        if side == "pardalis":
            with torch.device("meta"):
                model = Decoder(SIZES[size])
            model.load_state_dict(load_file(file), assign=True)
            config = replace(ENGINES[form], weights=options.weights)
            loop = loop_for(model.eval(), config, case)
            del model
            runner = Ours(loop, case)
        elif side == "transformers":
            runner = Transformers(chameleon_like(SIZES[size]).eval(), PEERS[form], case)
        else:
            length_ = case.prompt + case.length
            runner = InLlamaCpp(LlamaCpp(file, form, case.batch, length_, options.threads), case)
        runner.run(0)
        print_json(
            {"mib": round(status_mib("VmHWM") - before), "file_mib": round(status_mib("RssFile"))}
        )


def cases_of(codes: int, config: ModelConfig) -> dict[str, Case]:
    cases = {
        "image, batch 1": Case("image", 1, codes),
        "image, batch 1, guided": Case("image", 1, codes, guided=True),
        "image, batch 1, release's sampling": Case("image", 1, codes, RELEASE),
        "text, batch 1": Case("text", 1, codes),
        "text, batch 1, release's sampling": Case("text", 1, codes, RELEASE),
        "image, batch 16": Case("image", 16, codes),
        "text, batch 16": Case("text", 16, codes),
    }
    draws = config.attention.qk_norm.kind != "none"
    return {name: case for name, case in cases.items() if draws or case.kind == "text"}


def measure(size: str, machine: Machine, options: argparse.Namespace) -> dict[str, object]:
    """Compare all sides at one size."""
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(SIZES[size], options, Path(folder))
        cases = cases_of(options.codes or CODES, SIZES[size])
        checked = ("image, batch 1", "image, batch 1, guided", "text, batch 1")
        equal = {name: comparison.check(name, cases[name]) for name in checked if name in cases}
        found = comparison.compare(cases, options.rounds)
        forms = {name: found[name]["forms"] for name in found}
        first_token_ms = comparison.first_tokens(forms["text, batch 1"], options.rounds)
    memory = {
        name: {
            side: peak_memory(side, size, form, cases[name], options)
            for side, form in sides.items()
            if side != "llama.cpp, unsampled"
        }
        for name, sides in forms.items()
        if name in ("image, batch 1", "text, batch 1", "image, batch 16")
    }
    weight_bytes = {"stored": 4, "bfloat16": 2, "int8": 1}[options.weights]
    result: dict[str, object] = {
        "parameters": sum(p.numel() for p in comparison.model.parameters()),
        "equal_greedy_tokens": equal,
        "cases": found,
        "share_of_limit": shares(machine, SIZES[size], cases, found, weight_bytes),
        "first_token_ms": first_token_ms,
        "peak_above_imports": memory,
    }
    if "image, batch 1" in cases:
        guided, unguided = (
            found[name]["seconds_of_batch"] for name in ("image, batch 1, guided", "image, batch 1")
        )
        result["guided_cost_b1"] = {s: round(guided[s] / unguided[s], 2) for s in guided}
    return result


def headline(result: dict) -> dict[str, float]:
    return {name: case["ratio"] for name, case in result["cases"].items()}


# ── on a GPU ─────────────────────────────────────────────────────────────────────────────────


def on_gpu(codes: int, rounds: int) -> dict[str, object]:
    """Generate at Chameleon-7B's shape in bfloat16; return times and the share of bandwidth."""
    config = chameleon_7b().sized(vocab_size=65_536, context=4096)
    with torch.device("meta"):
        model = Decoder(config)
    model = initialise(model.to(torch.bfloat16).to_empty(device="cuda"), seed=0).eval()
    copied = copy_rate()
    result: dict[str, object] = {
        "gpu": torch.cuda.get_device_name(),
        "copy_gb_per_second": round(copied / 1e9),
    }
    cases = {
        "image, batch 1": Case("image", 1, codes),
        "image, batch 1, guided": Case("image", 1, codes, guided=True),
        "text, batch 1": Case("text", 1, codes),
        "image, batch 64": Case("image", 64, codes),
    }
    for name, case in cases.items():
        side, numbers = Ours(loop_for(model, ENGINES["compiled"], case), case), count()
        seconds = statistics.median(
            alternate(rounds, run=lambda s=side, n=numbers: finished(lambda: s.run(next(n))))["run"]
        )
        least = Work.of(config, case, case.allowed, 2, 2).bytes / copied
        result[name] = {
            "ms_per_step": round(1e3 * seconds / codes, 3),
            "seconds_of_batch": round(seconds, 3),
            "completions_per_second": round(case.batch / seconds, 2),
            "share_of_limit": round(least / (seconds / codes), 2),
        }
        print_json({name: result[name]})
        del side
        torch.cuda.empty_cache()
    return result


def finished(run: Callable[[], object]) -> None:
    run()
    torch.cuda.synchronize()


def copy_rate() -> float:
    """Return bytes read and written per second by a copy within the GPU's memory."""
    x = torch.ones(2**30, dtype=torch.int32, device="cuda")
    y = torch.empty_like(x)
    return 8 * x.numel() / min(alternate(10, copy=lambda: finished(lambda: y.copy_(x)))["copy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--codes", type=int, help="tokens per completion (256; on a GPU 1024)")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["native"],
                        help="our forms to compare; each compilation takes minutes")  # fmt: skip
    parser.add_argument("--peers", nargs="*", choices=["transformers", "llama.cpp"],
                        help="all that are installed")  # fmt: skip
    parser.add_argument("--weights", choices=MATRICES, default="stored")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print_peak_memory(options)
        return
    if options.peers is None:
        options.peers = ["transformers"]
        if llama_cpp_peer.is_installed():
            options.peers.append("llama.cpp")
    result: dict = {
        "date": date.today().isoformat(),
        "machine": processor(),
        "threads": options.threads,
        "weights": options.weights,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "llama_cpp_python": llama_cpp_peer.version(),
    }
    if options.device == "cuda":
        result["chameleon_7b"] = on_gpu(options.codes or 1024, options.rounds)
    else:
        machine = Machine()
        result["machine_rates"] = {
            "product_gflops": round(machine.flops / 1e9, 1),
            "read_gb_per_second": {
                f"{mb} MB": round(machine.read(1e6 * mb) / 1e9, 1) for mb in (8, 32, 128, 512)
            },
        }
        print_json(result)
        for size in options.sizes:
            result[size] = measure(size, machine, options)
    print(json.dumps(result, indent=2))  # noqa: T201
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    if options.device == "cpu":
        print_json({size: headline(result[size]) for size in options.sizes})


def processor() -> str:
    """Return the processor's name, where the system tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def reset_peak() -> None:
    """Let the peak of this process's memory begin at what it has now."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
