"""Samples of a trained model: images for captions, captions for images, pages for first lines.

Prompts come from the training and the held-out documents, so that the report can show each sample
beside its original.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

from pardalis.bundle import Bundle
from pardalis.documents import Document, Image, Text, open_image
from pardalis.files import atomic_folder, write_json
from pardalis.inference import (
    GenerationConfig,
    GenerationMode,
    Prompt,
    Response,
    generate_many,
    to_document,
)
from pardalis.pipeline.prompts import Chooser, Prompts
from pardalis.pipeline.recipe import SampleConfig
from pardalis.progress import bar


def write_samples(
    bundle: Bundle, documents: Mapping[str, Iterable[Document]], config: SampleConfig, run: Path
) -> None:
    """Sample each split and write ``samples/samples.json`` with the images beside it.

    Args:
        documents: by split, ``train`` and ``heldout``; each is iterated over once.
        run: run folder; paths of original images are relative to it.
    """
    chooser = Chooser(bundle, config)
    prompts = [chooser.choose(split, items) for split, items in documents.items()]
    chooser.warn()
    sampler = _Sampler(bundle, config)
    with atomic_folder(run / "samples") as folder:
        start = monotonic()
        generated = [d for some in prompts for d in sampler.images(some, folder, run)]
        image_s = monotonic() - start
        samples = {
            "images": generated,
            "captions": [c for some in prompts for c in sampler.captions(some, run)],
            "pages": [p for some in prompts for p in sampler.pages(some, folder)],
            "gallery": [
                {
                    "name": pair.name,
                    "caption": pair.caption,
                    "split": some.split,
                    "image": _relative(pair.image, run),
                }
                for some in prompts
                for pair in some.gallery
            ],
            "n_images": {some.split: some.n_images for some in prompts},
            "captioned": {some.split: some.n_captioned for some in prompts},
            "left_out": {
                "unreadable": len(chooser.unreadable),
                "too_long": chooser.too_long.total(),
                "too_long_of": dict(chooser.too_long),
            },
            "context": bundle.model.config.context,
            "caption_tokens": config.caption_tokens,
            "seconds": monotonic() - start,
            "image_tokens_per_second": len(generated)
            * bundle.codec.grammar.codes_per_image
            / max(image_s, 1e-9),
        }
        write_json(folder / "samples.json", samples)


class _Sampler:
    """Generates in batches, which bounds memory, and shows progress."""

    def __init__(self, bundle: Bundle, config: SampleConfig) -> None:
        self.bundle, self.config = bundle, config

    def images(self, prompts: Prompts, folder: Path, run: Path) -> list[dict[str, Any]]:
        split, pairs = prompts.split, prompts.images
        samples = self._generate(
            f"Generating images ({split})", [[pair.caption] for pair in pairs], "image"
        )
        entries = []
        for number, (pair, sample) in enumerate(zip(pairs, samples, strict=True)):
            path = f"images/{split}-{number:04d}.png"
            _save(sample.images[0], folder / path)
            entries.append(
                {
                    "name": pair.name,
                    "prompt": pair.caption,
                    "split": split,
                    "generated": path,
                    "original": _relative(pair.image, run),
                }
            )
        return entries

    def captions(self, prompts: Prompts, run: Path) -> list[dict[str, Any]]:
        split, pairs = prompts.split, prompts.captions
        images = [[pair.image] for pair in pairs]
        n_prompt = 1 + self.bundle.codec.grammar.tokens_per_image  # bos and the image
        budget = min(self.config.caption_tokens, self.bundle.model.config.context - n_prompt)
        samples = self._generate(
            f"Captioning ({split})", images, "text", max_new_tokens=self.config.caption_tokens
        )
        return [
            {
                "name": pair.name,
                "split": split,
                "image": _relative(pair.image, run),
                "caption": sample.text.strip(),
                "expected": pair.caption,
                "truncated": sample.truncated,
                "expected_fits": self._n_tokens(pair.caption) <= budget,
            }
            for pair, sample in zip(pairs, samples, strict=True)
        ]

    def pages(self, prompts: Prompts, folder: Path) -> list[dict[str, Any]]:
        split, titles = prompts.split, prompts.titles
        samples = self._generate(f"Generating pages ({split})", titles, "interleaved")
        pages = []
        for number, (title, sample) in enumerate(zip(titles, samples, strict=True)):
            segments: list[dict[str, str]] = []
            for segment in sample.segments:
                if isinstance(segment, Text):
                    segments.append({"text": segment.text})
                else:
                    path = f"pages/{split}-{number}-{len(segments)}.png"
                    _save(segment, folder / path)
                    segments.append({"image": path})
            pages.append(
                {
                    "prompt": title,
                    "split": split,
                    "segments": segments,
                    "truncated": sample.truncated,
                }
            )
        return pages

    def _n_tokens(self, text: str) -> int:
        """Return the tokens of a caption with its eos."""
        return len(self.bundle.codec.encode_prompt(to_document(text)))  # has a bos in its place

    def _generate(
        self,
        description: str,
        prompts: Sequence[Prompt],
        mode: GenerationMode,
        max_new_tokens: int | None = None,
    ) -> Iterator[Response]:
        sample = self.config
        config = GenerationConfig(
            mode=mode,
            max_new_tokens=max_new_tokens,
            guidance=1.0 if mode == "text" else sample.guidance,
            **asdict(sample.text),
            **{f"image_{name}": value for name, value in asdict(sample.image).items()},
        )
        with bar(description, total=len(prompts), unit="prompts") as advance:
            for start in range(0, len(prompts), sample.batch):
                batch = prompts[start : start + sample.batch]
                yield from generate_many(self.bundle, batch, config, seed=sample.seed + start)
                advance(len(batch))


def _save(image: Image, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    open_image(image.source).save(path)


def _relative(path: Path, run: Path) -> str:
    path, run = path.resolve(), run.resolve()
    return str(path.relative_to(run)) if path.is_relative_to(run) else str(path)
