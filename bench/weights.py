"""What weights in 16 and 8 bits cost in accuracy: the same tasks with each of them.

The matrices and the embedding of a bundle are rounded as the engine rounds them for
``EngineConfig(weights=...)``, and computed with in 32 bits, as the steps in C++ do. Prints JSON,
and with ``--out`` writes it.

    python bench/weights.py bundles/smollm2 dictionary_word country_capital --data tasks
"""

import argparse
import copy
import json
import tempfile
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import get_args

import torch

import pardalis
from pardalis.evaluate import evaluate_tasks
from pardalis.inference.weights import Weights, rounded
from pardalis.model import LanguageModel
from training import print_json


def with_weights(model: LanguageModel, weights: Weights) -> LanguageModel:
    """Return a copy whose matrices have the values that an engine computes with."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                values, scale = rounded(module.weight, weights)
                factor = 1 if scale is None else scale[:, None]
                module.weight.copy_(values.float() * factor)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("tasks", nargs="+", help="names of shipped tasks, or TOML files")
    parser.add_argument("--data", type=Path, help="where the paths of shipped tasks begin")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    bundle = pardalis.load(options.bundle)
    result: dict = {"date": date.today().isoformat(), "bundle": options.bundle.name}
    for weights in get_args(Weights):
        changed = replace(bundle, model=with_weights(bundle.model, weights))
        with tempfile.TemporaryDirectory() as folder:
            found = evaluate_tasks(
                changed, options.tasks, folder,
                data=options.data, limit=options.limit, seeds=options.seeds,
            )  # fmt: skip
        result[weights] = {
            name: {key: number["value"] for key, number in task["numbers"].items()}
            for name, task in found["tasks"].items()
        }
        print_json({weights: result[weights]})
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
