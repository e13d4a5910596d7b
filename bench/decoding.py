"""Decoding compared with transformers' Chameleon.

Both have the same weights, prompts, threads and sampling. The peer is ``generate`` in its fastest
form: with a dynamic or a static cache, the static one compiled or not. Its forward overwrites the
logits of the image tokens that its configuration names, so it is built without any, which also
saves it that work, and a logits processor restricts it to the tokens of one modality. Before any
time is taken, both must choose the same tokens greedily. Peak memory is measured in one process
for each side. The last line is JSON.

    python bench/decoding.py                              # two cores: both sizes
    python bench/decoding.py --sizes 15M --rounds 1 --codes 64
    python bench/decoding.py --device cuda                # one GPU: ours, Chameleon-7B's shape
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from itertools import count
from pathlib import Path
from typing import Literal

import torch
import transformers
from transformers import ChameleonForConditionalGeneration, LogitsProcessor
from transformers.generation import CompileConfig
from transformers.generation.streamers import BaseStreamer

from decoder import alternate, chameleon_like, peer_of, product_gflops
from pardalis.inference.config import EngineConfig
from pardalis.inference.generation import Guidance, SamplingConfig
from pardalis.inference.request import Request
from pardalis.inference.token_loop import TokenLoop
from pardalis.model import (
    AttentionConfig,
    Decoder,
    ModelConfig,
    SwiGLUConfig,
    chameleon_7b,
    initialise,
    tiny,
)
from pardalis.seeds import numpy_generator
from pardalis.tokens import Grammar, Limits, Vocabulary
from training import print_json, seconds_of, status_mib

VOCABULARY = Vocabulary.build(n_codes=8192, n_text=65_536 - 8 - 8192)
PROMPT, LONG_PROMPT, CODES = 32, 256, 256
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
    length = case.prompt + case.length + 2 + config.steps_per_sync + 2 * config.page_size
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


class Peer:
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


class Comparison:
    """Both sides on the weights of one size."""

    def __init__(self, config: ModelConfig, forms: Sequence[str]) -> None:
        self.config, self.forms = config, forms
        self.model = initialise(Decoder(config), seed=0).eval()
        self.peer = peer_of(self.model)
        self.loops: dict[tuple[str, int], TokenLoop] = {}

    def ours(self, form: str, case: Case) -> Ours:
        """Return our side; cases of as many sequences share its packed weights."""
        key = form, case.sequences
        if key not in self.loops:
            self.loops[key] = loop_for(self.model, ENGINES[form], case)
        return Ours(self.loops[key], case)

    def sides(self, case: Case) -> dict[str, dict[str, Ours | Peer]]:
        """Return every form of both sides for one case."""
        return {
            "pardalis": {form: self.ours(form, case) for form in self.forms},
            "transformers": {n: Peer(self.peer, options, case) for n, options in PEERS.items()},
        }

    def check(self, case: Case) -> int:
        """Return how many greedy tokens are equal on both sides; exits if one is not."""
        case = replace(case, sampling=GREEDY)
        [ours] = self.ours(self.forms[0], case).run(0)
        [peers] = Peer(self.peer, PEERS["static cache"], case).run(0)
        n = case.length if case.kind == "image" else case.length - 1  # a text ends with eos
        if ours[:n] != peers[:n]:
            raise SystemExit(f"The sides chose different tokens for {case}: {ours} and {peers}")
        return n

    def compare(self, cases: dict[str, Case], rounds: int) -> dict[str, dict[str, object]]:
        """Time the fastest form of each side on each case, all in alternating order."""
        chosen, forms_of = {}, {}
        for name, case in cases.items():
            for side, forms in self.sides(case).items():
                # The fastest form depends on the model's work, not on modality or sampling.
                key = side, case.batch, case.guided
                if key not in forms_of:
                    forms_of[key] = fastest(forms)
                chosen[name, side] = forms_of[key], forms[forms_of[key]]
        # Each case has its own prompts, so that none is found in a cache; both sides have the same.
        first = {name: 1000 * (i + 1) for i, name in enumerate(cases)}
        numbers = {key: count(first[key[0]]) for key in chosen}
        seconds = alternate(
            rounds,
            **{
                " | ".join(key): lambda key=key, side=side: side.run(next(numbers[key]))
                for key, (_, side) in chosen.items()
            },
        )
        result = {}
        for name, case in cases.items():
            forms = {side: chosen[name, side][0] for side in ("pardalis", "transformers")}
            taken = {side: seconds[f"{name} | {side}"] for side in forms}
            result[name] = summary(case, forms, taken)
            print_json({name: result[name]})
        return result

    def first_tokens(self, forms: dict[str, str], rounds: int) -> dict[str, float]:
        """Return milliseconds until the first token after a longer prompt, on each side."""
        case = Case("text", 1, length=8, prompt=LONG_PROMPT)
        sides = {
            "pardalis": Ours(loop_for(self.model, ENGINES[forms["pardalis"]], case), case),
            "transformers": Peer(self.peer, PEERS[forms["transformers"]], case),
        }
        found = {}
        for name, side in sides.items():
            taken = [side.seconds_to_first(number) for number in range(WARM_UPS + rounds)]
            found[name] = round(1e3 * statistics.median(taken[WARM_UPS:]), 1)
        return found


def fastest(forms: dict[str, Ours] | dict[str, Peer]) -> str:
    """Return the name of the form that takes least time, after warm-up of all."""
    seconds = {}
    for name, side in forms.items():
        warm_ups = WARM_UPS if "compiled" in name else 1
        for number in range(warm_ups):
            side.run(number)
        seconds[name] = seconds_of(lambda side=side: side.run(WARM_UPS))
    return min(seconds, key=lambda name: seconds[name])


def summary(case: Case, forms: dict[str, str], taken: dict[str, list[float]]) -> dict[str, object]:
    """Return medians and spread of both sides, and their ratio."""
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
        "ratio": round(medians["transformers"] / medians["pardalis"], 2),
    }


@dataclass(frozen=True, slots=True)
class Work:
    """The least work of a step at the middle of a completion."""

    bytes: float  # weights, and the mean keys and values, each read once
    flops: float

    @classmethod
    def of(cls, config: ModelConfig, case: Case, head: range, width: int = 4) -> "Work":
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
            bytes=width * (multiplied + keys_and_values),
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
    machine: Machine, config: ModelConfig, cases: dict[str, Case], found: dict[str, dict]
) -> dict[str, dict[str, object]]:
    """Return the share of the machine's limit that each case reaches, on our side."""
    lines = {}
    for name, case in cases.items():
        head = VOCABULARY.image if case.kind == "image" else VOCABULARY.text
        work = Work.of(config, case, head)
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


