"""The page of a report: metrics, charts and images of a run.

Examples on the page are evenly spaced over their list, never chosen by quality.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pardalis.data.report import PrepareReport
from pardalis.documents.images import open_image
from pardalis.evaluate import report_words
from pardalis.evaluate.captions import is_exact
from pardalis.evaluate.commands import commands
from pardalis.evaluate.curves import Curve, chart, curve_of
from pardalis.evaluate.metrics_file import Metrics
from pardalis.evaluate.report_data import Gallery, GeneratedImages, Reconstructions
from pardalis.evaluate.run_folder import RunFolder
from pardalis.evaluate.sample_file import SPLITS, Split
from pardalis.evaluate.templates import image_uri, markup, metric_name, number, spread
from pardalis.evaluate.templates import render as render_template
from pardalis.vq.config import ImageTokenizerConfig

TASKS = "tasks"  # metrics of tasks are called tasks/<task>/<number>
# The number of examples of each kind.
_N_MOSAIC = 16
_N_CORPUS = 36
_N_RECONSTRUCTED = 10
_N_GENERATED = 30
_N_CAPTIONS = 24
_N_PAGES = 12
# The colours of the template: text, images, the image tokenizer.
_BLUE, _CORAL, _TEAL = "#2f5d8c", "#cf5239", "#15806a"


def collect(
    folder: RunFolder,
    gallery: Gallery,
    generated: Mapping[Split, GeneratedImages],
    reconstructed: Mapping[Split, Reconstructions],
    tokenizer: ImageTokenizerConfig,
) -> dict[str, Any]:
    """Return the content of the page except numbers: images as data URIs, and charts.

    It is separate from :func:`render`, so that its time is part of the run's duration.

    Raises:
        DataError: an image of an illustrated page is missing.
        ConfigError: jinja2 or matplotlib is not installed.
    """
    return {
        "tokenizer": tokenizer,
        "tokenizer_was_trained": folder.image_tokenizer is not None,
        "recipe": folder.recipe,
        "splits": SPLITS,
        "packages": folder.packages,
        "licences": folder.licences,
        "documents": {
            split: sum(
                shard.read - shard.n_rejected for shard in _shards_of(folder, split).values()
            )
            for split in SPLITS
        },
        "n_images": sum(shard.images for shard in folder.shards.values()),
        "corpus": {split: _corpus_samples(gallery, split) for split in SPLITS},
        "n_compared": {split: len(gallery.of_split(split)) for split in SPLITS},
        "n_corpus": {split: _n_corpus(folder, gallery, split) for split in SPLITS},
        "reconstructed": {
            split: _reconstructed_samples(gallery, reconstructed[split]) for split in SPLITS
        },
        "mosaic": [
            {"prompt": prompt, "image": image_uri(image)}
            for prompt, image in spread(
                list(zip(generated["train"].prompts, generated["train"].images, strict=True)),
                _N_MOSAIC,
            )
        ],
        "generated": {split: _generated_samples(gallery, generated[split]) for split in SPLITS},
        "captions": {split: _caption_samples(folder, split) for split in SPLITS},
        "pages": _pages(folder),
        "shards": folder.shards,
        "n_unreadable": folder.samples["left_out"].get("unreadable", 0),
        "n_too_long": folder.samples["left_out"].get("too_long", 0),
        "left_out": report_words.left_out(folder),
        "cut": report_words.cut(folder),
        "evaluation": folder.evaluation,
        "task_charts": _task_charts(folder.training),
        "commands": commands(folder.path, folder.samples),
        "charts": _charts(folder.image_tokenizer, folder.training),
    }


def render(
    content: Mapping[str, Any], stages: Sequence[Mapping[str, Any]], numbers: Mapping[str, Any]
) -> str:
    """Return the page as one self-contained HTML document.

    Args:
        content: the result of :func:`collect`.
        stages: name, seconds and peak_rss_gib of each stage.
        numbers: the numbers of ``report.json``.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    # None: the run has no such data. So has a count of held-out images that is 0.
    known = {
        key: value
        for key, value in numbers.items()
        if value or (value == 0 and "heldout" not in key)
    }
    if any(numbers[f"n_{kind}_heldout"] for kind in ("concepts", "generated", "captions")):
        known = {key: value for key, value in numbers.items() if value is not None}
    table = [(key, _MEANINGS[key], number(value)) for key, value in known.items()]
    no_skill = report_words.no_skill(numbers)
    return render_template(
        Path(__file__).with_name("report_page.html.jinja"),
        {**content, "n": numbers, "table": table, "stages": stages, "no_skill": no_skill},
    )


