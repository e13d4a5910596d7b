"""A training step compared with transformers' Chameleon in a plain training loop.

Both have the same weights, rows, threads and dtype. A step is a whole update: building the batch,
forward and backward, gradient clipping, a fused AdamW. The peer's loss is cross-entropy on its
hidden states and its head, since its own loss masks image tokens. Each row holds one document, so
that both have the same attention mask. Peak memory is measured in one process for each side. The
last line is JSON.

    python bench/training.py                  # two cores: the comparison, and where time goes
    python bench/training.py --growth         # time per token by context, batch, depth and ranks
    python bench/training.py --device cuda    # one GPU: 1B parameters at 4,096 positions, bfloat16
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from decoder import alternate, peer_of, product_gflops
from pardalis.data import Loader, Shards, ShardWriter
from pardalis.data.prefetch import Prefetcher
from pardalis.model import (
    AttentionConfig,
    Decoder,
    ModelConfig,
    SwiGLUConfig,
    initialise,
    model_costs,
    swiglu_width,
)
from pardalis.objectives.linear_cross_entropy import chunked_cross_entropy
from pardalis.parallel import Layout, ParallelConfig, join, layout_of, parallelise
from pardalis.parallel.vocabulary import VocabularyShard
from pardalis.tokens import Encoded
from pardalis.train.decoder_task import DecoderTask, DecoderTrainConfig
from pardalis.train.optimizer import AdamWConfig
from pardalis.train.schedule import ConstantConfig, WarmupCosineConfig

LEARNING_RATE = 1e-4
H200_BFLOAT16 = 989e12  # dense, by the datasheet
LOSS_TOLERANCE = 1e-5  # relative, between the first losses of both sides


@dataclasses.dataclass(frozen=True)
class Shape:
    """A decoder and the batch of a step."""

    vocab_size: int
    d_model: int
    n_layers: int
    rows: int
    length: int
    d_head: int = 64

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(
            vocab_size=self.vocab_size,
            context=self.length,
            d_model=self.d_model,
            n_layers=self.n_layers,
            attention=AttentionConfig(n_heads=self.d_model // self.d_head),
            feed_forward=SwiGLUConfig(width=swiglu_width(self.d_model)),
        )


SHAPES = {
    "small": Shape(65_536, 256, 4, rows=8, length=512),  # narrow, with Chameleon's vocabulary
    "medium": Shape(16_384, 512, 8, rows=4, length=512),
}
QUICKSTART = Shape(3080, 128, 4, rows=4, length=256, d_head=32)
GROWTH = Shape(4096, 256, 4, rows=8, length=256)
ON_GPU = Shape(65_536, 2048, 16, rows=8, length=4096, d_head=128)  # 1.09 billion parameters


@contextmanager
def loader_of(shape: Shape, steps: int = 16):
    """Write shards of random tokens, one document per row, and open a loader on them."""
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(Path(folder), shape.vocab_size, tokens_per_shard=1 << 24)
        for number in range(steps * shape.rows):
            ids = generator.integers(8, shape.vocab_size, shape.length)
            writer.add(str(number), Encoded.of(ids))
        writer.finish(shape.length, codec="random")
        shards = {"random": Shards.open(Path(folder))}
        yield Loader(shards, {"random": 1.0}, shape.length, shape.rows, seed=0, pad_id=1)


def our_task(shape: Shape, loader: Loader, model: Decoder, **options) -> DecoderTask:
    """Build the task that ``pardalis train`` runs."""
    layout = options.pop("layout", None)
    config = DecoderTrainConfig(
        batch_rows=shape.rows,
        schedule=ConstantConfig(learning_rate=LEARNING_RATE),
        optimizer=AdamWConfig(fused=True),
        **options,
    )
    modalities = {"image": range(8, 8 + shape.vocab_size // 8)}
    return DecoderTask(
        model,
        loader,
        config.objective.build(modalities),
        config,
        total_steps=10_000,
        modalities=modalities,
        layout=layout,
    )


def our_step(shape: Shape, loader: Loader, model: Decoder) -> Callable[[], torch.Tensor]:
    """Return a function that runs the next update and returns its loss."""
    task, step = our_task(shape, loader, model), iter(range(10_000))
    return lambda: task.step(next(step))["loss"]


def peer_step(shape: Shape, loader: Loader, model: Decoder) -> Callable[[], torch.Tensor]:
    """Return the same for the peer, in a plain training loop."""
    peer = peer_of(model).train()
    optimizer = torch.optim.AdamW(
        peer.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    batches, steps = Prefetcher(loader), iter(range(10_000))

    def step() -> torch.Tensor:
        batch = batches.batch(next(steps))
        targets = batch.targets.masked_fill(batch.weights == 0, -100)
        hidden = peer.model(input_ids=batch.ids, use_cache=False).last_hidden_state
        loss = F.cross_entropy(peer.lm_head(hidden).flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


SIDES = {"pardalis": our_step, "transformers": peer_step}


def compare(shape: Shape, rounds: int) -> dict[str, object]:
    """Time both sides in alternating order; exits if their first losses differ."""
    with loader_of(shape) as loader:
        model = initialise(Decoder(shape.config), seed=0)
        runs = {name: build(shape, loader, model) for name, build in SIDES.items()}
        losses: dict[str, list[float]] = {name: [] for name in runs}
        seconds = alternate(
            rounds, **{n: lambda n=n: losses[n].append(float(runs[n]())) for n in runs}
        )
    first = {name: values[0] for name, values in losses.items()}
    difference = abs(first["pardalis"] / first["transformers"] - 1)
    if difference > LOSS_TOLERANCE:
        raise SystemExit(f"The first losses differ by {difference:.1e}, relatively: {first}")
    flops = model_costs(shape.config).train_flops_per_token * shape.tokens
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "shape": dataclasses.asdict(shape),
        "parameters": model_costs(shape.config).parameters,
        "first_losses": first,
        "tokens_per_second": {n: round(shape.tokens / s) for n, s in medians.items()},
        "range": {
            n: [round(shape.tokens / max(s)), round(shape.tokens / min(s))]
            for n, s in seconds.items()
        },
        "tokens_ratio": round(medians["transformers"] / medians["pardalis"], 2),
        "gflops": {n: round(flops / s / 1e9, 1) for n, s in medians.items()},
    }


def status_mib(name: str) -> float:
    """Return a memory field of this process's status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":"))


