"""A run's report: its numbers, computed from what its stages left behind, and a page to read.

Nothing is trained or drawn here. ``run_folder.py`` reads, this module scores, ``page.py`` shows.
"""

import math
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from pardalis import files
from pardalis.documents.images import open_image
from pardalis.errors import DataError
from pardalis.evaluate import page
from pardalis.evaluate.captions import CaptionScores, score_captions
from pardalis.evaluate.features import ImageFeatures
from pardalis.evaluate.image_tokenizer import evaluate_image_tokenizer
from pardalis.evaluate.retrieval import nearest, retrieval_top1
from pardalis.evaluate.run_folder import SPLITS, RunFolder, Split
from pardalis.evaluate.scored import Corpus, Drawn, Rebuilt
from pardalis.vq.tokenizer import ImageTokenizer

_CANDIDATES = 100
# Training losses are the mean of as many last lines of metrics: one line is one noisy batch.
_LAST_LINES = 10
# Pixels of the shorter side of gallery images, which the net and the page see at 224 and less.
_GALLERY_SIDE = 256


def write_report(
    run: Path, image_tokenizer: ImageTokenizer, features: ImageFeatures
) -> dict[str, object]:
    """Score a finished run; write ``report.json`` and the page ``report.html`` into its folder.

    Drawn images are ranked among the gallery, train and held-out, and every image of it goes
    through the image tokenizer.

    Returns:
        The numbers of ``report.json``; None where a run has nothing to measure.

    Raises:
        DataError: a file of the run is missing or broken; names the stage to run.
        ConfigError: a package of the extra ``demo`` is missing.
    """
    start = time.monotonic()
    folder = RunFolder.read(run)
    corpus = _corpus(folder, features, max(_GALLERY_SIDE, image_tokenizer.config.resolution))
    drawn = {split: _drawn(folder, corpus, features, split) for split in SPLITS}
    rebuilt = {split: _rebuilt(corpus, image_tokenizer, split) for split in SPLITS}
    captions = {split: _captions(folder, split) for split in SPLITS}
    shown = page.gather(folder, corpus, drawn, rebuilt, image_tokenizer.config)
    stages = [*folder.stages, _this_stage(time.monotonic() - start)]
    numbers = _costs(stages) | _numbers(folder, corpus, drawn, rebuilt, captions)
    html = page.render(shown, stages, numbers)
    files.write_json(run / "report.json", numbers)
    files.write_text(run / "report.html", html)
    return numbers


def _this_stage(seconds: float) -> dict[str, Any]:
    """Describe the report as ``stages.json`` describes the stages before it."""
    peak_rss_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"name": "report", "seconds": seconds, "peak_rss_gib": peak_rss_gib}


