"""The decoder against transformers' Chameleon: a training step, and generating a batch of pictures.

Both have the same weights. The peer's training step takes its hidden states and its head, since its
own loss masks image ids; its generation cannot write any, so it writes as many other ids. Prints a
table and, with ``--out``, writes it as JSON.
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

from pardalis.inference import Request, SamplingConfig, generate_cached
from pardalis.interop.names import rename
from pardalis.model import Decoder, count, initialise, tiny
from pardalis.objectives import linear_cross_entropy
from pardalis.tokens import Grammar, Limits, Vocabulary

BATCH, LENGTH = 8, 256
PROMPT, CODES = 17, 64


def peer_of(ours: Decoder) -> ChameleonForConditionalGeneration:
    """Build the peer and give it our weights."""
    config = ours.config
    peer = ChameleonForConditionalGeneration(
        ChameleonConfig(
            vocab_size=config.vocab_size, hidden_size=config.d_model,
            intermediate_size=config.d_ff, num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads, num_key_value_heads=config.n_kv_heads,
            max_position_embeddings=config.context, vocabulary_map={"<image>": 4},
            bos_token_id=0, pad_token_id=1, eos_token_id=None,
            vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1,
                       "embed_dim": 8, "latent_channels": 8, "num_embeddings": 4, "resolution": 16},
        )
    ).eval()  # fmt: skip

    state = {rename(n, "ours", "transformers"): t for n, t in ours.state_dict().items()}
    peer.load_state_dict(state, strict=False)
    return peer


def alternate(rounds: int, **runs: Callable[[], None]) -> dict[str, list[float]]:
    """Time each run once a round, in alternating order, after one warm-up each."""
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
    """The machine's rate of fp32 matrix products, 1,024 wide."""
    a = torch.randn(1024, 1024)
    seconds = alternate(10, product=lambda: a @ a)["product"]
    return 2 * 1024**3 / min(seconds) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    vocabulary = Vocabulary.build(n_codes=1024, n_text=2048)
    config = tiny(vocabulary.size, context=LENGTH)
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

    # Prompts end with begin_image, so every answer is one picture: 64 codes and end_image.
    text = torch.randint(vocabulary.text.start, vocabulary.size, (BATCH, PROMPT - 2))
    bos = torch.full((BATCH, 1), vocabulary.bos_id)
    prompts = torch.cat([bos, text, torch.full((BATCH, 1), vocabulary.begin_image_id)], dim=1)
    grammar = Grammar(vocabulary, CODES)
    greedy = SamplingConfig(temperature=0.0)
    limits = Limits(room=CODES + 1)
    requests = [
        Request(prompt_ids=tuple(row), limits=limits, text=greedy, picture=greedy)
        for row in prompts.tolist()
    ]

    def our_generation() -> None:
        generate_cached(ours, grammar, requests)

    def peer_generation() -> None:
        peer.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=CODES + 1,
            min_new_tokens=CODES + 1, do_sample=False,
        )  # fmt: skip

    flops = count(config).train_flops_per_token * BATCH * LENGTH
    rate = product_gflops()
    step = alternate(options.rounds, pardalis=our_step, transformers=peer_step)
    generation = alternate(options.rounds, pardalis=our_generation, transformers=peer_generation)
    result = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "product_gflops": round(rate, 1),
        "decoder_parameters": count(config).parameters,
    }
    for name, seconds, tokens in (
        ("forward and backward", step, BATCH * LENGTH),
        ("generation", generation, BATCH * (CODES + 1)),
    ):
        for who, values in seconds.items():
            median = statistics.median(values)
            result[f"{name}, {who}"] = {
                "tokens_per_second": round(tokens / median),
                "range": [round(tokens / max(values)), round(tokens / min(values))],
            }
        ratio = statistics.median(seconds["transformers"]) / statistics.median(seconds["pardalis"])
        result[f"{name}, times faster"] = round(ratio, 2)
    share = flops / statistics.median(step["pardalis"]) / 1e9 / rate
    result["forward and backward, share of product rate"] = round(share, 2)
    text = json.dumps(result, indent=2)
    print(text)  # noqa: T201
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
