"""What a merge of two trained models is worth: the comparisons of JAM, on two cores.

A text parent and an image parent of one shape (``recipes/jam_text.toml``, ``jam_image.toml``) are
merged in every way; each merged model is trained further by ``recipes/jam_continue.toml``, and so
are new models of the same shapes, on equal tokens. Scored are bits per byte of held-out texts, the
loss per image token of drawings in styles that training does not show, and how often a generated
drawing is nearest to the right one of 100. An arm that is there is kept, so an interrupted
comparison goes on. The last line is JSON.

    python bench/jam.py runs/jam_text runs/jam_image -o runs/jam_arms
"""

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch

import pardalis
from pardalis import bundle as bundles
from pardalis import config as configs
from pardalis.documents import Document, read_jsonl
from pardalis.files import write_json
from pardalis.model import model_costs

RECIPE = Path(__file__).parents[1] / "recipes" / "jam_continue.toml"
PROSE = ("articles", "recipes", "dictionary")
N_TEXTS = 100  # held-out documents of each kind
N_DRAWINGS = 200


@dataclass(frozen=True)
class Arm:
    """A model to train further: merged so, or new and of the shape of another arm."""

    name: str
    merge: tuple[str, ...] = ()  # options of ``pardalis merge``
    shape_of: str | None = None


ARMS = (
    Arm("uniform", ("--kind", "uniform")),
    Arm("width copy", ("--kind", "width", "--blocks", "copy")),
    Arm("width average_second_column", ("--kind", "width", "--blocks", "average_second_column")),
    Arm("width average_off_diagonal", ("--kind", "width", "--blocks", "average_off_diagonal")),
    Arm("width block_diagonal", ("--kind", "width", "--blocks", "block_diagonal")),
    Arm("cross 1", ("--kind", "cross", "--interval", "1")),
    Arm("cross 2", ("--kind", "cross", "--interval", "2")),
    Arm("cross 4", ("--kind", "cross", "--interval", "4")),
    Arm("cross 2 drawn", ("--kind", "cross", "--interval", "2", "--outputs", "drawn")),
    Arm("scratch", shape_of="uniform"),
    Arm("scratch width", shape_of="width copy"),
    Arm("scratch cross 2", shape_of="cross 2"),
)


@dataclass
class Comparison:
    """The folder of a comparison, and what it compares."""

    text: Path
    image: Path
    folder: Path
    steps: int
    texts: list[Document] = field(init=False)
    drawings: list[Document] = field(init=False)

    def __post_init__(self) -> None:
        self.texts = [
            document
            for name in PROSE
            for document in _first(self.text / "corpus" / f"{name}.heldout.jsonl", N_TEXTS)
        ]
        self.drawings = _first(self.image / "corpus" / "cells.jsonl", N_DRAWINGS)

    def merged(self, arm: Arm) -> Path:
        """Return the bundle that an arm starts from."""
        folder = self.folder / arm.name.replace(" ", "-") / "merged"
        if not folder.exists():
            _pardalis("merge", str(self.text), str(self.image), "-o", str(folder), *arm.merge)
        return folder

    def trained(self, arm: Arm, seed: int) -> Path:
        """Return the bundle of an arm after its training."""
        run = self.folder / arm.name.replace(" ", "-") / f"seed-{seed}"
        changes = {"training_loop.steps": self.steps, "training.seed": seed}
        for number, source in enumerate(pardalis.pipeline.load_recipe(RECIPE).sources):
            owner = self.text if source.name in PROSE else self.image
            path = owner / "corpus" / source.path.name
            changes[f"sources.{number}.path"] = json.dumps(str(path.resolve()))
        changes["heldout"] = "[]"
        if arm.shape_of is None:
            changes["start_from"] = json.dumps(str(self.merged(arm).resolve()))
        options = [text for name, value in changes.items() for text in ("--set", f"{name}={value}")]
        recipe = RECIPE if arm.shape_of is None else self._of_shape(arm)
        _pardalis("run", str(recipe), "--out", str(run), *options)
        return run / "bundle"

    def _of_shape(self, arm: Arm) -> Path:
        """Return a recipe that trains a new model of the shape of another arm's."""
        like = next(other for other in ARMS if other.name == arm.shape_of)
        folder = self.merged(like)
        config = configs.to_dict(bundles.model_config(folder, bundles.describe(folder)))
        shape = {n: v for n, v in config.items() if n not in ("vocab_size", "context")}
        text = RECIPE.read_text()
        given = f"tokenizers_from = {json.dumps(str(self.text.resolve()))}"
        text = text.replace('start_from = "../bundles/jam"', f"{given}\nmodel = {_inline(shape)}")
        path = self.folder / f"{arm.name.replace(' ', '-')}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace('name = "jam_continue"', f'name = "{path.stem}"'))
        return path

    def scores(self, bundle: Path, into: Path) -> dict[str, Any]:
        """Return the scores of a bundle; those that are in a file are read."""
        if into.exists():
            return json.loads(into.read_text())
        model = pardalis.load(bundle)
        vocabulary = model.codec.vocabulary
        n_bytes, bits, image_nats, n_image = 0, 0.0, 0.0, 0
        for document, score in zip(self.texts, _scored(model, self.texts), strict=True):
            n_bytes += len(document.text.encode())
            bits -= score.log_prob / math.log(2)
        for document, score in zip(self.drawings, _scored(model, self.drawings), strict=True):
            ids = model.codec.encode(document).ids[-len(score.log_probs) :]
            for token_id, log_prob in zip(ids, score.log_probs, strict=True):
                if token_id in vocabulary.image:
                    image_nats, n_image = image_nats - log_prob, n_image + 1
        found = json.loads(
            _pardalis(
                "evaluate", str(self.image), "--bundle", str(bundle), "--captions", "0",
                "-o", str(into.with_suffix("")), "--json",
            )
        )["sources"]  # fmt: skip
        scores = {
            "parameters": model_costs(model.model.config).parameters,
            "bits_per_byte": bits / n_bytes,
            "image_loss": image_nats / n_image,
            "retrieval": found["drawings"]["retrieval"],
            "retrieval_cells": found["cells"]["retrieval"],
        }
        write_json(into, scores)
        return scores