def peak_memory(side: str, shape: Shape) -> dict[str, int]:
    """Run two updates in their own process; return MiB after imports and at the peak."""
    command = [sys.executable, __file__, "--memory-of", side, json.dumps(dataclasses.asdict(shape))]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def print_peak_memory(side: str, shape: Shape) -> None:
    before = status_mib("VmRSS")
    with loader_of(shape) as loader:
        step = SIDES[side](shape, loader, initialise(Decoder(shape.config), seed=0))
        for _ in range(2):  # the optimizer creates its state in the first
            step()
    peak = status_mib("VmHWM")
    print_json(
        {"imports": round(before), "peak": round(peak), "above_imports": round(peak - before)}
    )


def batch_shares(shape: Shape, steps: int) -> dict[str, float]:
    """Return the shares of a step spent building its batch and waiting for it."""
    with loader_of(shape) as loader:
        step = our_step(shape, loader, initialise(Decoder(shape.config), seed=0))
        prefetcher = Prefetcher(loader)
        prefetcher.batch(0)
        step()
        building, waiting, whole = [], [], []
        for number in range(1, steps + 1):
            whole.append(seconds_of(step))
            waiting.append(seconds_of(lambda n=number: prefetcher.batch(n)))
            building.append(seconds_of(lambda n=number: loader.batch(n)))
    step_seconds = statistics.median(whole)
    return {
        "building": round(statistics.median(building) / step_seconds, 5),
        "waiting": round(statistics.median(waiting) / step_seconds, 5),
    }


