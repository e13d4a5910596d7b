"""The page a person opens after a run: its numbers and images, laid out.

``report.html.jinja`` holds the words and the design; this module gives it plain values. Whatever is
sampled for the page is evenly spaced over its list, never chosen by quality.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pardalis.documents.images import open_image
from pardalis.evaluate.captions import is_exact
from pardalis.evaluate.curves import Curve, chart
from pardalis.evaluate.run_folder import SPLITS, Metrics, RunFolder, Split
from pardalis.evaluate.scored import Corpus, Drawn, Rebuilt
from pardalis.evaluate.templates import image_uri, markup, shown, spread
from pardalis.evaluate.templates import render as render_template
from pardalis.vq.config import ImageTokenizerConfig

_SHOWN_MOSAIC = 16
_SHOWN_CORPUS = 36
_SHOWN_REBUILT = 10
_SHOWN_DRAWN = 30
_SHOWN_CAPTIONS = 24
_SHOWN_PAGES = 12
# The colours of the template: text, images, the image tokenizer.
_BLUE, _CORAL, _TEAL = "#2f5d8c", "#cf5239", "#15806a"


def gather(
    folder: RunFolder,
    corpus: Corpus,
    drawn: Mapping[Split, Drawn],
    rebuilt: Mapping[Split, Rebuilt],
    tokenizer: ImageTokenizerConfig,
) -> dict[str, Any]:
    """Return what the page shows besides numbers: images as data URIs, and charts.

    It is apart from :func:`render` so that the run's duration, a number, can include it.

    Raises:
        DataError: an image of an illustrated page is missing.
        ConfigError: jinja2 or matplotlib is not installed.
    """
    return {
        "tokenizer": tokenizer,
        "tokenizer_was_trained": folder.image_tokenizer is not None,
        "recipe": folder.recipe,
        "licences": folder.licences,
        "corpus": {split: _corpus_samples(corpus, split) for split in SPLITS},
        "n_compared": {split: len(corpus.of_split(split)) for split in SPLITS},
        "rebuilt": {split: _rebuilt_samples(corpus, rebuilt[split]) for split in SPLITS},
        "mosaic": [
            {"prompt": drawn["train"].prompts[k], "drawn": image_uri(drawn["train"].images[k])}
            for k in spread(range(len(drawn["train"].images)), _SHOWN_MOSAIC)
        ],
        "drawn": {split: _drawn_samples(corpus, drawn[split]) for split in SPLITS},
        "captions": {split: _caption_samples(folder, split) for split in SPLITS},
        "pages": _pages(folder),
        "shards": folder.shards,
        "left_out": folder.samples["left_out"],
        "charts": _charts(folder.image_tokenizer, folder.training),
    }


def render(
    gathered: Mapping[str, Any], stages: Sequence[Mapping[str, Any]], numbers: Mapping[str, Any]
) -> str:
    """Return the page as one self-contained HTML document.

    Args:
        gathered: of :func:`gather`.
        stages: name, seconds and peak_rss_gib of each.
        numbers: of ``report.json``.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    table = [(key, _MEANINGS[key], shown(numbers[key])) for key in numbers]
    return render_template(
        Path(__file__).with_name("report.html.jinja"),
        {**gathered, "n": numbers, "table": table, "stages": stages},
    )


def _corpus_samples(corpus: Corpus, split: Split) -> list[dict[str, Any]]:
    return [
        {"name": corpus.names[i], "image": image_uri(corpus.images[i])}
        for i in spread(corpus.of_split(split), _SHOWN_CORPUS)
    ]


def _rebuilt_samples(corpus: Corpus, rebuilt: Rebuilt) -> list[dict[str, Any]]:
    triples = list(zip(rebuilt.members, rebuilt.images, rebuilt.scores.psnr_of_each, strict=True))
    return [
        {
            "name": corpus.names[i],
            "original": image_uri(corpus.images[i]),
            "rebuilt": image_uri(image),
            "psnr": psnr,
        }
        for i, image, psnr in spread(triples, _SHOWN_REBUILT)
    ]


def _drawn_samples(corpus: Corpus, drawn: Drawn) -> list[dict[str, Any]]:
    return [
        {
            "prompt": drawn.prompts[k],
            "drawn": image_uri(drawn.images[k]),
            "original": image_uri(corpus.images[drawn.originals[k]]),
            "original_name": corpus.names[drawn.originals[k]],
            "nearest": _nearest_sample(corpus, drawn, k) if drawn.nearest else None,
            "rank": drawn.retrieval.ranks[k],
        }
        for k in spread(range(len(drawn.images)), _SHOWN_DRAWN)
    ]