def _shards_of(folder: RunFolder, split: Split) -> dict[str, PrepareReport]:
    heldout = folder.settings.get("heldout", [])
    names = {each.get("name") for each in heldout if isinstance(each, dict)}
    return {
        name: shard
        for name, shard in folder.shards.items()
        if (name in names) == (split != "train")
    }


def _n_corpus(folder: RunFolder, gallery: Gallery, split: Split) -> int:
    """Return the number of images of a split that the gallery was taken from."""
    n = folder.samples["captioned"].get(split, 0) or len(gallery.of_split(split))
    counts = folder.samples.get("n_images")  # not of an earlier version
    known = counts.get(split) if isinstance(counts, dict) else None
    return known if isinstance(known, int) else n


def _corpus_samples(gallery: Gallery, split: Split) -> list[dict[str, Any]]:
    return [
        {"name": gallery.names[i], "image": image_uri(gallery.images[i])}
        for i in spread(gallery.of_split(split), _N_CORPUS)
    ]


def _reconstructed_samples(
    gallery: Gallery, reconstructed: Reconstructions
) -> list[dict[str, Any]]:
    psnr_of_each = reconstructed.scores.psnr_of_each
    triples = list(zip(reconstructed.originals, reconstructed.images, psnr_of_each, strict=True))
    return [
        {
            "name": gallery.names[i],
            "original": image_uri(gallery.images[i]),
            "reconstruction": image_uri(image),
            "psnr": psnr,
        }
        for i, image, psnr in spread(triples, _N_RECONSTRUCTED)
    ]


def _generated_samples(gallery: Gallery, generated: GeneratedImages) -> list[dict[str, Any]]:
    return [
        {
            "prompt": generated.prompts[k],
            "image": image_uri(generated.images[k]),
            "original": image_uri(gallery.images[generated.originals[k]]),
            "original_name": gallery.names[generated.originals[k]],
            "nearest": _nearest_sample(gallery, generated, k) if generated.nearest else None,
            "rank": generated.retrieval and generated.retrieval.ranks[k],
            "n_candidates": generated.retrieval and generated.retrieval.n_candidates[k],
        }
        for k in spread(range(len(generated.images)), _N_GENERATED)
    ]


def _nearest_sample(gallery: Gallery, generated: GeneratedImages, k: int) -> dict[str, Any]:
    i = generated.nearest[k]
    is_original = i == generated.originals[k]
    return {
        "image": image_uri(gallery.images[i]),
        "name": "the original" if is_original else gallery.names[i],
        "similarity": generated.similarities[k],
    }


def _caption_samples(folder: RunFolder, split: Split) -> list[dict[str, Any]]:
    samples = [sample for sample in folder.samples["captions"] if sample["split"] == split]
    return [
        {
            "image": image_uri(open_image(folder.path / sample["image"])),
            "caption": sample["caption"],
            "expected": sample["expected"],
            "is_exact": is_exact(sample["caption"], sample["expected"]),
        }
        for sample in spread(samples, _N_CAPTIONS)
    ]


def _pages(folder: RunFolder) -> list[dict[str, Any]]:
    def segment_values(segment: Mapping[str, str]) -> dict[str, str]:
        if "text" in segment:
            return {"text": segment["text"]}
        return {"image": image_uri(open_image(folder.path / "samples" / segment["image"]))}

    return [
        {
            "prompt": sample["prompt"],
            "split": sample["split"],
            "segments": [segment_values(segment) for segment in sample["segments"]],
            "is_cut": sample.get("truncated") is True,
        }
        for sample in spread(folder.samples["pages"], _N_PAGES)
    ]


