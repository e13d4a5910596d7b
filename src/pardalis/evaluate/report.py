"""The report of a run: metrics computed from the outputs of its stages, and a page.

``run_folder.py`` reads the outputs, this module computes the metrics, ``report_page.py`` renders
the page.
"""

import hashlib
import math
import resource
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import PIL.Image
import torch

from pardalis import files
from pardalis.documents.images import open_image
from pardalis.errors import DataError
from pardalis.evaluate import report_page
from pardalis.evaluate.captions import CaptionScores, score_captions
from pardalis.evaluate.features import ImageFeatures
from pardalis.evaluate.image_tokenizer import evaluate_image_tokenizer
from pardalis.evaluate.report_data import Gallery, GeneratedImages, Reconstructions
from pardalis.evaluate.retrieval import Retrieval, nearest, retrieval_top1
from pardalis.evaluate.run_folder import RunFolder
from pardalis.evaluate.sample_file import SPLITS, SourceImages, Split
from pardalis.vq.tokenizer import ImageTokenizer

_CANDIDATES = 100
_LAST_LINES = 10  # lines of metrics that training losses are averaged over
_GALLERY_SIDE = 256  # shorter side of gallery images; the net and the page use at most 224


def write_report(
    run: Path,
    image_tokenizer: ImageTokenizer,
    features: ImageFeatures | None,
    source_images: SourceImages = lambda: (),
) -> dict[str, object]:
    """Evaluate a finished run; write ``report.json`` and ``report.html`` into its folder.

    Generated images are ranked against the gallery of training and held-out images, and all
    gallery images are reconstructed by the image tokenizer.

    Args:
        features: the scoring net; None: the images are not ranked.
        source_images: the images of the recipe's sources. The samples may name no others outside
            the run folder.

    Returns:
        The numbers of ``report.json``; None for those that the run has no data for.

    Raises:
        DataError: a file of the run is missing or damaged; names the stage to run.
        ConfigError: jinja2 or matplotlib is missing.
    """
    start = time.monotonic()
    folder = RunFolder.read(run, source_images)
    gallery = _gallery(folder, features, max(_GALLERY_SIDE, image_tokenizer.config.resolution))
    generated = {split: _generated(folder, gallery, features, split) for split in SPLITS}
    reconstructed = {split: _reconstructed(gallery, image_tokenizer, split) for split in SPLITS}
    captions = {split: _captions(folder, split) for split in SPLITS}
    content = report_page.collect(folder, gallery, generated, reconstructed, image_tokenizer.config)
    this_stage = {
        "name": "report",
        "seconds": time.monotonic() - start,
        "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    stages = [*folder.stages, this_stage]
    numbers = {
        "seconds": math.fsum(stage["seconds"] for stage in stages),
        "peak_rss_gib": max(stage["peak_rss_gib"] for stage in stages),
        **_numbers(folder, gallery, generated, reconstructed, captions),
    }
    html = report_page.render(content, stages, numbers)
    files.write_json(run / "report.json", numbers)
    files.write_text(run / "report.html", html)
    return numbers


def _gallery(folder: RunFolder, features: ImageFeatures | None, side: int) -> Gallery:
    entries = folder.samples["gallery"]
    images = [_downscale(open_image(folder.path / entry["image"]), side) for entry in entries]
    names = [entry.get("caption", entry["name"]) for entry in entries]
    return Gallery(
        names=names,
        splits=[entry["split"] for entry in entries],
        images=images,
        # The net reads some thirty images a second, and the gallery has thousands.
        features=features.of(images) if features and folder.samples["images"] else None,
        labels=[
            (" ".join(name.lower().split()), _pixels(image))
            for name, image in zip(names, images, strict=True)
        ],
    )


def _pixels(image: PIL.Image.Image) -> str:
    """Return what is the same for equal images only."""
    return f"{image.size} {hashlib.sha256(image.tobytes()).hexdigest()}"


def _downscale(image: PIL.Image.Image, side: int) -> PIL.Image.Image:
    """Scale the shorter side down to ``side``; smaller images are unchanged."""
    scale = side / min(image.size)
    if scale >= 1:
        return image
    size = (round(scale * image.width), round(scale * image.height))
    return image.resize(size, PIL.Image.Resampling.LANCZOS)


def _generated(
    folder: RunFolder, gallery: Gallery, features: ImageFeatures | None, split: Split
) -> GeneratedImages:
    samples = [sample for sample in folder.samples["images"] if sample["split"] == split]
    images = [open_image(folder.path / "samples" / sample["generated"]) for sample in samples]
    originals = _indices(folder, [sample["original"] for sample in samples])
    prompts = [sample["prompt"] for sample in samples]
    if features is None or gallery.features is None:
        return GeneratedImages(
            prompts=prompts, images=images, originals=originals, nearest=[], similarities=[],
            retrieval=None,
        )  # fmt: skip
    vectors = features.of(images)
    train = torch.tensor(gallery.of_split("train"), dtype=torch.long)
    closest, similarities = (
        nearest(vectors, gallery.features[train]) if len(train) else (train, torch.empty(0))
    )
    return GeneratedImages(
        prompts=prompts,
        images=images,
        originals=originals,
        nearest=train[closest].tolist(),
        similarities=similarities.tolist(),
        retrieval=retrieval_top1(
            vectors,
            gallery.features,
            torch.tensor(originals, dtype=torch.long),
            n_candidates=min(_CANDIDATES, len(gallery.images)),
            same=_equally_right(gallery, originals),
        ),
    )


def _equally_right(gallery: Gallery, originals: Sequence[int]) -> list[list[int]]:
    """Return the images of the gallery with the caption or the pixels of each original."""
    alike = defaultdict[tuple[str, str], list[int]](list)
    for i, (caption, pixels) in enumerate(gallery.labels):
        alike["caption", caption].append(i)
        alike["pixels", pixels].append(i)
    return [
        alike["caption", gallery.labels[i][0]] + alike["pixels", gallery.labels[i][1]]
        for i in originals
    ]


def _indices(folder: RunFolder, images: Sequence[str]) -> list[int]:
    index = {entry["image"]: i for i, entry in enumerate(folder.samples["gallery"])}
    if unknown := [image for image in images if image not in index]:
        raise DataError(
            f"{folder.path / 'samples/samples.json'} names the original {unknown[0]}, which is not "
            "in its gallery; run the stage 'sample' again."
        )
    return [index[image] for image in images]


def _reconstructed(gallery: Gallery, tokenizer: ImageTokenizer, split: Split) -> Reconstructions:
    originals = gallery.of_split(split) if tokenizer.config.has_decoder else []
    scores, images = evaluate_image_tokenizer(tokenizer, [gallery.images[i] for i in originals])
    return Reconstructions(originals=originals, scores=scores, images=images)


def _captions(folder: RunFolder, split: Split) -> CaptionScores:
    samples = [sample for sample in folder.samples["captions"] if sample["split"] == split]
    return score_captions([s["caption"] for s in samples], [s["expected"] for s in samples])


def _numbers(
    folder: RunFolder,
    gallery: Gallery,
    generated: dict[Split, GeneratedImages],
    reconstructed: dict[Split, Reconstructions],
    captions: dict[Split, CaptionScores],
) -> dict[str, object]:
    train, held_out = SPLITS
    retrieval = {split: generated[split].retrieval for split in SPLITS}
    candidates = [n for each in retrieval.values() if each for n in each.n_candidates]
    numbers: dict[str, float | int | None] = {
        "n_concepts_train": folder.samples["captioned"].get(train, 0),
        "n_concepts_heldout": folder.samples["captioned"].get(held_out, 0),
        "gallery_size": len(gallery.images),
        "tokens_text": sum(shard.tokens["text"] for shard in folder.shards.values()),
        "tokens_image": sum(shard.tokens["image"] for shard in folder.shards.values()),
        "psnr": reconstructed[held_out].scores.psnr,
        "psnr_train": reconstructed[train].scores.psnr,
        "codebook_use": reconstructed[train].scores.codebook_use,
        "perplexity": reconstructed[train].scores.perplexity,
        "loss_text": folder.training.last("loss_text", _LAST_LINES),
        "loss_image": folder.training.last("loss_image", _LAST_LINES),
        "heldout_loss_text": folder.training.last("heldout_loss_text"),
        "heldout_loss_image": folder.training.last("heldout_loss_image"),
        "tokens_per_second": folder.training.last("tokens_per_second", _LAST_LINES),
        "n_generated_train": len(generated[train].images),
        "n_generated_heldout": len(generated[held_out].images),
        "retrieval_top1_train": _of(retrieval[train], "top1"),
        "retrieval_top1_heldout": _of(retrieval[held_out], "top1"),
        "retrieval_candidates": max(candidates, default=None),
        "retrieval_chance": mean(1 / n for n in candidates) if candidates else None,
        "retrieval_chance_train": _of(retrieval[train], "chance"),
        "retrieval_chance_heldout": _of(retrieval[held_out], "chance"),
        "retrieval_constant_train": _of(retrieval[train], "constant"),
        "retrieval_constant_heldout": _of(retrieval[held_out], "constant"),
        "n_captions_train": captions[train].n_captions,
        "n_captions_heldout": captions[held_out].n_captions,
        "caption_exact_train": captions[train].exact,
        "caption_exact_heldout": captions[held_out].exact,
        "caption_f1_train": captions[train].f1,
        "caption_f1_heldout": captions[held_out].f1,
        "caption_exact_constant_train": captions[train].constant_exact,
        "caption_exact_constant_heldout": captions[held_out].constant_exact,
        "caption_f1_constant_train": captions[train].constant_f1,
        "caption_f1_constant_heldout": captions[held_out].constant_f1,
        "image_tokens_per_second": folder.samples["image_tokens_per_second"],
    }
    # JSON has no NaN.
    return {
        name: None if value is None or math.isnan(value) else value
        for name, value in numbers.items()
    }


def _of(retrieval: Retrieval | None, name: str) -> float | None:
    return None if retrieval is None else getattr(retrieval, name)
