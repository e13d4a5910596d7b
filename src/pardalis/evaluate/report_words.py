"""Sentences of a report: what a score is worth, and what was left out or cut."""

from collections.abc import Mapping
from typing import Any

from pardalis.evaluate.run_folder import RunFolder
from pardalis.evaluate.sample_file import SPLITS, Split
from pardalis.evaluate.templates import percent

_NAMES: dict[Split, str] = {"train": "training", "heldout": "held-out"}
_EXACT_FOR_ALL = 0.5  # share of equal expected captions from which the page says so


def no_skill(numbers: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return by section which scores a constant answer reaches too."""
    images, captions = [], []
    for split in SPLITS:
        name, of = _NAMES[split], _numbers_of(numbers, split)
        score, chance, constant = (
            of(f"retrieval_{key}") for key in ("top1", "chance", "constant")
        )  # fmt: skip
        if score is not None and score <= max(chance, constant):
            what = f"The rate of {name} captions, {percent(score)},"
            images.append(
                f"{what} shows no skill: chance is {percent(chance)}."
                if chance > constant
                else f"{what} shows no skill: one image for every caption gets {percent(constant)}."
            )
        for key, what in (("caption_exact", "share of exact matches"), ("caption_f1", "word F1")):
            score, constant = of(key), of(f"{key}_constant")
            if score is not None and score <= constant:
                captions.append(
                    f"The {what} of {name} images, {percent(score)}, shows no skill: one caption "
                    f"for every image gets {percent(constant)}."
                )
        if (of("caption_exact_constant") or 0) >= _EXACT_FOR_ALL and of("n_captions") > 1:
            captions.append(
                f"{percent(of('caption_exact_constant'))} of the expected captions of {name} "
                "images are the same, so exact matches say little."
            )
    return {"images": images, "captions": captions}


def _numbers_of(numbers: Mapping[str, Any], split: Split) -> Any:
    return lambda key: numbers[f"{key}_{split}"]


def left_out(folder: RunFolder) -> dict[str, str]:
    """Return by kind of sample what was left out because it exceeds the context."""
    counts, context = folder.samples["left_out"].get("too_long_of"), folder.samples.get("context")
    if not isinstance(counts, dict) or type(context) is not int:  # of an earlier version
        return {}
    needs = {
        "images": ("caption", "with an image it needs"),
        "captions": ("image", "with a caption it needs"),
        "pages": ("first line", "with a continuation it needs"),
    }
    return {
        kind: f"Prompts left out: {counts[kind]:,}. Each is a {what} that was drawn at random, and "
        f"{need} more tokens than the model's context of {context:,}. {_raise_context(folder)}"
        for kind, (what, need) in needs.items()
        if type(counts.get(kind)) is int and counts[kind] > 0
    }


def cut(folder: RunFolder) -> dict[str, str]:
    """Return by kind of sample how many were cut, at which limit, and what raises it."""
    samples = folder.samples
    budget, context = samples.get("caption_tokens"), samples.get("context")
    captions = [sample for sample in samples["captions"] if "expected_fits" in sample]
    n_cut = sum(sample.get("truncated") is True for sample in captions)
    n_long = sum(sample["expected_fits"] is False for sample in captions)
    n_pages = sum(sample.get("truncated") is True for sample in samples["pages"])
    found = {}
    if type(budget) is int and (n_cut or n_long):
        found["captions"] = (
            f"Of {len(captions):,} captions {n_cut:,} were cut, at sample.caption_tokens = "
            f"{budget:,} or at the end of the model's context; {n_long:,} of the expected captions "
            "are longer than that and cannot be matched. Raise sample.caption_tokens, and "
            "prepare.row_tokens if the context is what ends them."
        )
    if type(context) is int and n_pages:
        found["pages"] = (
            f"{n_pages:,} of {len(samples['pages']):,} pages were cut at the end of the model's "
            f"context of {context:,} tokens. {_raise_context(folder)}"
        )
    return found


def _raise_context(folder: RunFolder) -> str:
    if "start_from" in folder.settings:
        return "The context is that of the model that the run started from."
    return "A larger prepare.row_tokens trains a model with a longer context."
