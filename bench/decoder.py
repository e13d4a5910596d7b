"""Forward and backward of the quickstart's decoder compared with transformers' Chameleon.

Both have the same weights. The peer's loss is cross-entropy on its hidden states and its head,
since its own loss masks image tokens. Prints JSON and, with ``--out``, writes it to a file;
decoding.py measures decoding.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from pardalis.interop.names import rename
from pardalis.model import Decoder, ModelConfig, initialise, model_costs, tiny
from pardalis.objectives import linear_cross_entropy
from pardalis.tokens import Vocabulary

BATCH, LENGTH = 8, 256


def chameleon_like(config: ModelConfig) -> ChameleonForConditionalGeneration:
    """Build the peer in our shape, with its own weights.

    Its configuration names no image tokens, so its forward does not mask their logits.
    """
    return ChameleonForConditionalGeneration(
        ChameleonConfig(
            vocab_size=config.vocab_size, hidden_size=config.d_model,
            intermediate_size=config.feed_forward.width, num_hidden_layers=config.n_layers,
            num_attention_heads=config.attention.n_heads,
            num_key_value_heads=config.attention.kv_heads,
            max_position_embeddings=config.context, vocabulary_map={"<image>": 4},
            bos_token_id=0, pad_token_id=1, eos_token_id=None,
            vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1,
                       "embed_dim": 8, "latent_channels": 8, "num_embeddings": 4, "resolution": 16},
        )
    )  # fmt: skip


def peer_of(ours: Decoder) -> ChameleonForConditionalGeneration:
    """Build the peer with our weights."""
    peer = chameleon_like(ours.config).eval()
    state = {rename(n, "ours", "transformers"): t for n, t in ours.state_dict().items()}
    peer.load_state_dict(state, strict=False)
    return peer


def alternate(rounds: int, **runs: Callable[[], None]) -> dict[str, list[float]]:
    """Time each run once per round, in alternating order, after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for i in range(rounds):
        for name in list(runs)[:: 1 if i % 2 == 0 else -1]:
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def product_gflops() -> float:
    """Return the machine's rate of fp32 matrix products, 1,024 wide."""
    a = torch.randn(1024, 1024)
    seconds = alternate(10, product=lambda: a @ a)["product"]
    return 2 * 1024**3 / min(seconds) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    vocabulary = Vocabulary.build(n_codes=1024, n_text=2048)
    config = tiny().sized(vocabulary.size, context=LENGTH)
    ours = initialise(Decoder(config), seed=0).eval()
    peer = peer_of(ours)
    ids = torch.randint(8, vocabulary.size, (BATCH, LENGTH))
    targets = ids.roll(-1, 1).flatten()

    def our_step() -> None:
        hidden = ours.hidden(ids).flatten(0, 1)
        ones = torch.ones(targets.numel())
        losses = linear_cross_entropy(hidden, ours.head.weight, targets, ones)
        (losses.total / targets.numel()).backward()

    def peer_step() -> None:
        logits = peer.lm_head(peer.model(input_ids=ids, use_cache=False).last_hidden_state)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets).backward()

    flops = model_costs(config).train_flops_per_token * BATCH * LENGTH
    rate = product_gflops()
    step = alternate(options.rounds, pardalis=our_step, transformers=peer_step)
    result = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "product_gflops": round(rate, 1),
        "decoder_parameters": model_costs(config).parameters,
    }
    for side, values in step.items():
        result[f"forward and backward, {side}"] = {
            "tokens_per_second": round(BATCH * LENGTH / statistics.median(values)),
            "range": [round(BATCH * LENGTH / t) for t in (max(values), min(values))],
        }
    ratio = statistics.median(step["transformers"]) / statistics.median(step["pardalis"])
    result["forward and backward, speed-up"] = round(ratio, 2)
    share = flops / statistics.median(step["pardalis"]) / 1e9 / rate
    result["forward and backward, share of product rate"] = round(share, 2)
    text = json.dumps(result, indent=2)
    print(text)  # noqa: T201
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
