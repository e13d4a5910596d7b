"""A run's report: its numbers, computed from what its stages left behind, and a page to read.

Nothing is trained or drawn here. ``run_folder.py`` reads, this module scores, ``page.py`` shows.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from pardalis import files
from pardalis.documents.pictures import open_picture
from pardalis.errors import DataError
from pardalis.evaluate import page
from pardalis.evaluate.captions import CaptionScores, score_captions
from pardalis.evaluate.features import PictureFeatures
from pardalis.evaluate.image_tokenizer import evaluate_image_tokenizer
from pardalis.evaluate.retrieval import nearest, retrieval_top1
from pardalis.evaluate.run_folder import SPLITS, RunFolder, Split
from pardalis.evaluate.scored import Corpus, Drawn, Rebuilt
from pardalis.vq.tokenizer import ImageTokenizer

_CANDIDATES = 100
_LAST_LINES = 10
"""Training losses are the mean of as many last lines of metrics: one line is one noisy batch."""


def write_report(
    run: Path, image_tokenizer: ImageTokenizer, features: PictureFeatures
) -> dict[str, object]:
    """Score a finished run; write ``report.json`` and the page ``report.html`` into its folder.

    Drawn pictures are ranked among all pictures of the corpus, train and held-out. Every picture
    of the corpus goes through the image tokenizer.

    Returns:
        The numbers of ``report.json``; None where a run has nothing to measure.

    Raises:
        DataError: a file of the run is missing or broken; names the stage to run.
        ConfigError: a package of the extra ``demo`` is missing.
    """
    folder = RunFolder.read(run)
    corpus = _corpus(folder, features)
    drawn = {split: _drawn(folder, corpus, features, split) for split in SPLITS}
    rebuilt = {split: _rebuilt(corpus, image_tokenizer, split) for split in SPLITS}
    captions = {split: _captions(folder, split) for split in SPLITS}
    numbers = _numbers(folder, corpus, drawn, rebuilt, captions)
    html = page.render(folder, corpus, drawn, rebuilt, numbers, image_tokenizer.config)
    files.write_json(run / "report.json", numbers)
    files.write_text(run / "report.html", html)
    return numbers


def _corpus(folder: RunFolder, features: PictureFeatures) -> Corpus:
    gallery = folder.answers["gallery"]
    images = [open_picture(folder.path / entry["picture"]) for entry in gallery]
    return Corpus(
        names=[entry.get("caption", entry["name"]) for entry in gallery],
        splits=[entry["split"] for entry in gallery],
        images=images,
        features=features.of(images),
    )


def _drawn(folder: RunFolder, corpus: Corpus, features: PictureFeatures, split: Split) -> Drawn:
    answers = [answer for answer in folder.answers["pictures"] if answer["split"] == split]
    images = [open_picture(folder.path / "answers" / answer["drawn"]) for answer in answers]
    vectors = features.of(images)
    originals = _indices(folder, [answer["original"] for answer in answers])
    train = torch.tensor(corpus.of_split("train"), dtype=torch.long)
    closest, similarities = (
        nearest(vectors, corpus.features[train]) if len(train) else (train, torch.empty(0))
    )
    return Drawn(
        prompts=[answer["prompt"] for answer in answers],
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


def _indices(folder: RunFolder, pictures: Sequence[str]) -> list[int]:
    index = {entry["picture"]: i for i, entry in enumerate(folder.answers["gallery"])}
    if strangers := [picture for picture in pictures if picture not in index]:
        raise DataError(
            f"{folder.path / 'answers/answers.json'} names the original {strangers[0]}, which its "
            "gallery does not have; run the stage 'answer' again."
        )
    return [index[picture] for picture in pictures]


def _rebuilt(corpus: Corpus, tokenizer: ImageTokenizer, split: Split) -> Rebuilt:
    members = corpus.of_split(split)
    scores, images = evaluate_image_tokenizer(tokenizer, [corpus.images[i] for i in members])
    return Rebuilt(members=members, scores=scores, images=images)


def _captions(folder: RunFolder, split: Split) -> CaptionScores:
    answers = [answer for answer in folder.answers["captions"] if answer["split"] == split]
    return score_captions([a["caption"] for a in answers], [a["expected"] for a in answers])


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
        "seconds": math.fsum(stage["seconds"] for stage in folder.stages),
        "peak_rss_gib": max((stage["peak_rss_gib"] for stage in folder.stages), default=None),
        "n_concepts_train": len(corpus.of_split(train)),
        "n_concepts_heldout": len(corpus.of_split(held_out)),
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
        "image_tokens_per_second": folder.answers.get("image_tokens_per_second"),
    }
    # JSON has no NaN.
    return {
        name: None if value is None or math.isnan(value) else value
        for name, value in numbers.items()
    }
