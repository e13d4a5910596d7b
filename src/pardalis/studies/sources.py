"""Scores of a trained model by source: what it learnt, beside each kind of what it never saw.

A run may hold out several things: whole concepts, and combinations of concepts and styles that
were seen apart. Each is a source of its own, and is scored on its own::

    OUT/
    ├─ sources.json        the scores of every training and held-out source
    ├─ images/<source>/    the generated images
    └─ grid.png            concepts in all styles; those that training did not see are framed

A document that ends with an image after a text is a task of generation: all before that image is
the prompt. So a source of captions with images scores text-to-image, and a source whose documents
show one style and then another scores redrawing. An image with its caption is a task of captioning,
too; of conversations, it is one that ends with a text of the assistant's after an image.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import PIL.Image
import torch
from PIL import ImageDraw
from torch import Tensor

from pardalis import bundle as bundles
from pardalis.bundle import Bundle
from pardalis.config import check_at_least
from pardalis.documents import Document, Image, Segment, Text, open_image
from pardalis.errors import ConfigError
from pardalis.evaluate import ImageFeatures, retrieval_top1, score_captions
from pardalis.evaluate.probe import LinearProbe
from pardalis.files import atomic_folder, write_json
from pardalis.inference import GenerationConfig, Prompt, Response, generate_many
from pardalis.pipeline.builders import documents_of
from pardalis.pipeline.recipe import load_recipe
from pardalis.progress import bar
from pardalis.seeds import numpy_generator

_T = TypeVar("_T")

_FILE = "sources.json"
_FRAME = (207, 82, 57)
_GAP = 6  # pixels between the images of a grid


@dataclass(frozen=True, kw_only=True, slots=True)
class SourcesConfig:
    """What is generated and compared."""

    images: int = 100  # images generated of each source, at most
    captions: int = 50  # captions generated of each source, at most
    gallery: int = 1000  # originals that generated images are ranked among, those of prompts apart
    candidates: int = 100  # the original and the others that it is ranked among
    guidance: float | None = None  # of images; None: as the recipe's table sample says
    temperature: float | None = None  # of image tokens; None: likewise
    caption_tokens: int = 32  # token budget of a caption, its eos included
    # A caption begins with a label, such as a style, which ends before this text: with " of " it is
    # "a flat drawing" in "a flat drawing of a deer". None: captions have no labels.
    label_before: str | None = None
    grid: int = 8  # concepts of the grid, which needs labels
    batch: int = 64  # prompts per engine
    seed: int = 0  # selects the prompts and seeds the samples

    def __post_init__(self) -> None:
        check_at_least(self, images=1, captions=0, gallery=0, candidates=2, guidance=0)
        check_at_least(self, temperature=0, caption_tokens=1, grid=0, batch=1)
        if self.label_before == "":
            raise ConfigError("label_before must not be empty; leave it out for no labels.")


@dataclass(frozen=True, slots=True)
class _Item:
    """An image with the text before it, which is its caption, and all that comes before it."""

    prompt: tuple[Segment, ...]
    caption: str
    image: Path
    is_pair: bool

    def label(self, ends: str | None) -> str:
        return self.caption.partition(ends)[0].strip() if ends and ends in self.caption else ""

    def rest(self, ends: str) -> str:
        """The caption without its label: what the image shows."""
        return self.caption.partition(ends)[2].strip()


@dataclass(frozen=True, slots=True)
class _Question:
    """A prompt with an image, and the text that is expected."""

    prompt: tuple[Segment, ...]
    text: str


def study_sources(
    run: Path, folder: Path, config: SourcesConfig, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Generate from prompts of every source of a finished run, score the results, write them.

    Returns:
        The content of ``sources.json``.

    Raises:
        ConfigError: the run has no recipe, no source has an image after a text, or ``folder`` holds
            something else.
        BundleError: the run has no trained model.
        DataError: a source does not exist.
    """
    recipe = load_recipe(run / "recipe.toml")
    if folder.exists() and not _is_ours(folder):
        raise ConfigError(
            f"{folder} exists and holds no {_FILE}, so it is not replaced; name another folder."
        )
    items: dict[str, list[_Item]] = {}
    questions: dict[str, list[_Question]] = {}
    for source in recipe.all_sources:
        documents = list(documents_of([source], run))
        images, texts = _items(documents), _questions(documents)
        if images or texts:
            items[source.name], questions[source.name] = images, texts
    if not any(items.values()):
        raise ConfigError(
            f"No source of {run} has documents that end with an image after a text, such as an "
            "image with its caption; name one in its recipe."
        )
    bundle = bundles.load(run / "bundle", device)
    sample = recipe.sample
    if config.guidance is None:
        config = replace(config, guidance=sample.guidance)
    if config.temperature is None:
        config = replace(config, temperature=sample.image.temperature)
    study = _Study(bundle, items, questions, [source.name for source in recipe.sources], config)
    with atomic_folder(folder) as partial:
        result = study.write(partial)
        write_json(partial / _FILE, result)
    return result


