"""Ablations of the engine: the same requests with one part changed at a time.

The parts are measured on random weights of the sizes of decoding.py, in alternating order.
Speculative decoding is measured on a trained bundle only, since the codes of random weights are
far too easy or far too hard to guess. Every window must generate the same tokens.

    python bench/decoding_parts.py --sizes 15M
    python bench/decoding_parts.py --bundle runs/quickstart/bundle
"""

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import replace
from datetime import date
from itertools import count
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

import pardalis
from decoder import alternate
from decoding import GREEDY, PLAIN, RELEASE, SCALE, SIZES, Case, Ours, loop_for
from pardalis.bundle import Bundle
from pardalis.inference import EngineConfig, Request, TokenLoop, to_request
from pardalis.inference import weights as engine_weights
from pardalis.model import Decoder, initialise
from training import print_json

BASE = EngineConfig(speculation_window=1)
WORDS = ["rocket", "umbrella", "volcano", "tulip", "sailboat", "snowflake", "cactus", "scissors"]
WINDOWS = (1, 2, 4, 8, 16)
WARM_UPS = 2


def stored_layout() -> AbstractContextManager[object]:
    """Keep weights as they are stored instead of copying them into oneDNN's layout."""
    return patch.object(engine_weights, "_has_layout", lambda weight: False)


def whole_head() -> AbstractContextManager[object]:
    """Compute all logits at every step, and drop those that the grammar forbids."""

    def image(head: engine_weights.Head, hidden: Tensor) -> Tensor:
        return head.all(hidden)[:, : head.n_codes]

    return patch.object(engine_weights.Head, "image", image)


# Name: the engine's configuration, and a patch of its code while it is built and runs.
PARTS: dict[str, tuple[EngineConfig, Callable[[], AbstractContextManager[object]]]] = {
    "unchanged": (BASE, nullcontext),
    "all logits at every step": (BASE, whole_head),
    "weights as stored": (BASE, stored_layout),
    "host synchronisation at every step": (replace(BASE, steps_per_sync=1), nullcontext),
    "host synchronisation every 32 steps": (replace(BASE, steps_per_sync=32), nullcontext),
    "weights in 8 bits": (replace(BASE, weights="int8"), nullcontext),
    "compiled": (replace(BASE, compile=True), nullcontext),
}


def parts(size: str, batch: int, codes: int, rounds: int) -> dict[str, dict[str, object]]:
    """Time a batch of images with each part changed."""
    model, case = initialise(Decoder(SIZES[size]), seed=0).eval(), Case("image", batch, codes)
    runs = {}
    for name, (config, change) in PARTS.items():
        with change():
            side = Ours(loop_for(model, config, case), case)
        runs[name] = repeated(side, change)
        for _ in range(WARM_UPS):
            runs[name]()
    seconds = alternate(rounds, **runs)
    base = statistics.median(seconds["unchanged"])
    return {
        name: {
            "ms_per_step": round(1e3 * statistics.median(taken) / codes, 3),
            "range": [round(1e3 * s / codes, 3) for s in (min(taken), max(taken))],
            "times": round(statistics.median(taken) / base, 2),
        }
        for name, taken in seconds.items()
    }


def repeated(
    side: Ours, change: Callable[[], AbstractContextManager[object]]
) -> Callable[[], None]:
    """Return a run of a side, with new prompts each time."""
    numbers = count()

    def run() -> None:
        with change():
            side.run(next(numbers))

    return run


def reuse(size: str, rounds: int) -> dict[str, float]:
    """Return milliseconds to the first token after a new prompt and after a cached one."""
    case = Case("text", 1, length=8, prompt=512)
    side = Ours(loop_for(initialise(Decoder(SIZES[size]), seed=0).eval(), BASE, case), case)
    side.seconds_to_first(0)
    new = [side.seconds_to_first(number) for number in range(1, rounds + 1)]
    cached = [side.seconds_to_first(rounds) for _ in range(rounds)]
    return {
        "prompt_tokens": case.prompt,
        "new_ms": round(1e3 * statistics.median(new), 1),
        "cached_ms": round(1e3 * statistics.median(cached), 1),
    }


def speculation(folder: Path, rounds: int) -> list[dict[str, object]]:
    """Generate images one at a time with each window; exits if a window changes a token."""
    bundle = pardalis.load(folder)
    samplings = {"greedy": GREEDY, "release's": RELEASE, "whole distribution": PLAIN}
    lines = []
    for name, sampling in samplings.items():
        for scale in (None, SCALE):
            requests = [
                to_request(
                    bundle, word, mode="image", image_temperature=sampling.temperature,
                    image_top_k=sampling.top_k, image_top_p=sampling.top_p,
                    guidance=scale or 1.0, seed=number,
                )
                for number, word in enumerate(WORDS)
            ]  # fmt: skip
            for line in windows(bundle, requests, rounds):
                lines.append({"sampling": name, "guidance": scale, **line})
                print_json(lines[-1])
    return lines


def windows(bundle: Bundle, requests: list[Request], rounds: int) -> list[dict[str, object]]:
    """Return passes and time per image and the share of right guesses for each window."""
    slots = 1 if requests[0].guidance is None else 2
    loops = {
        window: TokenLoop(
            bundle.model,
            bundle.codec.grammar,
            EngineConfig(speculation_window=window, max_slots=slots),
        )
        for window in WINDOWS
    }
    completions = {window: one_by_one(loop, requests) for window, loop in loops.items()}
    if any(ids != completions[1] for ids in completions.values()):
        raise SystemExit("A speculation window changed the generated tokens.")
    counted = {window: copy(loop.statistics) for window, loop in loops.items()}
    runs = {str(w): lambda loop=loop: one_by_one(loop, requests) for w, loop in loops.items()}
    taken = {int(w): statistics.median(s) for w, s in alternate(rounds, **runs).items()}
    return [
        {
            "window": window,
            "passes_per_image": round(counts.passes / len(requests), 1),
            "acceptance_rate": round(counts.accepted / max(counts.guessed, 1), 2),
            "ms_per_image": round(1e3 * taken[window] / len(requests), 1),
            "times_faster": round(taken[1] / taken[window], 2),
        }
        for window, counts in counted.items()
    ]


def one_by_one(loop: TokenLoop, requests: list[Request]) -> list[list[int]]:
    """Complete one request after the other."""
    completions = []
    for request in requests:
        loop.submit(request)
        ids: list[int] = []
        while not loop.idle:
            for progress in loop.step():
                ids += progress.ids
        completions.append(ids)
    return completions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--bundle", type=Path, help="trained bundle: only speculative decoding")
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result: dict[str, object] = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if options.bundle:
        result["speculation"] = speculation(options.bundle, options.rounds)
    else:
        for size in options.sizes:
            for batch in (1, 16):
                name = f"{size}, batch {batch}"
                result[name] = parts(size, batch, options.codes, options.rounds)
                print_json({name: result[name]})
            result[f"{size}, time to first token"] = reuse(size, options.rounds)
    print(json.dumps(result, indent=2))  # noqa: T201
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
