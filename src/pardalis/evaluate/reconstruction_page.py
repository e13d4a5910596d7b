"""The files of an evaluation of an image tokenizer.

scores.json     scores over all images, settings, and rejected images with the reason
images.jsonl    the scores of each image
page.html       the same, with the worst images and a random sample
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import ImageChops

from pardalis import files
from pardalis.evaluate.curves import codebook_chart
from pardalis.evaluate.extras import can_write_pages
from pardalis.evaluate.reconstruction import Evaluation, Example
from pardalis.evaluate.templates import image_uri, markup, render

SCORES, IMAGES, PAGE = "scores.json", "images.jsonl", "page.html"

_MAX_SIDE = 256  # pixels of an image on the page
_DIFFERENCE_GAIN = 2  # most differences are too dark to see unscaled
_CODES_COLOUR = "#15806a"

_MEANINGS = {
    "images": "images scored",
    "rejected": "documents and images that could not be read",
    "psnr": "peak signal-to-noise ratio of 8-bit RGB in dB, mean over images; higher is better",
    "ssim": "structural similarity, mean over images; 1 is equal",
    "words": "words that OCR reads in the originals",
    "word_recall": "share of them that OCR also reads in the reconstructions",
    "codebook_use": "share of the codebook's entries that at least one image uses",
    "perplexity": "exp(entropy) of the codes: the effective number of codes in use",
    "bits_per_code": "entropy of the codes in bits",
    "fid": "Fréchet distance of Inception features of originals and reconstructions; lower is "
    "better; it is larger for fewer images, so compare at equal numbers",
}
_FAMILIES = {
    "lpips_": "learned perceptual distance (LPIPS), mean over images; lower is better",
    "perceptual_": "perceptual distance in the net's features, not LPIPS, mean over images; lower "
    "is better",
    "frechet_": "Fréchet distance in the net's features, not FID; lower is better; it is larger "
    "for fewer images, so compare at equal numbers",
}


def meaning_of(score: str) -> str:
    """Return a one-line explanation of a score."""
    family = next((text for prefix, text in _FAMILIES.items() if score.startswith(prefix)), "")
    return _MEANINGS.get(score, family)


def summary(evaluation: Evaluation, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain values of ``scores.json``; ``facts`` are the settings of the evaluation."""
    rejected = {kind: asdict(of_kind) for kind, of_kind in evaluation.rejected.items()}
    return {**facts, "scores": evaluation.scores, "rejected": rejected}


def write_evaluation(folder: Path, evaluation: Evaluation, facts: Mapping[str, Any]) -> None:
    """Write the scores and the page into a folder, each file atomically.

    Without jinja2 and matplotlib the page is left out, with a warning.
    """
    lines = (json.dumps(image, ensure_ascii=False) for image in evaluation.images)
    files.write_json(folder / SCORES, summary(evaluation, facts))
    files.write_text(folder / IMAGES, "".join(line + "\n" for line in lines))
    if not can_write_pages(f"The page of the evaluation ({PAGE}) is"):
        return
    page = render(
        Path(__file__).with_name("reconstruction_page.html.jinja"),
        {
            "facts": facts,
            "n": evaluation.scores,
            "table": table(evaluation.scores),
            "worst": [_example_values(example) for example in evaluation.worst],
            "worst_by": evaluation.worst_by,
            "sample": [_example_values(example) for example in evaluation.sample],
            "gain": _DIFFERENCE_GAIN,
            "n_codes": len(evaluation.code_counts),
            "n_dead": int((evaluation.code_counts == 0).sum()),
            "codebook_chart": markup(codebook_chart(evaluation.code_counts, _CODES_COLOUR)),
            "rejected": evaluation.rejected,
        },
    )
    files.write_text(folder / PAGE, page)


def table(scores: Mapping[str, Any]) -> list[tuple[str, Any, Sequence[float] | None, str]]:
    """Return the name, value, 95 % interval or None, and explanation of each score."""
    return [
        (name, value, scores.get(f"{name}_interval"), meaning_of(name))
        for name, value in scores.items()
        if not name.endswith("_interval")
    ]


def _example_values(example: Example) -> dict[str, Any]:
    difference = ImageChops.difference(example.original, example.reconstruction)
    images = {
        "original": example.original,
        "reconstruction": example.reconstruction,
        "difference": difference.point(lambda value: value * _DIFFERENCE_GAIN),
    }
    return {
        "name": example.name,
        "scores": example.scores,
        **{kind: image_uri(image, _MAX_SIDE) for kind, image in images.items()},
    }