def _costs(stages: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    return {
        "seconds": math.fsum(stage["seconds"] for stage in stages),
        "peak_rss_gib": max(stage["peak_rss_gib"] for stage in stages),
    }


def _corpus(folder: RunFolder, features: ImageFeatures, side: int) -> Corpus:
    gallery = folder.samples["gallery"]
    images = [_shrunk(open_image(folder.path / entry["image"]), side) for entry in gallery]
    return Corpus(
        names=[entry.get("caption", entry["name"]) for entry in gallery],
        splits=[entry["split"] for entry in gallery],
        images=images,
        features=features.of(images),
    )


def _shrunk(image: PIL.Image.Image, side: int) -> PIL.Image.Image:
    """Scale the shorter side down to ``side``, as the image tokenizer does; never up."""
    scale = side / min(image.size)
    if scale >= 1:
        return image
    size = (round(scale * image.width), round(scale * image.height))
    return image.resize(size, PIL.Image.Resampling.LANCZOS)


def _drawn(folder: RunFolder, corpus: Corpus, features: ImageFeatures, split: Split) -> Drawn:
    samples = [sample for sample in folder.samples["images"] if sample["split"] == split]
    images = [open_image(folder.path / "samples" / sample["drawn"]) for sample in samples]
    vectors = features.of(images)
    originals = _indices(folder, [sample["original"] for sample in samples])
    train = torch.tensor(corpus.of_split("train"), dtype=torch.long)
    closest, similarities = (
        nearest(vectors, corpus.features[train]) if len(train) else (train, torch.empty(0))
    )
    return Drawn(
        prompts=[sample["prompt"] for sample in samples],
        images=images,
        originals=originals,
        nearest=train[closest].tolist(),
        similarities=similarities.tolist(),
        retrieval=retrieval_top1(
            vectors,
            corpus.features,
            torch.tensor(originals, dtype=torch.long),
            n_candidates=min(_CANDIDATES, len(corpus.images)),
        ),
    )


def _indices(folder: RunFolder, images: Sequence[str]) -> list[int]:
    index = {entry["image"]: i for i, entry in enumerate(folder.samples["gallery"])}
    if strangers := [image for image in images if image not in index]:
        raise DataError(
            f"{folder.path / 'samples/samples.json'} names the original {strangers[0]}, which its "
            "gallery does not have; run the stage 'sample' again."
        )
    return [index[image] for image in images]


def _rebuilt(corpus: Corpus, tokenizer: ImageTokenizer, split: Split) -> Rebuilt:
    # A tokenizer that was imported without a decoder rebuilds none.
    members = corpus.of_split(split) if tokenizer.config.has_decoder else []
    scores, images = evaluate_image_tokenizer(tokenizer, [corpus.images[i] for i in members])
    return Rebuilt(members=members, scores=scores, images=images)


def _captions(folder: RunFolder, split: Split) -> CaptionScores:
    samples = [sample for sample in folder.samples["captions"] if sample["split"] == split]
    return score_captions([a["caption"] for a in samples], [a["expected"] for a in samples])


def _numbers(
    folder: RunFolder,
    corpus: Corpus,
    drawn: dict[Split, Drawn],
    rebuilt: dict[Split, Rebuilt],
    captions: dict[Split, CaptionScores],
) -> dict[str, object]:
    train, held_out = SPLITS
    candidates = min(_CANDIDATES, len(corpus.images))
    numbers: dict[str, float | int | None] = {
        "n_concepts_train": folder.samples["captioned"].get(train, 0),
        "n_concepts_heldout": folder.samples["captioned"].get(held_out, 0),
        "gallery_size": len(corpus.images),
        "tokens_text": sum(shard.tokens["text"] for shard in folder.shards.values()),
        "tokens_image": sum(shard.tokens["image"] for shard in folder.shards.values()),
        "psnr": rebuilt[held_out].scores.psnr,
        "psnr_train": rebuilt[train].scores.psnr,
        "codebook_use": rebuilt[train].scores.codebook_use,
        "perplexity": rebuilt[train].scores.perplexity,
        "loss_text": folder.training.last("loss_text", _LAST_LINES),
        "loss_image": folder.training.last("loss_image", _LAST_LINES),
        "heldout_loss_text": folder.training.last("heldout_loss_text"),
        "heldout_loss_image": folder.training.last("heldout_loss_image"),
        "tokens_per_second": folder.training.last("tokens_per_second", _LAST_LINES),
        "n_drawn_train": len(drawn[train].images),
        "n_drawn_heldout": len(drawn[held_out].images),
        "retrieval_top1_train": drawn[train].retrieval.top1,
        "retrieval_top1_heldout": drawn[held_out].retrieval.top1,
        "retrieval_candidates": candidates,
        "retrieval_chance": 1 / candidates if candidates else None,
        "n_captions_train": captions[train].n_captions,
        "n_captions_heldout": captions[held_out].n_captions,
        "caption_exact_train": captions[train].exact,
        "caption_exact_heldout": captions[held_out].exact,
        "caption_f1_train": captions[train].f1,
        "caption_f1_heldout": captions[held_out].f1,
        "image_tokens_per_second": folder.samples["image_tokens_per_second"],
    }
    # JSON has no NaN.
    return {
        name: None if value is None or math.isnan(value) else value
        for name, value in numbers.items()
    }
