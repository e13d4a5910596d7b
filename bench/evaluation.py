"""Text tasks through our engine compared with lm-evaluation-harness's adapter for transformers.

All sides get the same items and prompts, and have the same weights, threads and dtype (float32):

    tasks       pardalis evaluate: items in, a folder of results out
    adapter     the harness's model of Pardalis, pardalis.evaluate.lm_eval
    harness     its own adapter, on the folder that ``pardalis export --to hf`` writes

Choices are scored and the beginnings of answers generated (greedily). Rounds alternate; a rate is
that of the median round, without loading, in processor time, which other work disturbs little. The
harness is given the better of two batch sizes. The scores of all requests are compared, the chosen
answers and the generated texts. The last line is JSON. Needs the extras ``dev`` and ``lm-eval``,
and what docs/fine-tune.md and ``pardalis data tasks`` make::

    python bench/evaluation.py bundles/smollm2 tasks --tasks dictionary_word,article_title
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from decoder import product_gflops
from pardalis import bundle as bundles
from pardalis.evaluate.tasks import ChoiceTask, evaluate_tasks, read_items
from pardalis.evaluate.tasks.find import load_tasks
from pardalis.evaluate.tasks.items import load_items
from pardalis.evaluate.tasks.task import trials
from pardalis.interop import export_model

TOLERANCE = 1e-3  # nats, between log-probabilities of a continuation
UNTIL = {"until": ["\n"], "max_gen_toks": 16, "do_sample": False}
TEXTS = (
    "article_name", "article_title", "article_topic", "country_capital", "country_region",
    "dictionary_kind", "dictionary_word", "translate_de", "translate_es", "translate_fr",
)  # fmt: skip


def requests_of(task: ChoiceTask, folder: Path, limit: int) -> list[list[tuple[str, str]]]:
    """Return the context and the continuation of each choice, for each item."""
    items = load_items(task.data, folder)
    found = []
    for trial in trials(task, items[:limit], items, 0):
        prompt = task.prompt_of(trial).text
        choices, _ = task.choices_of(trial.item)
        found.append([(prompt, task.continuation_of(each.segments).text) for each in choices])
    return found


def instances(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of processor time that a call takes, over all threads, and its result."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def measure(runs: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, float], Any]:
    """Return the median seconds of each side over alternating rounds, and its last result."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results = {}
    for number in range(rounds):
        for name in list(runs) if number % 2 == 0 else list(runs)[::-1]:
            taken, results[name] = timed(runs[name])
            seconds[name].append(taken)
    return {name: statistics.median(each) for name, each in seconds.items()}, results


def choices(
    task: ChoiceTask, folder: Path, bundle: Any, sides: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    asked = requests_of(task, folder, options.items)
    flat = instances("loglikelihood", [pair for item in asked for pair in item])

    def ours() -> list[float]:
        with tempfile.TemporaryDirectory() as scratch:
            out = options.results or Path(scratch)
            evaluate_tasks(bundle, [task], out, data=folder, limit=options.items)
            records = read_items(out, task.name)
        return [p for record in records for p in record["details"]["log_probs"]]

    def through(model: Any) -> Callable[[], list[float]]:
        return lambda: [log_prob for log_prob, _ in model.loglikelihood(flat, disable_tqdm=True)]

    runs = {"tasks": ours, "adapter": lambda: [p for p, _ in sides["adapter"].loglikelihood(flat)]}
    runs |= {name: through(model) for name, model in sides.items() if name != "adapter"}
    seconds, results = measure(runs, options.rounds)
    best = min((name for name in seconds if name.startswith("harness")), key=seconds.__getitem__)
    found = {
        "requests": len(flat),
        "seconds": seconds,
        "requests_per_second": {name: len(flat) / each for name, each in seconds.items()},
        "ratio": {name: seconds[best] / seconds[name] for name in ("tasks", "adapter")},
        "largest_difference": {
            name: max(abs(a - b) for a, b in zip(results[name], results[best], strict=True))
            for name in ("tasks", "adapter")
        },
    }
    rights = [task.choices_of(item)[1] for item in load_items(task.data, folder)[: options.items]]
    for name, values in results.items():
        left, chosen = iter(values), []
        for item in asked:
            scores = [next(left) for _ in item]
            chosen.append(scores.index(max(scores)))
        n_right = sum(a == b for a, b in zip(chosen, rights, strict=True))
        found.setdefault("accuracy", {})[name] = n_right / len(rights)
        found.setdefault("chosen", {})[name] = chosen
    chosen = found.pop("chosen")
    found["items"] = len(rights)
    found["same_choices"] = len({tuple(each) for each in chosen.values()}) == 1
    assert max(found["largest_difference"].values()) < TOLERANCE, found
    return found


def generation(
    task: ChoiceTask, folder: Path, sides: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    prompts = [item[0][0] for item in requests_of(task, folder, options.answers)]
    asked = instances("generate_until", [(prompt, UNTIL) for prompt in prompts])
    runs = {name: (lambda m=model: m.generate_until(asked)) for name, model in sides.items()}
    seconds, results = measure(runs, options.rounds)
    best = min((name for name in seconds if name.startswith("harness")), key=seconds.__getitem__)
    same = [a == b for a, b in zip(results["adapter"], results[best], strict=True)]
    return {
        "requests": len(asked),
        "seconds": seconds,
        "ratio": {"adapter": seconds[best] / seconds["adapter"]},
        "same_texts": sum(same) / len(same),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path, help="a bundle whose decoder transformers can hold")
    parser.add_argument("data", type=Path, help="what 'pardalis data tasks' wrote")
    parser.add_argument("--tasks", default=",".join(TEXTS), help="kinds of choice, of text alone")
    parser.add_argument("--items", type=int, default=50)
    parser.add_argument("--answers", type=int, default=8, help="that are generated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="of the harness")
    parser.add_argument("--exported", type=Path, help="the folder that 'export --to hf' wrote")
    parser.add_argument("--results", type=Path, help="keep those of 'pardalis evaluate' here")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.results is not None and options.rounds > 1:
        parser.error("--results belongs to --rounds 1: finished items are not evaluated again")

    from lm_eval.models.huggingface import HFLM

    from pardalis.evaluate.lm_eval import PardalisLM

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        exported = options.exported or Path(scratch) / "exported"
        if options.exported is None:
            export_model(options.bundle, exported, "hf")
        bundle = bundles.load(options.bundle, dtype=torch.float32)
        sides: dict[str, Any] = {"adapter": PardalisLM(bundle)}
        for size in options.batches:
            sides[f"harness, batches of {size}"] = HFLM(
                str(exported), device="cpu", dtype="float32", batch_size=size
            )
        tasks = {each.task.name: each.task for each in load_tasks(options.tasks.split(","), None)}
        found: dict[str, Any] = {}
        for name, task in tasks.items():
            found[name] = choices(task, options.data, bundle, sides, options)
            print(f"{name}: {json.dumps(found[name])}", flush=True)  # noqa: T201
        first = next(iter(tasks.values()))
        found["generation"] = generation(first, options.data, sides, options)
    print(  # noqa: T201
        json.dumps(
            {
                "date": str(date.today()),
                "machine": platform.processor() or platform.machine(),
                "threads": options.threads,
                "product_gflops": product_gflops(),
                "items": options.items,
                "rounds": options.rounds,
                **found,
            }
        )
    )


if __name__ == "__main__":
    main()
