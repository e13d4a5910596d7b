"""Asking a trained model: images for captions, captions for images, pages from a first line.

Prompts are taken from the sources, those it learnt and those it never saw, so that the report can
put what the model made beside what there was.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from pardalis.bundle import Bundle
from pardalis.documents import Document, Image, Text, open_image
from pardalis.files import atomic_folder, write_json
from pardalis.inference import GenerationMode, Prompt, generate_many
from pardalis.pipeline.prompts import Chooser, Prompts
from pardalis.pipeline.recipe import SampleConfig
from pardalis.progress import bar


def write_samples(
    bundle: Bundle, documents: Mapping[str, Iterable[Document]], config: SampleConfig, run: Path
) -> None:
    """Answer prompts of each split and write ``samples/samples.json`` with the images beside it.

    Args:
        documents: by split, ``train`` and ``heldout``; read once, from beginning to end.
        run: run folder; images of the corpus are named relative to it.
    """
    chooser = Chooser(bundle, config)
    prompts = [chooser.choose(split, items) for split, items in documents.items()]
    chooser.warn()
    asker = _Asker(bundle, config)
    with atomic_folder(run / "samples") as folder:
        start = monotonic()
        generated = [d for some in prompts for d in asker.draw(some, folder, run)]
        drawing_s = monotonic() - start
        samples = {
            "images": generated,
            "captions": [c for some in prompts for c in asker.caption(some, run)],
            "pages": [p for some in prompts for p in asker.write_pages(some, folder)],
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
            "captioned": {some.split: some.n_captioned for some in prompts},
            "left_out": {"unreadable": len(chooser.unreadable), "too_long": chooser.n_too_long},
            "seconds": monotonic() - start,
            "image_tokens_per_second": len(generated)
            * bundle.codec.grammar.codes_per_image
            / max(drawing_s, 1e-9),
        }
        write_json(folder / "samples.json", samples)


class _Asker:
    """Asks in batches, so that memory stays bounded, and shows how far it is."""

    def __init__(self, bundle: Bundle, config: SampleConfig) -> None:
        self.bundle, self.config = bundle, config

    def draw(self, prompts: Prompts, folder: Path, run: Path) -> list[dict[str, Any]]:
        split, pairs = prompts.split, prompts.images
        samples = self._ask(f"Drawing ({split})", [[pair.caption] for pair in pairs], "image")
        drawn = []
        for number, (pair, sample) in enumerate(zip(pairs, samples, strict=True)):
            path = f"images/{split}-{number:04d}.png"
            _save(sample.images[0], folder / path)
            drawn.append(
                {
                    "name": pair.name,
                    "prompt": pair.caption,
                    "split": split,
                    "generated": path,
                    "original": _relative(pair.image, run),
                }
            )
        return drawn

    def caption(self, prompts: Prompts, run: Path) -> list[dict[str, Any]]:
        split, pairs = prompts.split, prompts.captions
        images = [[pair.image] for pair in pairs]
        samples = self._ask(
            f"Captioning ({split})", images, "text", max_new_tokens=self.config.caption_tokens
        )
        return [
            {
                "name": pair.name,
                "split": split,
                "image": _relative(pair.image, run),
                "caption": sample.text.strip(),
                "expected": pair.caption,
            }
            for pair, sample in zip(pairs, samples, strict=True)
        ]

    def write_pages(self, prompts: Prompts, folder: Path) -> list[dict[str, Any]]:
        split, titles = prompts.split, prompts.titles
        samples = self._ask(f"Writing pages ({split})", titles, "interleaved")
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
            pages.append({"prompt": title, "split": split, "segments": segments})
        return pages

    def _ask(
        self,
        description: str,
        prompts: Sequence[Prompt],
        mode: GenerationMode,
        max_new_tokens: int | None = None,
    ) -> Iterator[Document]:
        config = self.config
        with bar(description, total=len(prompts), unit="prompts") as advance:
            for start in range(0, len(prompts), config.batch):
                some = prompts[start : start + config.batch]
                yield from generate_many(
                    self.bundle,
                    some,
                    mode=mode,
                    max_new_tokens=max_new_tokens,
                    text=config.text,
                    image=config.image,
                    guidance=1.0 if mode == "text" else config.guidance,
                    seed=config.seed + start,
                )
                advance(len(some))


def _save(image: Image, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    open_image(image.source).save(path)


def _relative(path: Path, run: Path) -> str:
    path, run = path.resolve(), run.resolve()
    return str(path.relative_to(run)) if path.is_relative_to(run) else str(path)