def peak_memory(side: str, size: str, form: str, case: Case) -> int:
    """Run a case once in its own process; return the peak in MiB above the imports."""
    what = [side, size, form, case.kind, str(case.batch), str(case.length)]
    command = [sys.executable, __file__, "--memory-of", *what]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def print_peak_memory(
    side: str, size: str, form: str, kind: Literal["image", "text"], batch: str, length: str
) -> None:
    before, case = status_mib("VmRSS"), Case(kind, int(batch), int(length))
    runner: Ours | Peer
    if side == "pardalis":
        model = initialise(Decoder(SIZES[size]), seed=0).eval()
        runner = Ours(loop_for(model, ENGINES[form], case), case)
    else:
        runner = Peer(chameleon_like(SIZES[size]).eval(), PEERS[form], case)
    runner.run(0)
    print(round(status_mib("VmHWM") - before))  # noqa: T201


def cases_of(codes: int) -> dict[str, Case]:
    return {
        "image, batch 1": Case("image", 1, codes),
        "image, batch 1, guided": Case("image", 1, codes, guided=True),
        "image, batch 1, release's sampling": Case("image", 1, codes, RELEASE),
        "text, batch 1": Case("text", 1, codes),
        "text, batch 1, release's sampling": Case("text", 1, codes, RELEASE),
        "image, batch 16": Case("image", 16, codes),
        "text, batch 16": Case("text", 16, codes),
    }


def measure(
    size: str, machine: Machine, rounds: int, codes: int, engines: Sequence[str]
) -> dict[str, object]:
    """Compare both sides at one size."""
    comparison, cases = Comparison(SIZES[size], engines), cases_of(codes)
    equal = {
        name: comparison.check(cases[name])
        for name in ("image, batch 1", "image, batch 1, guided", "text, batch 1")
    }
    found = comparison.compare(cases, rounds)
    forms = {name: found[name]["forms"] for name in found}
    memory = {
        name: {side: peak_memory(side, size, form, cases[name]) for side, form in sides.items()}
        for name, sides in forms.items()
        if name in ("image, batch 1", "image, batch 16")
    }
    guided, unguided = (
        found[name]["seconds_of_batch"] for name in ("image, batch 1, guided", "image, batch 1")
    )
    return {
        "parameters": sum(p.numel() for p in comparison.model.parameters()),
        "equal_greedy_tokens": equal,
        "cases": found,
        "guided_cost_b1": {side: round(guided[side] / unguided[side], 2) for side in guided},
        "share_of_limit": shares(machine, SIZES[size], cases, found),
        "first_token_ms": comparison.first_tokens(forms["text, batch 1"], rounds),
        "peak_mib_above_imports": memory,
    }


def headline(result: dict) -> dict[str, float]:
    cases = result["cases"]
    return {
        "image_b1_ratio": cases["image, batch 1"]["ratio"],
        "image_b16_ratio": cases["image, batch 16"]["ratio"],
        "text_b1_ratio": cases["text, batch 1"]["ratio"],
        "guided_cost_b1": result["guided_cost_b1"]["pardalis"],
    }


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
        least = Work.of(config, case, case.allowed, width=2).bytes / copied
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
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print_peak_memory(*options.memory_of)
        return
    result: dict = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
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
        sizes = {
            size: measure(size, machine, options.rounds, options.codes or CODES, options.engines)
            for size in options.sizes
        }
        result |= sizes
    print(json.dumps(result, indent=2))  # noqa: T201
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    if options.device == "cpu":
        print_json({size: headline(result[size]) for size in options.sizes})


if __name__ == "__main__":
    main()