def _nearest_sample(corpus: Corpus, drawn: Drawn, k: int) -> dict[str, Any]:
    i = drawn.nearest[k]
    is_original = i == drawn.originals[k]
    return {
        "image": image_uri(corpus.images[i]),
        "name": "the same image" if is_original else corpus.names[i],
        "similarity": drawn.similarities[k],
    }


def _caption_samples(folder: RunFolder, split: Split) -> list[dict[str, Any]]:
    samples = [sample for sample in folder.samples["captions"] if sample["split"] == split]
    return [
        {
            "image": image_uri(open_image(folder.path / sample["image"])),
            "caption": sample["caption"],
            "expected": sample["expected"],
            "is_right": is_exact(sample["caption"], sample["expected"]),
        }
        for sample in spread(samples, _SHOWN_CAPTIONS)
    ]


def _pages(folder: RunFolder) -> list[dict[str, Any]]:
    def segment_shown(segment: Mapping[str, str]) -> dict[str, str]:
        if "text" in segment:
            return {"text": segment["text"]}
        return {"image": image_uri(open_image(folder.path / "samples" / segment["image"]))}

    return [
        {
            "prompt": sample["prompt"],
            "split": sample["split"],
            "segments": [segment_shown(segment) for segment in sample["segments"]],
        }
        for sample in spread(folder.samples["pages"], _SHOWN_PAGES)
    ]


def _charts(tokenizer: Metrics | None, model: Metrics) -> dict[str, Any]:
    def curve(metrics: Metrics, name: str, label: str, colour: str) -> Curve:
        steps, values = metrics.curve(name)
        held_out = name.startswith("heldout_")
        return Curve(label=label, steps=steps, values=values, colour=colour, is_held_out=held_out)

    charts = {
        "loss_text": chart(
            [
                curve(model, "loss_text", "train", _BLUE),
                curve(model, "heldout_loss_text", "held-out", _BLUE),
            ],
            "loss per text token (nats)",
        ),
        "loss_image": chart(
            [
                curve(model, "loss_image", "train", _CORAL),
                curve(model, "heldout_loss_image", "held-out", _CORAL),
            ],
            "loss per image token (nats)",
        ),
        "speed": chart(
            [curve(model, "tokens_per_second", "tokens learnt a second", _TEAL)],
            "tokens per second",
            from_zero=True,
        ),
    }
    if tokenizer is not None:
        likeness = curve(tokenizer, "heldout_psnr", "held-out images", _TEAL)
        use = curve(tokenizer, "codebook_use", "share of codes in use", _TEAL)
        charts["psnr"] = chart([likeness], "PSNR (dB)")
        charts["codebook"] = chart([use], "codebook use", from_zero=True)
    return {name: markup(svg) for name, svg in charts.items()}


_MEANINGS = {
    "seconds": "all stages together, this report included, in seconds",
    "peak_rss_gib": "most memory any stage held, in GiB",
    "n_concepts_train": "captioned images trained on",
    "n_concepts_heldout": "captioned images kept out of all training",
    "gallery_size": "captioned images, all or a sample, that drawings are compared with",
    "tokens_text": "text tokens in the shards, train and held-out",
    "tokens_image": "image tokens in the shards, train and held-out",
    "psnr": "held-out images of these after the image tokenizer: mean of each one's PSNR, dB",
    "psnr_train": "the same for those it was trained on, dB",
    "codebook_use": "share of the codes that some train image of these uses",
    "perplexity": "codes in even use, in effect: exp(entropy) over the same",
    "loss_text": "nats per text token, train: mean of the last ten reports",
    "loss_image": "nats per image token, train: mean of the last ten reports",
    "heldout_loss_text": "nats per text token on held-out documents, last measured",
    "heldout_loss_image": "nats per image token on held-out documents, last measured",
    "tokens_per_second": "training speed: mean of the last ten reports",
    "n_drawn_train": "images drawn of train concepts",
    "n_drawn_heldout": "images drawn of held-out concepts",
    "retrieval_top1_train": "share of them nearest their own original among the candidates",
    "retrieval_top1_heldout": "the same for held-out concepts",
    "retrieval_candidates": "candidates: the original and random other images of the corpus",
    "retrieval_chance": "what guessing would reach",
    "n_captions_train": "captions written for train images",
    "n_captions_heldout": "captions written for held-out images",
    "caption_exact_train": "share equal to the expected name, ignoring case",
    "caption_exact_heldout": "the same for held-out images",
    "caption_f1_train": "mean F1 of the words",
    "caption_f1_heldout": "the same for held-out images",
    "image_tokens_per_second": "drawing speed, in image tokens a second",
}
