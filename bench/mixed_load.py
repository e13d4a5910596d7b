"""Requests of all kinds that arrive at random, on one engine: what mixing them costs.

Sixty-four requests (text, images, images with text after them, guided in both forms, greedy and
sampled, of random lengths) come at random moments while the engine is busy. The same requests are
then answered kind by kind, each kind in batches by itself; the total times are compared. Whoever
waits longest is looked at by kind: how many times longer an answer took than alone, and how long
it waited for its first id. The answers have to be the same ids in both runs.

The moments are counted in ids written, not in seconds, so they are the same on every machine.
The last line is JSON.

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
from training import say

ROWS = 16
ARRIVAL_SHARE = 0.5  # of all ids: when the last request has come, about so many are written


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests that ask for the same."""

    name: str
    sampling: SamplingConfig
    draws: bool = False  # the prompt ends with begin_image
    text: bool = True  # text is written, after the image if it draws
    guidance: ImageGuidance | None = None
    with_image: bool = False  # the prompt holds a whole image

    def request(self, generator: np.random.Generator, codes: int, seed: int) -> Request:
        """Draw a prompt and a length."""
        words = generator.integers(
            VOCABULARY.text.start, VOCABULARY.text.stop, generator.integers(8, 64)
        )
        ids = [VOCABULARY.bos_id, *words.tolist()]
        if self.with_image:
            drawn = generator.integers(VOCABULARY.image.start, VOCABULARY.image.stop, codes)
            ids += [VOCABULARY.begin_image_id, *drawn.tolist(), VOCABULARY.end_image_id]
        budget = int(generator.integers(16, 200)) if self.text else 0
        if self.draws:
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
    Kind("image, greedy", GREEDY, draws=True, text=False),
    Kind("image, sampled", PLAIN, draws=True, text=False),
    Kind("image, then text", RELEASE, draws=True),
    Kind("text about an image", RELEASE, with_image=True),
    Kind("guided", RELEASE, draws=True, text=False, guidance=Guidance(text=SCALE)),
    Kind("guided by images too", RELEASE, draws=True, text=False, with_image=True,
         guidance=Guidance(text=SCALE, image=1.2)),
]  # fmt: skip


@dataclass(slots=True)
class Answer:
    """What became of one request, with moments in seconds."""

    came: float
    ids: list[int] = field(default_factory=list)
    first: float | None = None
    done: float | None = None

    @property
    def seconds(self) -> float:
        assert self.done is not None
        return self.done - self.came


def play(
    loop: TokenLoop, requests: list[Request], arrivals: list[int]
) -> tuple[float, list[Answer]]:
    """Submit each request once so many ids are written; return the total time and the answers."""
    coming = deque(zip(arrivals, requests, strict=True))
    answers: dict[int, Answer] = {}
    written, start = 0, time.perf_counter()
    while coming or not loop.idle:
        while coming and (coming[0][0] <= written or loop.idle):
            key = loop.submit(coming.popleft()[1])
            answers[key] = Answer(time.perf_counter())
        for progress in loop.step():
            now, answer = time.perf_counter(), answers[progress.key]
            answer.ids += progress.ids
            written += len(progress.ids)
            if progress.ids and answer.first is None:
                answer.first = now
            if progress.finished:
                answer.done = now
    return time.perf_counter() - start, list(answers.values())


def measure(size: str, n_requests: int, codes: int, config: EngineConfig, seed: int) -> dict:
    """Answer the requests mixed, by kind, and a few alone."""
    model = initialise(Decoder(SIZES[size]), seed=0).eval()
    generator = numpy_generator(seed, "mixed load")
    kinds = [KINDS[i % len(KINDS)] for i in range(n_requests)]
    generator.shuffle(kinds)
    requests = [k.request(generator, codes, derive(seed, i)) for i, k in enumerate(kinds)]
    total_room = sum(request.limits.max_new_tokens for request in requests)
    moments = generator.uniform(0, ARRIVAL_SHARE * total_room, n_requests)
    arrivals = [0, *sorted(int(m) for m in moments[1:])]

    def new_loop() -> TokenLoop:
        return TokenLoop(model, Grammar(VOCABULARY, codes), config)

    for kind in KINDS:  # warm up
        play(new_loop(), [kind.request(generator, codes, 0)], [0])
    alone = {kind.name: alone_seconds(new_loop, kind, kinds, requests) for kind in KINDS}
    loop = new_loop()
    mixed, answers = play(loop, requests, arrivals)
    apart, same = 0.0, 0
    for kind in KINDS:
        chosen = [i for i, k in enumerate(kinds) if k is kind]
        seconds, of_kind = play(new_loop(), [requests[i] for i in chosen], [0] * len(chosen))
        apart += seconds
        same += sum(a.ids == answers[i].ids for i, a in zip(chosen, of_kind, strict=True))
    return {
        "seconds_mixed": round(mixed, 2),
        "seconds_by_kind": round(apart, 2),
        "mixed_over_by_kind": round(mixed / apart, 2),
        "same_ids": f"{same} of {n_requests}",
        **counts(loop.statistics, answers, config),
        "by_kind": {kind.name: line(kind, kinds, answers, alone[kind.name]) for kind in KINDS},
    }


def alone_seconds(new_loop, kind: Kind, kinds: list[Kind], requests: list[Request]) -> float:
    """Return the seconds an id of a request of a kind takes when nobody else is there."""
    request = next(r for r, k in zip(requests, kinds, strict=True) if k is kind)
    seconds, [answer] = play(new_loop(), [request], [0])
    return seconds / len(answer.ids)


def counts(
    statistics_: LoopStatistics, answers: list[Answer], config: EngineConfig
) -> dict[str, object]:
    """Return how full the passes were."""
    written = sum(len(answer.ids) for answer in answers)
    return {
        "writable_ids": written,
        "passes": statistics_.passes,
        "ids_per_pass": round(written / statistics_.passes, 2),
        "utilisation": round(written / (statistics_.passes * config.max_slots), 2),
        "preempted": statistics_.preempted,
        "reused_ids": statistics_.reused_ids,
    }


def line(kind: Kind, kinds: list[Kind], answers: list[Answer], alone: float) -> dict[str, object]:
    """Return the waits of one kind: to the first id, and of an answer against alone."""
    of_kind = [a for a, k in zip(answers, kinds, strict=True) if k is kind]
    slower = [answer.seconds / (alone * len(answer.ids)) for answer in of_kind]
    first = [answer.first - answer.came for answer in of_kind if answer.first is not None]
    return {
        "requests": len(of_kind),
        "alone_ms_per_id": round(1e3 * alone, 2),
        "times_slower": round(statistics.median(slower), 1),
        "times_slower_at_worst": round(max(slower), 1),
        "first_id_seconds": round(statistics.median(first), 2),
        "first_id_seconds_at_worst": round(max(first), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="15M")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.requests < len(KINDS):
        parser.error(f"there are {len(KINDS)} kinds: ask for as many requests at least")
    config = EngineConfig(max_slots=options.rows, speculation_window=1, compile=options.compile)
    result = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "size": options.size,
        "rows": options.rows,
        **measure(options.size, options.requests, options.codes, config, options.seed),
    }
    text = json.dumps(result, indent=2)
    print(text)  # noqa: T201
    if options.out:
        options.out.write_text(text + "\n")
    worst = max(kind["times_slower_at_worst"] for kind in result["by_kind"].values())
    say(
        {
            "mixed_over_by_kind": result["mixed_over_by_kind"],
            "utilisation": result["utilisation"],
            "times_slower_at_worst": worst,
        }
    )


if __name__ == "__main__":
    main()