def _is_ours(folder: Path) -> bool:
    return folder.is_dir() and ((folder / _FILE).is_file() or not any(folder.iterdir()))


def _items(documents: Iterable[Document]) -> list[_Item]:
    found: dict[tuple[Path, int], _Item] = {}
    for document in documents:
        match document.segments:
            case (*_, Text(text=caption), Image(source=Path() as path)):
                before = document.segments[:-1]
                is_pair = len(before) == 1 and before[0].role is None
                item = _Item(before, caption.strip(), path.resolve(), is_pair)
                found.setdefault((item.image, len(before)), item)
    return list(found.values())


def _questions(documents: Iterable[Document]) -> list[_Question]:
    """Return the captioning of images that have a caption, and that in conversations."""
    found = [
        _Question((Image(item.image),), item.caption) for item in _items(documents) if item.is_pair
    ]
    for document in documents:
        match document.segments:
            case (*before, Text(text=text, role="assistant")) if any(
                isinstance(segment, Image) for segment in before
            ):
                found.append(_Question(tuple(before), text.strip()))
    return found


class _Study:
    """The gallery and the scores of one model."""

    def __init__(
        self,
        bundle: Bundle,
        items: dict[str, list[_Item]],
        questions: dict[str, list[_Question]],
        learnt: Sequence[str],
        config: SourcesConfig,
    ) -> None:
        self.bundle, self.config, self.learnt = bundle, config, set(learnt)
        self.items, self.questions = items, questions
        self.learnt_of: dict[str, list[_Item]] = {}  # what training shows, by caption without label
        if ends := config.label_before:
            for item in (item for name in learnt for item in items.get(name, ()) if item.is_pair):
                self.learnt_of.setdefault(item.rest(ends), []).append(item)
        self.chosen = {
            name: self._sample(name, some, config.images) for name, some in items.items()
        }
        self.gallery = self._gallery()
        self.index = {item.image: i for i, item in enumerate(self.gallery)}
        self.net = ImageFeatures.load()
        self.features = self.net.of([open_image(item.image) for item in self.gallery])
        self.probe = self._probe()

    def write(self, folder: Path) -> dict[str, Any]:
        config = self.config
        scores: dict[str, Any] = {}
        for name, some in self.chosen.items():
            questions = self._sample(name, self.questions[name], config.captions)
            scores[name] = {
                "is_held_out": name not in self.learnt,
                "documents": len(self.items[name] or self.questions[name]),
            }
            if some:
                images = self._generate(f"Generating images ({name})", some)
                (folder / "images" / name).mkdir(parents=True)
                for number, image in enumerate(images):
                    image.save(folder / "images" / name / f"{number:04d}.png")
                scores[name] |= self._image_scores(some, images)
            scores[name] |= self._caption_scores(name, questions)
        if config.label_before and config.grid and (grid := self._grid()):
            grid.save(folder / "grid.png")
        return {
            "chance": 1 / min(config.candidates, len(self.gallery)),
            "gallery": len(self.gallery),
            "config": asdict(config),
            "sources": scores,
        }

    # ── what is compared ─────────────────────────────────────────────────────────────────────────

    def _sample(self, name: str, items: Sequence[_T], n: int) -> list[_T]:
        order = numpy_generator(self.config.seed, "sources", name).permutation(len(items))
        return [items[i] for i in order[:n]]

    def _gallery(self) -> list[_Item]:
        """Return the originals of all prompts, and others of all sources, each image once."""
        found = {item.image: item for some in self.chosen.values() for item in some}
        others = {
            item.image: item
            for some in self.items.values()
            for item in some
            if item.image not in found
        }
        left = max(0, self.config.gallery - len(found))
        more = self._sample("gallery", list(others.values()), left)
        return [*found.values(), *more]

    def _probe(self) -> LinearProbe | None:
        """Return a probe of labels that has learnt from originals of training."""
        if self.config.label_before is None:
            return None
        learnt = {item.image for name in self.learnt for item in self.items.get(name, ())}
        known = [
            (i, label)
            for i, item in enumerate(self.gallery)
            if item.image in learnt and (label := item.label(self.config.label_before))
        ]
        if not known:
            raise ConfigError(
                f"No caption of a training source contains {self.config.label_before!r}; "
                "correct label_before, or leave it out."
            )
        indices, labels = zip(*known, strict=True)
        return LinearProbe.fit(self.features[list(indices)], labels)

    # ── scores ───────────────────────────────────────────────────────────────────────────────────

    def _image_scores(
        self, items: Sequence[_Item], images: Sequence[PIL.Image.Image]
    ) -> dict[str, Any]:
        vectors = self.net.of(images)
        originals = [self.index[item.image] for item in items]
        tokenizer = self.bundle.codec.image_tokenizer
        pixels = [open_image(item.image) for item in items]
        restored = self.net.of(tokenizer.images_of(tokenizer.codes_of(pixels)))
        ranks = self._ranks(vectors, originals)
        scores: dict[str, Any] = {
            "images": len(images),
            "retrieval": _share(rank == 1 for rank in ranks),
            "retrieval_top5": _share(rank <= 5 for rank in ranks),
            "retrieval_of_reconstructions": _share(
                rank == 1 for rank in self._ranks(restored, originals)
            ),
        }
        ends = self.config.label_before
        if self.probe is None or ends is None:
            return scores
        labels = [item.label(ends) for item in items]
        right = [a == b for a, b in zip(self.probe.predict(vectors), labels, strict=True)]
        real = [
            a == b
            for a, b in zip(self.probe.predict(self.features[originals]), labels, strict=True)
        ]
        others = [self._in_another_label(item) for item in items]
        copies = [(x, i) for x, i in zip(others, originals, strict=True) if x is not None]
        copied = self._ranks(
            self.net.of([open_image(path) for path, _ in copies]), [i for _, i in copies]
        )
        return {
            **scores,
            "retrieval_in_label": _share(
                rank == 1 for rank in self._ranks_in_label(vectors, items)
            ),
            "label": _share(right),
            "label_of_originals": _share(real),
            # What a model would get that repeats what it knows of the concept, in another label.
            "retrieval_of_other_labels": _share(rank == 1 for rank in copied),
            "by_label": {
                label: {
                    "images": labels.count(label),
                    "retrieval": _share(
                        r == 1 for r, own in zip(ranks, labels, strict=True) if own == label
                    ),
                    "label": _share(
                        r for r, own in zip(right, labels, strict=True) if own == label
                    ),
                }
                for label in sorted(set(labels))
            },
        }

    def _ranks(self, vectors: Tensor, originals: Sequence[int]) -> tuple[int, ...]:
        n = min(self.config.candidates, len(self.gallery))
        return retrieval_top1(
            vectors, self.features, torch.tensor(originals, dtype=torch.long), n
        ).ranks

    def _ranks_in_label(self, vectors: Tensor, items: Sequence[_Item]) -> list[int]:
        """Return the ranks among originals of the same label, which a right style does not help."""
        ends = self.config.label_before
        assert ends is not None
        ranks: list[int] = []
        for vector, item in zip(vectors, items, strict=True):
            label = item.label(ends)
            alike = [i for i, each in enumerate(self.gallery) if each.label(ends) == label]
            original = torch.tensor([alike.index(self.index[item.image])])
            n = min(self.config.candidates, len(alike))
            ranks += retrieval_top1(vector[None], self.features[alike], original, n).ranks
        return ranks

    def _in_another_label(self, item: _Item) -> Path | None:
        """Return a training image of the same with another label, chosen at random."""
        ends = self.config.label_before
        assert ends is not None
        found = [
            each.image
            for each in self.learnt_of.get(item.rest(ends), ())
            if each.label(ends) != item.label(ends)
        ]
        place = numpy_generator(self.config.seed, "another label", item.caption)
        return found[int(place.integers(len(found)))] if found else None

    def _caption_scores(self, name: str, questions: Sequence[_Question]) -> dict[str, Any]:
        if not questions:
            return {}
        config = self.config
        generation = GenerationConfig(
            mode="text", max_new_tokens=config.caption_tokens, temperature=0.0
        )
        prompts: list[Prompt] = [Document(question.prompt) for question in questions]
        found = [
            each.text.strip()
            for each in self._complete(f"Captioning ({name})", prompts, generation)
        ]
        expected = [question.text for question in questions]
        scores = score_captions(found, expected)
        result: dict[str, Any] = {
            "captions": len(questions),
            "caption_exact": scores.exact,
            "caption_f1": scores.f1,
        }
        if ends := config.label_before:
            parts = [
                (got.partition(ends), want.partition(ends))
                for got, want in zip(found, expected, strict=True)
            ]
            result["caption_label"] = _share(got[0] == want[0] for got, want in parts)
            result["caption_rest"] = _share(got[2] == want[2] for got, want in parts)
        return result

    # ── generation ───────────────────────────────────────────────────────────────────────────────

    def _generate(self, title: str, items: Sequence[_Item]) -> list[PIL.Image.Image]:
        config = self.config
        generation = GenerationConfig(mode="image").with_options(
            {"guidance": config.guidance, "image_temperature": config.temperature}
        )
        prompts: list[Prompt] = [Document(item.prompt) for item in items]
        return [
            open_image(each.images[0].source) for each in self._complete(title, prompts, generation)
        ]

    def _complete(
        self, title: str, prompts: Sequence[Prompt], generation: GenerationConfig
    ) -> Iterator[Response]:
        with bar(title, total=len(prompts), unit="prompts") as advance:
            for start in range(0, len(prompts), self.config.batch):
                batch = prompts[start : start + self.config.batch]
                seed = self.config.seed + start
                yield from generate_many(self.bundle, batch, generation, seed=seed)
                advance(len(batch))

    def _grid(self) -> PIL.Image.Image | None:
        """Return concepts of held-out pairs in all labels, generated; what was held out is framed.

        A row is a concept that training shows with other labels, a column a label. None: there is
        no such concept.
        """
        ends = self.config.label_before
        assert ends is not None and self.probe is not None
        labels = self.probe.labels
        known = {
            rest: {item.label(ends) for item in items} for rest, items in self.learnt_of.items()
        }
        chosen: dict[str, str] = {}
        for name, some in self.chosen.items():
            for item in some:
                rest = item.rest(ends)
                if name not in self.learnt and item.is_pair and known.get(rest):
                    chosen.setdefault(rest, item.label(ends))
        rows = list(chosen)[: self.config.grid]
        if not rows:
            return None
        items = [
            _Item((Text(caption),), caption, Path(), True)
            for rest in rows
            for label in labels
            for caption in [f"{label}{ends}{rest}"]
        ]
        images = self._generate("Generating a grid", items)
        side = images[0].width + 2 * _GAP
        grid = PIL.Image.new("RGB", (side * len(labels), side * len(rows)), "white")
        pen = ImageDraw.Draw(grid)
        for number, (item, image) in enumerate(zip(items, images, strict=True)):
            top, left = (side * place for place in divmod(number, len(labels)))
            if item.label(ends) not in known[item.rest(ends)]:
                pen.rectangle((left + 2, top + 2, left + side - 3, top + side - 3), _FRAME)
            grid.paste(image, (left + _GAP, top + _GAP))
        return grid


def _share(values: Iterable[bool]) -> float | None:
    """Return the share of true values; None without values, for JSON has no NaN."""
    found = list(values)
    return sum(found) / len(found) if found else None