def seconds_of(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def seconds_of_step(shape: Shape, steps: int = 3, **options) -> float:
    """Return the median time of our step, after a warm-up step."""
    model = initialise(Decoder(shape.config), seed=0)
    if "layout" in options:
        parallelise(model, options["layout"], ParallelConfig())
    with loader_of(shape) as loader:
        task = our_task(shape, loader, model, **options)
        task.step(0)
        return statistics.median(seconds_of(lambda n=n: task.step(n)) for n in range(1, steps + 1))


def cost_of_statistics(rounds: int) -> dict[str, float]:
    """Return the cost of training statistics, relative to a step without them."""
    schedule = WarmupCosineConfig(learning_rate=LEARNING_RATE)
    every = DecoderTrainConfig(batch_rows=1, schedule=schedule).statistics_every
    plain, measured = (
        min(seconds_of_step(QUICKSTART, 20, statistics_every=n) for _ in range(rounds))
        for n in (0, 1)
    )
    return {
        "every step": round(measured / plain - 1, 3),
        "default interval": round((measured / plain - 1) / every, 5),
    }


def growth() -> list[dict[str, object]]:
    """Return the time per token as one dimension grows and the others stay."""
    tokens = GROWTH.tokens
    series = {
        "context, constant tokens per step": [
            dataclasses.replace(GROWTH, length=n, rows=tokens // n) for n in (128, 256, 512, 1024)
        ],
        "rows of 256 tokens": [dataclasses.replace(GROWTH, rows=n) for n in (1, 2, 4, 8, 16)],
        "layers": [dataclasses.replace(GROWTH, n_layers=n) for n in (2, 4, 8, 16)],
    }
    lines = []
    for name, shapes in series.items():
        for shape in shapes:
            cost = 1e6 * seconds_of_step(shape) / shape.tokens
            flops = model_costs(shape.config).train_flops_per_token
            lines.append(
                {
                    "dimension": name,
                    "rows": shape.rows,
                    "context": shape.length,
                    "layers": shape.n_layers,
                    "us_per_token": round(cost, 1),
                    "gflops": round(flops / cost / 1e3, 1),
                }
            )
    return lines + [{"dimension": "ranks of one thread", **of_ranks(n)} for n in (1, 2)]


def of_ranks(n: int) -> dict[str, object]:
    """Start ``n`` processes of one thread that share the batch of a step."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}",
        __file__, "--rank",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return {"ranks": n, "rows": GROWTH.rows, **json.loads(done.stdout.splitlines()[-1])}


def print_time_as_rank() -> None:
    with join() as world:
        seconds = seconds_of_step(GROWTH, steps=5, layout=layout_of(world, ParallelConfig()))
        if world.is_first:
            print_json({"us_per_token": round(1e6 * seconds / GROWTH.tokens, 1)})


def kernels(device: str, tokens: int, width: int, vocab: int, chunk: int, rounds: int) -> dict:
    """Time the loss with its gradients, compared with full logits and PyTorch's own kernel.

    Extra memory, on a GPU only, is the peak minus inputs and gradients.
    """
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    hidden = torch.randn(tokens, width, device=device).to(dtype).requires_grad_()
    weight = (0.02 * torch.randn(vocab, width, device=device)).to(dtype).requires_grad_()
    targets = torch.randint(vocab, (tokens,), device=device)
    ones = torch.ones(tokens, device=device)

    def ours() -> object:
        with torch.no_grad():
            return chunked_cross_entropy(
                hidden, VocabularyShard(weight), targets, ones,
                z_loss=1e-5, chunk=chunk, learning=True,
            )  # fmt: skip

    def full_logits() -> object:
        loss = F.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum")
        return torch.autograd.grad(loss, [hidden, weight])

    def torch_chunks() -> object:
        options = torch.nn.LinearCrossEntropyOptions()
        loss = F.linear_cross_entropy(hidden, weight, targets, reduction="sum", options=options)
        return torch.autograd.grad(loss, [hidden, weight])

    runs = {"pardalis": ours, "full logits": full_logits, "torch, chunked": torch_chunks}
    seconds = alternate(rounds, **{n: lambda r=r: finished(r, device) for n, r in runs.items()})
    result = {n: {"ms": round(1e3 * statistics.median(s), 1)} for n, s in seconds.items()}
    if device == "cuda":
        for name, run in runs.items():
            result[name]["extra_gb"] = round(extra_gb(run), 3)
    return {"tokens": tokens, "width": width, "vocab": vocab, "chunk": chunk, **result}


def finished(run: Callable[[], object], device: str) -> None:
    run()
    if device == "cuda":
        torch.cuda.synchronize()


def extra_gb(run: Callable[[], object]) -> float:
    """Return the peak of a run minus the memory allocated after it, in 10⁹ bytes."""
    torch.cuda.reset_peak_memory_stats()
    result = run()
    extra = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    del result
    return extra / 1e9


def on_gpu(shape: Shape, steps: int) -> dict[str, object]:
    """Train at about 1B parameters; return the strict model-FLOPs utilisation, print a profile.

    FLOPs per token are 6 per multiplied parameter and 6 L d S for attention; recomputation counts
    once.
    """
    layout = Layout.alone("cuda")
    with torch.device("meta"):
        model = Decoder(shape.config)
    parallelise(model, layout, ParallelConfig(compile=True), "bfloat16")
    initialise(model, seed=0)
    with loader_of(shape) as loader:
        task = our_task(shape, loader, model, precision="bfloat16", layout=layout)
        for n in range(4):
            task.step(n)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for n in range(4, 4 + steps):
            task.step(n)
        torch.cuda.synchronize()
        seconds = (time.perf_counter() - start) / steps
        peak = torch.cuda.max_memory_allocated()
        with torch.profiler.profile() as profile:
            task.step(4 + steps)
            torch.cuda.synchronize()
    print(profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=25))  # noqa: T201
    flops = model_costs(shape.config).train_flops_per_token * shape.tokens
    return {
        "shape": dataclasses.asdict(shape),
        "gpu": torch.cuda.get_device_name(),
        "tokens_per_second": round(shape.tokens / seconds),
        "strict_mfu_of_989": round(flops / seconds / H200_BFLOAT16, 4),
        "peak_gb": round(peak / 1e9, 1),
    }


def on_cpu(rounds: int) -> dict[str, object]:
    """Compare both shapes in speed and memory, and measure the parts of our step."""
    result: dict[str, object] = {"product_gflops": round(product_gflops(), 1)}
    for name, shape in SHAPES.items():
        found = compare(shape, rounds)
        found["share_of_product_rate"] = round(
            found["gflops"]["pardalis"] / result["product_gflops"], 2
        )
        memory = {side: peak_memory(side, shape) for side in SIDES}
        above = [memory[side]["above_imports"] for side in SIDES]
        result[name] = found | {"memory_mib": memory, "memory_ratio": round(above[0] / above[1], 2)}
        print_json({name: result[name]})
    small = SHAPES["small"]
    result["batch of a step"] = batch_shares(small, rounds)
    result["statistics of the quickstart's decoder"] = cost_of_statistics(rounds)
    result["loss"] = kernels("cpu", 1024, small.d_model, small.vocab_size, 1024, rounds)
    return result


def headline(result: dict) -> dict[str, object]:
    return {
        "small_tokens_ratio": result["small"]["tokens_ratio"],
        "small_memory_ratio": result["small"]["memory_ratio"],
        "medium_tokens_ratio": result["medium"]["tokens_ratio"],
    }


def print_json(result: dict) -> None:
    print(json.dumps(result), flush=True)  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--growth",
        action="store_true",
        help="only the time per token by dimension",
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        side, shape = options.memory_of
        print_peak_memory(side, Shape(**json.loads(shape)))
        return
    if options.rank:
        print_time_as_rank()
        return
    result: dict = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if options.device == "cuda":
        result["training"] = on_gpu(ON_GPU, steps=20)
        result["loss"] = kernels("cuda", 8192, 4096, 65_536, 2048, rounds=10)
    elif options.growth:
        result["growth"] = growth()
    else:
        result |= on_cpu(options.rounds)
    print(json.dumps(result, indent=2))  # noqa: T201
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    if "small" in result:
        print_json(headline(result))


if __name__ == "__main__":
    main()
