"""The server's own cost, and what many clients of it see.

*Overhead*: the same 64 requests for images, of which 16 run at once, go to an engine in this
process and through a server process, in alternating rounds; the first event of a lone request is
timed on both sides. *Load*: 1, 8 and 64 clients ask for texts, images and both, each as soon as its
last answer is there. *Soak* (``--soak SECONDS``): 64 clients, of which a third leaves at random and
some read a byte at a time; every whole answer must equal the one given alone, and memory, open
files and pages must not grow. The last line is JSON.

    python bench/serving.py runs/quickstart
    python bench/serving.py runs/quickstart --soak 600
"""

import argparse
import asyncio
import base64
import io
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import PIL.Image
import torch

import pardalis
from pardalis import Engine

PROMPTS = ["rocket", "owl", "red apple", "clock", "fish", "tree", "house", "guitar"]
TEXT = {"modalities": ["text"], "max_output_tokens": 32}
IMAGE = {"modalities": ["image"], "partial_images": 64}
BOTH = {"modalities": ["text", "image"], "max_output_tokens": 128}


class BusyError(Exception):
    """Too many requests wait."""


@contextmanager
def server(bundle: Path, slots: int) -> Iterator[tuple[str, int, int]]:
    """Start a server; yield its host, port and process."""
    command = [sys.executable, "-m", "pardalis", "serve", str(bundle), "--port", "0", "--json",
               "--name", "model", "--max-slots", str(slots)]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        host, _, port = json.loads(process.stdout.readline())["url"][7:].partition(":")
        yield host, int(port), process.pid
    finally:
        process.terminate()
        process.wait(120)


@asynccontextmanager
async def request(host: str, port: int, body: dict[str, Any]) -> Any:
    """Send a streaming request; yield the reader of its events."""
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 24)
    content = json.dumps({"model": "model", "stream": True, **body}).encode()
    head = f"POST /v1/responses HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    try:
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        await writer.drain()
        status = await reader.readline()
        if b" 429 " in status:
            raise BusyError
        if b" 200 " not in status:
            raise RuntimeError(status.decode())
        yield reader
    finally:
        writer.close()


async def answer(host: str, port: int, body: dict[str, Any]) -> dict[str, Any]:
    """Return the whole answer to a request, and when its first text and image row came."""
    began = time.perf_counter()
    found: dict[str, Any] = {}
    async with request(host, port, body) as reader:
        while line := await reader.readline():
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            kind = event["type"]
            if kind.endswith("output_text.delta"):
                found.setdefault("first_text_s", time.perf_counter() - began)
            elif kind.endswith(("partial_image", "image_generation_call.completed")):
                found.setdefault("first_row_s", time.perf_counter() - began)
            elif kind in ("response.completed", "response.incomplete"):
                response = event["response"]
                found["output"] = [i.get("content") or i["result"] for i in response["output"]]
                found["tokens"] = response["usage"]["output_tokens"]
                found["images"] = sum("result" in item for item in response["output"])
                break
    found["seconds"] = time.perf_counter() - began
    return found


