"""``pardalis score``: how likely given continuations of prompts are."""

import argparse
from pathlib import Path

from pardalis.cli.common import (
    Commands,
    add_adapters,
    add_bundle,
    add_command,
    add_dtype,
    chosen_adapters,
    chosen_dtype,
    print_result,
    set_run,
)
from pardalis.errors import PardalisError, RequestError

_DESCRIPTION = """\
Print the log-probability of the continuation on each line of a JSONL file, and whether it is what
the model would generate by taking the most likely token each time.

  {"prompt": "The capital of France is", "continuation": " Paris"}
  {"prompt": [{"image": "owl.png"}, "What is this?"], "continuation": "an owl"}
  {"prompt": "owl", "continuation": {"image": "owl.png"}}

The probabilities are those of the model's softmax over its whole vocabulary. --json prints those of
all tokens, too. Lines with the same prompt are best kept together.
"""


def add(commands: Commands) -> None:
    parser = add_command(commands, "score", "score given continuations of prompts", _DESCRIPTION)
    add_bundle(parser)
    parser.add_argument(
        "file", metavar="FILE", type=Path, help='JSONL file of {"prompt": ..., "continuation": ...}'
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    add_dtype(parser)
    add_adapters(parser, "the first one is used")
    set_run(parser, _run)


def _run(options: argparse.Namespace) -> None:
    from pardalis import load, score
    from pardalis.inference import ScoreRequest, to_score_requests
    from pardalis.inference.prompt_lines import parse_continuation, read_lines

    path = options.file
    if path.suffix != ".jsonl":
        raise RequestError(f"A file of continuations is a .jsonl file, got {path}.")
    lines = read_lines(path)
    requests: list[ScoreRequest] = []
    bundle = load(options.bundle, options.device, chosen_dtype(options))
    adapters = chosen_adapters(options)
    pairs = (parse_continuation(line, path) for line in lines)
    encoded = to_score_requests(bundle, pairs, next(iter(adapters), None))
    try:
        requests.extend(encoded)
    except PardalisError as error:
        raise RequestError(f"{path.name}:{lines[len(requests)].number}: {error}") from error
    scores = score(bundle, requests, adapters=adapters)
    print_result(
        options,
        [{"log_prob": s.log_prob, "greedy": s.greedy, "log_probs": s.log_probs} for s in scores],
        *(
            f"{s.log_prob:.4f} in {len(s.log_probs)} tokens{', greedy' if s.greedy else ''}"
            for s in scores
        ),
    )
