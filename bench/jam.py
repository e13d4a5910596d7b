"""What a merge of two trained models is worth: the comparisons of JAM, on two cores.

A text parent and an image parent of one shape (``recipes/jam_text.toml``, ``jam_image.toml``) are
merged in every way; each merged model is trained further by ``recipes/jam_continue.toml``, and so
are new models of the same shapes, on equal tokens. Scored are bits per byte of held-out texts, the
loss per image token of drawings in styles that training does not show (cells), and how often a
generated drawing is nearest to the right one of 100, of cells and of training. An arm that is there
is kept, so an interrupted comparison goes on. The last line is JSON.

    python bench/jam.py runs/jam_text runs/jam_image -o runs/jam_arms
"""

import argparse
import json
import math
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import pardalis
from pardalis import bundle as bundles
from pardalis import config as configs
from pardalis.documents import Document, Image, Text, open_image, read_jsonl
from pardalis.evaluate import ImageFeatures, retrieval_top1
from pardalis.files import write_json
from pardalis.model import model_costs
from pardalis.pipeline import load_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "jam_continue.toml"
PROSE = ("articles", "recipes", "dictionary")
N_TEXTS = 100  # held-out documents of each kind
N_DRAWINGS = 200  # whose tokens are scored
N_GENERATED = 100  # captions of cells, and of training, to which a drawing is generated


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

    @cached_property
    def texts(self) -> list[Document]:
        return [
            document
            for name in PROSE
            for document in _first(self.text / "corpus" / f"{name}.heldout.jsonl", N_TEXTS)
        ]

    @cached_property
    def drawings(self) -> dict[str, list[Document]]:
        """Captioned drawings: of cells, and of training."""
        corpus = self.image / "corpus"
        return {
            "cells": _first(corpus / "cells.jsonl", N_DRAWINGS),
            "training": _first(corpus / "pairs.train.jsonl", N_DRAWINGS),
        }

    @cached_property
    def net(self) -> ImageFeatures:
        return ImageFeatures.load()

    @cached_property
    def gallery(self) -> torch.Tensor:
        """Features of all drawings, those of cells first."""
        return self.net.of([_drawing(each) for part in self.drawings.values() for each in part])

    def merged(self, arm: Arm) -> Path:
        """Return the bundle that an arm starts from."""
        folder = self.folder / arm.name.replace(" ", "-") / "merged"
        if not folder.exists():
            _pardalis("merge", str(self.text), str(self.image), "-o", str(folder), *arm.merge)
        return folder

    def trained(self, arm: Arm, seed: int) -> Path:
        """Return the bundle of an arm after its training."""
        run = self.folder / arm.name.replace(" ", "-") / f"seed-{seed}"
        if not run.exists():
            shutil.copytree(self._prepared(), run)  # all arms read the same shards
        changes = {"training_loop.steps": self.steps, "training.seed": seed}
        if arm.shape_of is None:
            changes["start_from"] = json.dumps(str(self.merged(arm).resolve()))
        recipe = RECIPE if arm.shape_of is None else self._of_shape(arm)
        _pardalis("run", str(recipe), "--out", str(run), *self._options(changes))
        return run / "bundle"

    def _prepared(self) -> Path:
        """Return a run whose documents are encoded, and nothing else."""
        folder = self.folder / "prepared"
        start = {"start_from": json.dumps(str(self.merged(ARMS[0]).resolve()))}
        options = self._options(start)
        _pardalis("data", "prepare", str(RECIPE), "--out", str(folder), *options)
        return folder

    def _options(self, changes: dict[str, Any]) -> list[str]:
        """Return options that change the recipe so, and take the documents of the parents."""
        changes["heldout"] = "[]"
        for number, source in enumerate(load_recipe(RECIPE).sources):
            owner = self.text if source.name in PROSE else self.image
            path = owner / "corpus" / source.path.name
            changes[f"sources.{number}.path"] = json.dumps(str(path.resolve()))
        return [text for name, value in changes.items() for text in ("--set", f"{name}={value}")]

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
        context = model.model.context
        texts = [each for each in self.texts if len(model.codec.encode(each).ids) <= context]
        for document, score in zip(texts, _scored(model, texts), strict=True):
            n_bytes += len(document.text.encode())
            bits -= score.log_prob / math.log(2)
        cells = self.drawings["cells"]
        for document, score in zip(cells, _scored(model, cells), strict=True):
            ids = model.codec.encode(document).ids[-len(score.log_probs) :]
            for token_id, log_prob in zip(ids, score.log_probs, strict=True):
                if token_id in vocabulary.image:
                    image_nats, n_image = image_nats - log_prob, n_image + 1
        scores = {
            "parameters": model_costs(model.model.config).parameters,
            "bits_per_byte": bits / n_bytes,
            "image_loss": image_nats / n_image,
            "retrieval_cells": self._retrieval(model, "cells"),
            "retrieval_training": self._retrieval(model, "training"),
        }
        write_json(into, scores)
        return scores

    def _retrieval(self, model: Any, part: str) -> float:
        """Return how often a generated drawing is nearest to its original of 100."""
        first = 0 if part == "cells" else len(self.drawings["cells"])
        documents = self.drawings[part][:N_GENERATED]
        prompts = [_caption(document) for document in documents]
        completions = pardalis.generate_many(model, prompts, mode="image", image_temperature=0.7)
        features = self.net.of([completion.images[0].source for completion in completions])
        originals = torch.arange(first, first + len(documents))
        return retrieval_top1(features, self.gallery, originals).top1


def _caption(document: Document) -> str:
    return next(part.text for part in document.segments if isinstance(part, Text))


def _drawing(document: Document) -> Any:
    return open_image(next(part for part in document.segments if isinstance(part, Image)).source)


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
    arms = [arm for arm in ARMS if not options.arms or arm.name in options.arms]
    scores: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
    for arm in arms:
        if arm.shape_of is None:
            into = options.output / arm.name.replace(" ", "-") / "merged.json"
            before = comparison.scores(comparison.merged(arm), into)
            result["arms"][f"{arm.name}, untrained"] = _summary([before])
    # A seed of all arms before the next one, so that what is there at any time can be compared.
    for seed in range(options.seeds):
        for arm in arms:
            into = options.output / arm.name.replace(" ", "-") / f"seed-{seed}.json"
            bundle = Path() if into.exists() else comparison.trained(arm, seed)
            scores[arm.name].append(comparison.scores(bundle, into))
            print(arm.name, seed, json.dumps(scores[arm.name][-1]), file=sys.stderr, flush=True)  # noqa: T201
    result["arms"] |= {name: _summary(found) for name, found in scores.items()}
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