def _first(path: Path, most: int) -> list[Document]:
    found = [document for document in read_jsonl(path) if isinstance(document, Document)]
    return found[:: max(1, len(found) // most)][:most]


def _scored(bundle: Any, documents: list[Document]) -> Iterator[Any]:
    for start in range(0, len(documents), 32):
        pairs = [("", document) for document in documents[start : start + 32]]
        yield from pardalis.score(bundle, pairs)


def _inline(values: Any) -> str:
    """Return plain values as TOML on one line."""
    if isinstance(values, dict):
        items = (
            f"{name} = {_inline(value)}" for name, value in values.items() if value is not None
        )
        return "{ " + ", ".join(items) + " }"
    return json.dumps(values)


def _pardalis(*arguments: str) -> str:
    command = [sys.executable, "-m", "pardalis", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def _summary(scores: list[dict[str, float]]) -> dict[str, Any]:
    """Return the mean and the range of each score over seeds."""
    return {
        name: {
            "mean": round(statistics.fmean(each[name] for each in scores), 4),
            "range": [round(f(each[name] for each in scores), 4) for f in (min, max)],
        }
        for name in scores[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="run of the text parent")
    parser.add_argument("image", type=Path, help="run of the image parent")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the arms")
    parser.add_argument("--steps", type=int, default=1000, help="updates of each arm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=[arm.name for arm in ARMS], metavar="ARM")
    parser.add_argument("--out", type=Path, help="file of the result")
    options = parser.parse_args()
    comparison = Comparison(options.text, options.image, options.output, options.steps)
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "steps": options.steps,
        "seeds": options.seeds,
        "arms": {},
    }
    for name, parent in (("text parent", options.text), ("image parent", options.image)):
        into = options.output / f"{name.replace(' ', '-')}.json"
        options.output.mkdir(parents=True, exist_ok=True)
        result["arms"][name] = _summary([comparison.scores(parent / "bundle", into)])
    for arm in ARMS:
        if options.arms and arm.name not in options.arms:
            continue
        folder = options.output / arm.name.replace(" ", "-")
        if arm.shape_of is None:
            before = comparison.scores(comparison.merged(arm), folder / "merged.json")
            result["arms"][f"{arm.name}, untrained"] = _summary([before])
        scores = []
        for seed in range(options.seeds):
            into = folder / f"seed-{seed}.json"
            bundle = Path() if into.exists() else comparison.trained(arm, seed)
            scores.append(comparison.scores(bundle, into))
        result["arms"][arm.name] = _summary(scores)
        print(arm.name, json.dumps(result["arms"][arm.name]), file=sys.stderr, flush=True)  # noqa: T201
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