def body_of(number: int, kinds: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    kind = kinds[number % len(kinds)]
    return {"input": PROMPTS[number % len(PROMPTS)], "seed": number, "temperature": 1.0, **kind}


# ── overhead ─────────────────────────────────────────────────────────────────────────────────────


def by_engine(engine: Engine, n: int) -> float:
    """Return tokens a second of n image requests at once."""
    began = time.perf_counter()
    completions = [
        engine.submit(PROMPTS[i % len(PROMPTS)], mode="image", chat=True, seed=i) for i in range(n)
    ]
    used = sum(completion.wait().usage.completion_tokens for completion in completions)
    return used / (time.perf_counter() - began)


def first_event_of_engine(engine: Engine) -> float:
    began = time.perf_counter()
    completion = engine.submit("owl", mode="text", chat=True, max_new_tokens=8)
    next(completion)
    seconds = time.perf_counter() - began
    completion.wait()
    return seconds


async def by_server(host: str, port: int, n: int) -> float:
    began = time.perf_counter()
    bodies = [body_of(i, ({**IMAGE, "partial_images": 0},)) for i in range(n)]
    found = await asyncio.gather(*(answer(host, port, body) for body in bodies))
    return sum(each["tokens"] for each in found) / (time.perf_counter() - began)


def overhead(bundle: Path, rounds: int, slots: int, n: int) -> dict[str, Any]:
    """Compare the engine alone with the server: n requests, of which as many run as have slots."""
    rates: dict[str, list[float]] = {"engine": [], "server": []}
    first: dict[str, list[float]] = {"engine": [], "server": []}
    lone = {"input": "owl", "seed": 0, "modalities": ["text"], "max_output_tokens": 8}
    with Engine(bundle, max_slots=slots) as engine, server(bundle, slots) as (host, port, _):
        by_engine(engine, n)
        asyncio.run(by_server(host, port, n))
        for _ in range(rounds):
            rates["engine"].append(by_engine(engine, n))
            rates["server"].append(asyncio.run(by_server(host, port, n)))
            first["engine"].append(first_event_of_engine(engine))
            found = asyncio.run(answer(host, port, lone))
            first["server"].append(found["first_text_s"])
    medians = {side: statistics.median(values) for side, values in rates.items()}
    return {
        "tokens_per_second": {side: round(value, 1) for side, value in medians.items()},
        "throughput_ratio": round(medians["server"] / medians["engine"], 3),
        "first_event_ms": {
            side: round(1000 * statistics.median(values), 1) for side, values in first.items()
        },
    }


# ── load ─────────────────────────────────────────────────────────────────────────────────────────


async def load(host: str, port: int, clients: int, each: int) -> dict[str, Any]:
    """Let clients ask one request after another, of mixed kinds."""
    found: list[dict[str, Any]] = []

    async def client(first: int) -> None:
        for number in range(first, first + each):
            one = await answer(host, port, body_of(number, (TEXT, IMAGE, BOTH)))
            found.append(one)

    began = time.perf_counter()
    await asyncio.gather(*(client(each * c) for c in range(clients)))
    seconds = time.perf_counter() - began
    images = [a["seconds"] / a["images"] for a in found if a["images"]]
    return {
        "answers_per_second": round(len(found) / seconds, 2),
        "tokens_per_second": round(sum(a["tokens"] for a in found) / seconds, 1),
        "first_text_s": percentiles([a["first_text_s"] for a in found if "first_text_s" in a]),
        "first_row_s": percentiles([a["first_row_s"] for a in found if "first_row_s" in a]),
        "per_image_s": percentiles(images),
    }


def percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        f"p{p}": round(ordered[min(len(ordered) - 1, len(ordered) * p // 100)], 3) for p in (50, 99)
    } if ordered else {}  # fmt: skip


# ── soak ─────────────────────────────────────────────────────────────────────────────────────────


def state_of(pid: int) -> dict[str, int]:
    status = Path(f"/proc/{pid}/status").read_text()
    rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return {"rss_mib": rss // 1024, "open_files": len(list(Path(f"/proc/{pid}/fd").iterdir()))}


async def soak(host: str, port: int, pid: int, clients: int, seconds: float) -> dict[str, Any]:
    """Let clients ask, leave and dawdle; compare each whole answer with the one given alone."""
    choices = [body_of(number, (TEXT, IMAGE, BOTH)) for number in range(24)]
    alone = [(await answer(host, port, body))["output"] for body in choices]
    counts = {"whole": 0, "left": 0, "slow": 0, "busy": 0, "wrong": 0, "failed": 0}
    deadline = time.monotonic() + seconds
    before = state_of(pid)
    states: list[dict[str, int]] = []

    async def client(number: int) -> None:
        generator = random.Random(number)
        while time.monotonic() < deadline:
            which = generator.randrange(len(choices))
            try:
                if number % 3 == 0:
                    async with request(host, port, choices[which]) as reader:
                        for _ in range(generator.randrange(6)):
                            await reader.readline()
                    counts["left"] += 1
                elif number % 16 == 1:
                    async with request(host, port, choices[which]) as reader:
                        for _ in range(5):
                            await reader.read(1)
                            await asyncio.sleep(1)
                    counts["slow"] += 1
                else:
                    found = await answer(host, port, choices[which])
                    counts["whole"] += 1
                    counts["wrong"] += differ(found["output"], alone[which])
            except BusyError:
                counts["busy"] += 1
                await asyncio.sleep(1)
            except (OSError, RuntimeError):
                counts["failed"] += 1

    async def watch() -> None:
        while time.monotonic() < deadline:
            await asyncio.sleep(10)
            states.append(state_of(pid))

    await asyncio.gather(watch(), *map(client, range(clients)))
    await asyncio.sleep(2)
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    metrics = (await reader.read()).decode()
    writer.close()
    active = next(
        line for line in metrics.splitlines() if line.startswith("pardalis_active_answers ")
    )
    return {
        **counts,
        "before": before,
        "middle": states[len(states) // 2] if states else {},
        "after": state_of(pid),
        "active_answers_after": float(active.split()[1]),
    }


def differ(found: list[Any], expected: list[Any]) -> bool:
    """Whether two answers differ; files of images name their time, so pixels are compared."""

    def plain(part: Any) -> Any:
        if isinstance(part, list):
            return [each["text"] for each in part]
        return PIL.Image.open(io.BytesIO(base64.b64decode(part))).tobytes()

    return list(map(plain, found)) != list(map(plain, expected))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--soak", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    pardalis.load(options.bundle)  # fails before anything else
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if options.soak:
        with server(options.bundle, 16) as (host, port, pid):
            result["soak"] = asyncio.run(soak(host, port, pid, 64, options.soak))
    else:
        result["overhead"] = overhead(options.bundle, options.rounds, slots=16, n=64)
        with server(options.bundle, 16) as (host, port, _):
            result["load"] = {
                clients: asyncio.run(load(host, port, clients, max(3, 96 // clients)))
                for clients in (1, 8, 64)
            }
    print(json.dumps(result, indent=2))  # noqa: T201
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    summary = result.get("overhead") or result["soak"]
    print(json.dumps(summary), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