def _charts(tokenizer: Metrics | None, model: Metrics) -> dict[str, Any]:
    charts = {
        "loss_text": _chart(
            [
                curve_of(model, "loss_text", "train", _BLUE),
                curve_of(model, "heldout_loss_text", "held-out", _BLUE),
            ],
            "loss per text token (nats)",
        ),
        "loss_image": _chart(
            [
                curve_of(model, "loss_image", "train", _CORAL),
                curve_of(model, "heldout_loss_image", "held-out", _CORAL),
            ],
            "loss per image token (nats)",
        ),
        "speed": _chart(
            [curve_of(model, "tokens_per_second", "training tokens per second", _TEAL)],
            "tokens per second",
            from_zero=True,
        ),
    }
    if tokenizer is not None:
        psnr = curve_of(tokenizer, "heldout_psnr", "held-out images", _TEAL)
        use = curve_of(tokenizer, "codebook_use", "share of codes in use", _TEAL)
        charts["psnr"] = _chart([psnr], "PSNR (dB)")
        charts["codebook"] = _chart([use], "codebook use", from_zero=True)
    return {name: markup(svg) for name, svg in charts.items() if svg}


def _task_charts(model: Metrics) -> list[tuple[str, Any]]:
    """Return a chart of each task that was evaluated during training: its first number."""
    first: dict[str, str] = {}
    for name in model.names(f"{TASKS}/"):
        first.setdefault(name.split("/")[1], name)
    charts = []
    for task, name in first.items():
        label = metric_name(name.rpartition("/")[2])
        charts.append((task, markup(_chart([curve_of(model, name, task, _TEAL)], label))))
    return charts


def _chart(curves: Sequence[Curve], y_label: str, *, from_zero: bool = False) -> str:
    """Return a chart; an empty text if no curve has a point."""
    if not any(curve.steps for curve in curves):
        return ""
    return chart(curves, y_label, from_zero=from_zero)


_MEANINGS = {
    "seconds": "duration of all stages, this report included, in seconds",
    "peak_rss_gib": "peak memory over the stages, in GiB",
    "n_concepts_train": "captioned training images",
    "n_concepts_heldout": "captioned held-out images",
    "gallery_size": "captioned images, all or a sample, that generated images are compared with",
    "tokens_text": "text tokens in all shards",
    "tokens_image": "image tokens in all shards",
    "psnr": "PSNR of reconstructed held-out gallery images, mean over images, dB",
    "psnr_train": "PSNR of reconstructed training images of the gallery, mean over images, dB",
    "codebook_use": "share of the codes that at least one training image of the gallery uses",
    "perplexity": "exp(entropy) of their codes: the effective number of codes in use",
    "loss_text": "training loss per text token, nats, mean of the last ten reports",
    "loss_image": "training loss per image token, nats, mean of the last ten reports",
    "heldout_loss_text": "held-out loss per text token, nats, last evaluation",
    "heldout_loss_image": "held-out loss per image token, nats, last evaluation",
    "tokens_per_second": "training tokens per second, mean of the last ten reports",
    "n_generated_train": "images generated from captions of training images",
    "n_generated_heldout": "images generated from captions of held-out images",
    "retrieval_top1_train": "share of generated images whose original is the nearest candidate",
    "retrieval_top1_heldout": "the same for held-out captions",
    "retrieval_candidates": "candidates: the original and random other images of the gallery, "
    "without copies of the original and images of the same caption",
    "retrieval_chance": "chance level of the retrieval accuracy, mean over generated images",
    "retrieval_chance_train": "the same for training captions",
    "retrieval_chance_heldout": "the same for held-out captions",
    "retrieval_constant_train": "retrieval accuracy of the best corpus image in the place of all "
    "generated ones, for training captions",
    "retrieval_constant_heldout": "the same for held-out captions",
    "n_captions_train": "captions generated for training images",
    "n_captions_heldout": "captions generated for held-out images",
    "caption_exact_train": "share equal to the expected caption, ignoring case",
    "caption_exact_heldout": "the same for held-out images",
    "caption_f1_train": "mean F1 of the words",
    "caption_f1_heldout": "the same for held-out images",
    "caption_exact_constant_train": "share of exact matches of the best single caption",
    "caption_exact_constant_heldout": "the same for held-out images",
    "caption_f1_constant_train": "mean F1 of the words of the best single caption found",
    "caption_f1_constant_heldout": "the same for held-out images",
    "image_tokens_per_second": "image tokens generated per second",
}
