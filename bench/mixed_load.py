"""A mixed load of requests that arrive at random, compared with separate batches of each kind.

Sixty-four requests (text, images, images with text after them, guided in both forms, greedy and
sampled, of random lengths) arrive at random times while the engine is busy. The same requests are
then completed kind by kind, each kind in its own batches, and the total times are compared. For
each kind the script reports the time of a completion relative to a single request on an idle
engine, and the time to its first token. Both runs must generate the same tokens.

Arrival times are counted in generated tokens, not in seconds, so they are the same on every
machine. The last line is JSON.

    python bench/mixed_load.py
    python bench/mixed_load.py --size 120M --requests 16 --codes 64
"""

import argparse
import json
import platform
import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import torch

from decoding import GREEDY, PLAIN, RELEASE, SCALE, SIZES, VOCABULARY
from pardalis.inference import EngineConfig, Guidance, ImageGuidance, Request, SamplingConfig
from pardalis.inference.token_loop import LoopStatistics, TokenLoop
from pardalis.model import Decoder, initialise
from pardalis.seeds import derive, numpy_generator
from pardalis.tokens import Grammar, Limits
from training import print_json

SLOTS = 16
ARRIVAL_SHARE = 0.5  # share of all tokens that are generated when the last request arrives


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request."""

    name: str
    sampling: SamplingConfig
    image: bool = False  # generates an image: the prompt ends with begin_image
    text: bool = True  # generates text, after the image if there is one
    guidance: ImageGuidance | None = None
    with_image: bool = False  # the prompt contains an image

    def request(self, generator: np.random.Generator, codes: int, seed: int) -> Request:
        """Sample a prompt and a length."""
        words = generator.integers(
            VOCABULARY.text.start, VOCABULARY.text.stop, generator.integers(8, 64)
        )
        ids = [VOCABULARY.bos_id, *words.tolist()]
        if self.with_image:
            given = generator.integers(VOCABULARY.image.start, VOCABULARY.image.stop, codes)
            ids += [VOCABULARY.begin_image_id, *given.tolist(), VOCABULARY.end_image_id]
        budget = int(generator.integers(16, 200)) if self.text else 0
        if self.image:
            ids.append(VOCABULARY.begin_image_id)
            budget += codes + 1
        return Request(
            prompt_ids=tuple(ids),
            limits=Limits(max_new_tokens=budget, text=self.text, max_images=0),
            text=self.sampling, image=self.sampling, guidance=self.guidance, seed=seed,
        )  # fmt: skip


KINDS = [
    Kind("text, greedy", GREEDY),
    Kind("text, sampled", RELEASE),
    Kind("image, greedy", GREEDY, image=True, text=False),
    Kind("image, sampled", PLAIN, image=True, text=False),
    Kind("image, then text", RELEASE, image=True),
    Kind("text about an image", RELEASE, with_image=True),
    Kind("guided", RELEASE, image=True, text=False, guidance=Guidance(text=SCALE)),
    Kind("image-guided", RELEASE, image=True, text=False, with_image=True,
         guidance=Guidance(text=SCALE, image=1.2)),
]  # fmt: skip


@dataclass(slots=True)
class Completion:
    """The tokens of one request and its times, in seconds."""

    arrived: float
    ids: list[int] = field(default_factory=list)
    first: float | None = None
    done: float | None = None

    @property
    def seconds(self) -> float:
        assert self.done is not None
        return self.done - self.arrived


def run(
    loop: TokenLoop, requests: list[Request], arrivals: list[int]
) -> tuple[float, list[Completion]]:
    """Submit each request after so many generated tokens; return the total time and completions."""
    coming = deque(zip(arrivals, requests, strict=True))
    completions: dict[int, Completion] = {}
    n_generated, start = 0, time.perf_counter()
    while coming or not loop.idle:
        while coming and (coming[0][0] <= n_generated or loop.idle):
            key = loop.submit(coming.popleft()[1])
            completions[key] = Completion(time.perf_counter())
        for progress in loop.step():
            now, completion = time.perf_counter(), completions[progress.key]
            completion.ids += progress.ids
            n_generated += len(progress.ids)
            if progress.ids and completion.first is None:
                completion.first = now
            if progress.finished:
                completion.done = now
    return time.perf_counter() - start, list(completions.values())


def measure(size: str, n_requests: int, codes: int, config: EngineConfig, seed: int) -> dict:
    """Complete the requests mixed, by kind, and one of each kind on an idle engine."""
    model = initialise(Decoder(SIZES[size]), seed=0).eval()
    generator = numpy_generator(seed, "mixed load")
    kinds = [KINDS[i % len(KINDS)] for i in range(n_requests)]
    generator.shuffle(kinds)
    requests = [k.request(generator, codes, derive(seed, i)) for i, k in enumerate(kinds)]
    total_budget = sum(request.limits.max_new_tokens for request in requests)
    times = generator.uniform(0, ARRIVAL_SHARE * total_budget, n_requests)
    arrivals = [0, *sorted(int(t) for t in times[1:])]

    def new_loop() -> TokenLoop:
        return TokenLoop(model, Grammar(VOCABULARY, codes), config)

    for kind in KINDS:  # warm-up
        run(new_loop(), [kind.request(generator, codes, 0)], [0])
    single = {kind.name: single_seconds(new_loop, kind, kinds, requests) for kind in KINDS}
    loop = new_loop()
    mixed, completions = run(loop, requests, arrivals)
    separate, same = 0.0, 0
    for kind in KINDS:
        chosen = [i for i, k in enumerate(kinds) if k is kind]
        seconds, of_kind = run(new_loop(), [requests[i] for i in chosen], [0] * len(chosen))
        separate += seconds
        same += sum(c.ids == completions[i].ids for i, c in zip(chosen, of_kind, strict=True))
    return {
        "seconds_mixed": round(mixed, 2),
        "seconds_by_kind": round(separate, 2),
        "mixed_over_by_kind": round(mixed / separate, 2),
        "equal_completions": f"{same} of {n_requests}",
        **counts(loop.statistics, completions, config),
        "by_kind": {kind.name: line(kind, kinds, completions, single[kind.name]) for kind in KINDS},
    }


def single_seconds(new_loop, kind: Kind, kinds: list[Kind], requests: list[Request]) -> float:
    """Return the seconds per token of one request of a kind on an idle engine."""
    request = next(r for r, k in zip(requests, kinds, strict=True) if k is kind)
    seconds, [completion] = run(new_loop(), [request], [0])
    return seconds / len(completion.ids)


def counts(
    statistics_: LoopStatistics, completions: list[Completion], config: EngineConfig
) -> dict[str, object]:
    """Return the counts of a run and the utilisation of its slots."""
    n_generated = sum(len(completion.ids) for completion in completions)
    return {
        "generated_tokens": n_generated,
        "passes": statistics_.passes,
        "tokens_per_pass": round(n_generated / statistics_.passes, 2),
        "utilisation": round(n_generated / (statistics_.passes * config.max_slots), 2),
        "preempted": statistics_.preempted,
        "reused_tokens": statistics_.reused_tokens,
    }


def line(
    kind: Kind, kinds: list[Kind], completions: list[Completion], single: float
) -> dict[str, object]:
    """Return the latency of one kind: time to first token, and time relative to ``single``."""
    of_kind = [c for c, k in zip(completions, kinds, strict=True) if k is kind]
    slower = [c.seconds / (single * len(c.ids)) for c in of_kind]
    first = [c.first - c.arrived for c in of_kind if c.first is not None]
    return {
        "requests": len(of_kind),
        "single_ms_per_token": round(1e3 * single, 2),
        "times_slower": round(statistics.median(slower), 1),
        "times_slower_at_worst": round(max(slower), 1),
        "first_token_seconds": round(statistics.median(first), 2),
        "first_token_seconds_at_worst": round(max(first), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="15M")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--slots", type=int, default=SLOTS)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.requests < len(KINDS):
        parser.error(f"--requests must be at least {len(KINDS)}, one of each kind")
    config = EngineConfig(max_slots=options.slots, speculation_window=1, compile=options.compile)
    result = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "size": options.size,
        "slots": options.slots,
        **measure(options.size, options.requests, options.codes, config, options.seed),
    }
    text = json.dumps(result, indent=2)
    print(text)  # noqa: T201
    if options.out:
        options.out.write_text(text + "\n")
    worst = max(kind["times_slower_at_worst"] for kind in result["by_kind"].values())
    print_json(
        {
            "mixed_over_by_kind": result["mixed_over_by_kind"],
            "utilisation": result["utilisation"],
            "times_slower_at_worst": worst,
        }
    )


if __name__ == "__main__":
    main()
