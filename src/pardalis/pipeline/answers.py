"""Asking a trained model: pictures for captions, captions for pictures, pages from a first line.

Prompts are taken from the sources themselves, those it learnt and those it never saw, so that the
report can put what the model made beside what there was.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from pardalis.bundle import Bundle
from pardalis.documents import Document, Picture, Text, open_picture
from pardalis.files import atomic_folder, write_json
from pardalis.inference import Mode, Prompt, generate_many
from pardalis.pipeline.recipe import AnswerConfig
from pardalis.progress import bar
from pardalis.seeds import numpy_generator

CAPTION_TOKENS = 24  # ids that a caption may have


@dataclass(frozen=True, slots=True)
class _Pair:
    """A picture and its caption, in whichever order its document has them."""

    name: str
    caption: str
    picture: Path


def write_answers(
    bundle: Bundle, documents: Mapping[str, Iterable[Document]], config: AnswerConfig, run: Path
) -> None:
    """Answer prompts of each split and write ``answers/answers.json`` with the pictures beside it.

    Args:
        documents: by split, ``train`` and ``heldout``.
        run: run folder; pictures of the corpus are named relative to it.
    """
    pairs: dict[str, list[_Pair]] = {}
    titles: dict[str, list[str]] = {}
    for split, items in documents.items():
        pairs[split], titles[split] = _sort_out(items)
    asker = _Asker(bundle, config)
    with atomic_folder(run / "answers") as folder:
        start = monotonic()
        drawings = [d for split in pairs for d in asker.draw(split, pairs[split], folder, run)]
        drawing_s = monotonic() - start
        answers = {
            "pictures": drawings,
            "captions": [c for split in pairs for c in asker.caption(split, pairs[split], run)],
            "pages": [
                p for split in titles for p in asker.write_pages(split, titles[split], folder)
            ],
            "gallery": [
                {
                    "name": pair.name,
                    "caption": pair.caption,
                    "split": split,
                    "picture": _relative(pair.picture, run),
                }
                for split in pairs
                for pair in pairs[split]
            ],
            "seconds": monotonic() - start,
            "image_tokens_per_second": len(drawings)
            * bundle.codec.grammar.codes_per_picture
            / max(drawing_s, 1e-9),
        }
        write_json(folder / "answers.json", answers)


def _sort_out(documents: Iterable[Document]) -> tuple[list[_Pair], list[str]]:
    """Find the pairs, and the first lines of the longer interleaved documents."""
    pairs: dict[Path, _Pair] = {}
    titles: dict[str, None] = {}
    for document in documents:
        match document.segments:
            case (Text(text=caption), Picture(source=Path() as path)) | (
                Picture(source=Path() as path),
                Text(text=caption),
            ):
                pairs.setdefault(path, _Pair(document.name, caption, path))
            case (Text(text=title), *rest) if any(isinstance(s, Picture) for s in rest):
                titles.setdefault(title)
    return list(pairs.values()), list(titles)


class _Asker:
    """Asks in batches, so that memory stays bounded, and shows how far it is."""

    def __init__(self, bundle: Bundle, config: AnswerConfig) -> None:
        self.bundle, self.config = bundle, config

    def draw(
        self, split: str, pairs: Sequence[_Pair], folder: Path, run: Path
    ) -> list[dict[str, Any]]:
        chosen = self._choose(pairs, self.config.drawings, f"draw {split}")
        prompts = [[pair.caption] for pair in chosen]
        drawn = []
        for number, (pair, answer) in enumerate(
            zip(chosen, self._ask(f"Drawing ({split})", prompts, "picture"), strict=True)
        ):
            path = f"pictures/{split}-{number:04d}.png"
            _save(answer.pictures[0], folder / path)
            drawn.append(
                {
                    "name": pair.name,
                    "prompt": pair.caption,
                    "split": split,
                    "drawn": path,
                    "original": _relative(pair.picture, run),
                }
            )
        return drawn

    def caption(self, split: str, pairs: Sequence[_Pair], run: Path) -> list[dict[str, Any]]:
        chosen = self._choose(pairs, self.config.captions, f"caption {split}")
        prompts = [[pair.picture] for pair in chosen]
        answers = self._ask(f"Captioning ({split})", prompts, "text", CAPTION_TOKENS)
        return [
            {
                "name": pair.name,
                "split": split,
                "picture": _relative(pair.picture, run),
                "caption": answer.text.strip(),
                "expected": pair.caption,
            }
            for pair, answer in zip(chosen, answers, strict=True)
        ]

    def write_pages(self, split: str, titles: Sequence[str], folder: Path) -> list[dict[str, Any]]:
        chosen = self._choose(titles, self.config.pages, f"pages {split}")
        pages = []
        for number, (title, answer) in enumerate(
            zip(
                chosen,
                self._ask(f"Writing pages ({split})", [[t] for t in chosen], "interleaved"),
                strict=True,
            )
        ):
            segments: list[dict[str, str]] = []
            for segment in answer.segments:
                if isinstance(segment, Text):
                    segments.append({"text": segment.text})
                else:
                    path = f"pages/{split}-{number}-{len(segments)}.png"
                    _save(segment, folder / path)
                    segments.append({"picture": path})
            pages.append({"prompt": title, "split": split, "segments": segments})
        return pages

    def _choose(self, items: Sequence[Any], n: int, purpose: str) -> list[Any]:
        order = numpy_generator(self.config.seed, purpose).permutation(len(items))
        return [items[i] for i in order[:n]]

    def _ask(
        self, description: str, prompts: Sequence[Prompt], mode: Mode, max_tokens: int | None = None
    ) -> list[Document]:
        config, answers = self.config, []
        with bar(description, total=len(prompts), unit="prompts") as advance:
            for start in range(0, len(prompts), config.batch):
                some = prompts[start : start + config.batch]
                answers += generate_many(
                    self.bundle,
                    some,
                    mode=mode,
                    max_tokens=max_tokens,
                    text=config.text,
                    picture=config.picture,
                    guidance=config.guidance,
                    seed=config.seed + start,
                )
                advance(len(some))
        return answers


def _save(picture: Picture, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    open_picture(picture.source).save(path)


def _relative(path: Path, run: Path) -> str:
    path, run = path.resolve(), run.resolve()
    return str(path.relative_to(run)) if path.is_relative_to(run) else str(path)
