"""What an evaluation of an image tokenizer leaves in a folder: its scores, and a page to read.

    scores.json        of all images together, what was measured with, what was rejected and why
    images.jsonl     the scores of each image
    page.html          all of it, with the worst images and a random few

``reconstruction_page.html.jinja`` holds the words and the design.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import ImageChops

from pardalis import files
from pardalis.evaluate.curves import codebook_chart
from pardalis.evaluate.reconstruction import Evaluation, Example
from pardalis.evaluate.templates import image_uri, markup, render

SCORES, IMAGES, PAGE = "scores.json", "images.jsonl", "page.html"

_LARGEST_PIXELS = 256
_DIFFERENCE_GAIN = 2  # most differences are too dark to see as they are
_CODES_COLOUR = "#15806a"

_MEANINGS = {
    "images": "images scored",
    "rejected": "items and images that could not be used",
    "psnr": "peak signal-to-noise ratio of 8-bit RGB in dB, mean over images; higher is better",
    "ssim": "structural similarity, mean over images; 1 is equal",
    "words": "words that optical recognition reads in the originals",
    "word_recall": "share of them that it reads again in the reconstructions",
    "codebook_use": "share of the codebook's entries that some image uses",
    "perplexity": "codes in even use, in effect: exp(entropy)",
    "bits_per_code": "what a code says on average: its entropy",
    "fid": "Fréchet distance of Inception features of all originals and all reconstructions; lower "
    "is better, but fewer images make it larger: compare at equal numbers",
}
_FAMILIES = {
    "lpips_": "learned perceptual distance (LPIPS), mean over images; lower is better",
    "perceptual_": "distance of the net's features, not LPIPS, mean over images; lower is better",
    "frechet_": "Fréchet distance of the net's features, not FID; lower is better, but fewer "
    "images make it larger: compare at equal numbers",
}


def meaning_of(score: str) -> str:
    """Return what a score of an evaluation means, in a line."""
    family = next((text for prefix, text in _FAMILIES.items() if score.startswith(prefix)), "")
    return _MEANINGS.get(score, family)


def summary(evaluation: Evaluation, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain values of ``scores.json``; ``facts`` say what was measured with."""
    rejected = {kind: asdict(of_kind) for kind, of_kind in evaluation.rejected.items()}
    return {**facts, "scores": evaluation.scores, "rejected": rejected}


def write_evaluation(folder: Path, evaluation: Evaluation, facts: Mapping[str, Any]) -> None:
    """Write the scores and the page into a folder, each file atomically.

    Raises:
        ConfigError: jinja2 or matplotlib is not installed.
    """
    page = render(
        Path(__file__).with_name("reconstruction_page.html.jinja"),
        {
            "facts": facts,
            "n": evaluation.scores,
            "table": table(evaluation.scores),
            "worst": [_shown(example) for example in evaluation.worst],
            "worst_by": evaluation.worst_by,
            "sample": [_shown(example) for example in evaluation.sample],
            "gain": _DIFFERENCE_GAIN,
            "n_codes": len(evaluation.code_counts),
            "n_dead": int((evaluation.code_counts == 0).sum()),
            "codebook": markup(codebook_chart(evaluation.code_counts, _CODES_COLOUR)),
            "rejected": evaluation.rejected,
        },
    )
    lines = (json.dumps(image, ensure_ascii=False) for image in evaluation.images)
    files.write_json(folder / SCORES, summary(evaluation, facts))
    files.write_text(folder / IMAGES, "".join(line + "\n" for line in lines))
    files.write_text(folder / PAGE, page)


def table(scores: Mapping[str, Any]) -> list[tuple[str, Any, Sequence[float] | None, str]]:
    """Return name, value, 95 % interval if there is one, and meaning of each score."""
    return [
        (name, value, scores.get(f"{name}_interval"), meaning_of(name))
        for name, value in scores.items()
        if not name.endswith("_interval")
    ]


def _shown(example: Example) -> dict[str, Any]:
    difference = ImageChops.difference(example.original, example.reconstruction)
    images = {
        "original": example.original,
        "reconstruction": example.reconstruction,
        "difference": difference.point(lambda value: value * _DIFFERENCE_GAIN),
    }
    return {
        "name": example.name,
        "scores": example.scores,
        **{kind: image_uri(image, _LARGEST_PIXELS) for kind, image in images.items()},
    }
