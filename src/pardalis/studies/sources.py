"""Scores of a trained model by source: what it learnt, beside each kind of what it never saw.

A run may hold out several things: whole concepts, and combinations of concepts and styles that
were seen apart. Each is a source of its own, and is scored on its own::

    OUT/
    ├─ sources.json        the scores of every training and held-out source
    ├─ images/<source>/    the generated images
    └─ grid.png            concepts in all styles; those that training did not see are framed

A document that ends with an image after a text is a task of generation: all before that image is
the prompt. So a source of captions with images scores text-to-image, and a source whose documents
show one style and then another scores redrawing. Of a conversation the last turn of the assistant
is the answer: its text must be the same, and its images are scored as others are.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from PIL import ImageDraw
from torch import Tensor

from pardalis import bundle as bundles
from pardalis.bundle import Bundle
from pardalis.config import check_at_least
from pardalis.documents import Document, Image, Segment, Text, open_image
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate import ImageFeatures, retrieval_top1, score_captions
from pardalis.evaluate.probe import LinearProbe
from pardalis.files import atomic_folder, require_replaceable, write_json
from pardalis.inference import GenerationConfig, Prompt, Response, generate_many
from pardalis.pipeline.builders import documents_of
from pardalis.pipeline.recipe import load_recipe
from pardalis.progress import bar
from pardalis.retrieval import Retriever
from pardalis.seeds import numpy_generator

logger = logging.getLogger(__name__)

_FILE = "sources.json"
_FRAME = (207, 82, 57)
_GAP = 6  # pixels between the images of a grid


@dataclass(frozen=True, kw_only=True, slots=True)
class SourcesConfig:
    """What is generated and compared."""

    images: int = 100  # images generated of each source, at most
    captions: int = 50  # captions generated of each source, at most
    answers: int = 100  # turns of the assistant generated of each source, at most
    answer_tokens: int = 128  # token budget of an answer's texts; its images have their own
    gallery: int = 1000  # originals that generated images are ranked among, those of prompts apart
    probe: int = 2500  # images of training that the probe of labels learns from, at most
    candidates: int = 100  # the original and the others that it is ranked among
    guidance: float | None = None  # of images; None: as the recipe's table sample says
    temperature: float | None = None  # of image tokens; None: likewise
    caption_tokens: int = 32  # token budget of a caption, its eos included
    # A caption begins with a label, such as a style, which ends before this text: with " of " it is
    # "a flat drawing" in "a flat drawing of a deer". In a conversation an image's caption is its
    # alternative text. None: captions have no labels.
    label_before: str | None = None
    grid: int = 8  # concepts of the grid, which needs labels
    batch: int = 64  # prompts per engine
    seed: int = 0  # selects the prompts and seeds the samples

    def __post_init__(self) -> None:
        check_at_least(self, images=1, captions=0, answers=0, gallery=0, probe=1, candidates=2)
        check_at_least(
            self, answer_tokens=1, guidance=0, temperature=0, caption_tokens=1, grid=0, batch=1
        )
        if self.label_before == "":
            raise ConfigError("label_before must not be empty; leave it out for no labels.")


@dataclass(frozen=True, slots=True)
class _Item:
    """What is generated from a prompt, and what was expected."""

    prompt: tuple[Segment, ...]
    expected: tuple[Segment, ...]  # an image, or a turn of the assistant
    image: Path | None  # the last one of what is expected
    caption: str  # of the image, with its label: the text before it, or its alternative text

    @property
    def is_pair(self) -> bool:
        return self.image is not None and len(self.prompt) == 1 and not self.is_answer

    @property
    def is_answer(self) -> bool:
        return self.expected[-1].role is not None

    def label(self, ends: str | None) -> str:
        return self.caption.partition(ends)[0].strip() if ends and ends in self.caption else ""

    def rest(self, ends: str) -> str:
        """The caption without its label: what the image shows."""
        return self.caption.partition(ends)[2].strip()


def study_sources(
    run: Path,
    folder: Path,
    config: SourcesConfig,
    device: torch.device | str = "cpu",
    bundle: Path | None = None,
    retriever: Retriever | None = None,
) -> dict[str, Any]:
    """Generate from prompts of every source of a finished run, score the results, write them.

    Args:
        bundle: another model than that of the run, such as the one that it started from.
        retriever: puts documents of an index before each prompt.

    Returns:
        The content of ``sources.json``.

    Raises:
        ConfigError: the run has no recipe, no source has an image after a text or a conversation,
            or ``folder`` holds something else.
        BundleError: the run has no trained model, or ``bundle`` cannot be loaded.
        DataError: a source does not exist, or no document of the sources can be used.
    """
    recipe = load_recipe(run / "recipe.toml")
    require_replaceable(folder, _FILE, ("images", "grid.png"))
    documents = {source.name: list(documents_of([source], run)) for source in recipe.all_sources}
    items = {name: found for name, some in documents.items() if (found := _items(some))}
    if not items:
        raise ConfigError(
            f"No source of {run} has conversations, or documents that end with an image after a "
            "text, such as an image with its caption; name one in its recipe."
        )
    model = bundles.load(bundle or run / "bundle", device)
    sample = recipe.sample
    if config.guidance is None:
        config = replace(config, guidance=sample.guidance)
    if config.temperature is None:
        config = replace(config, temperature=sample.image.temperature)
    study = _Study(model, items, [source.name for source in recipe.sources], config, retriever)
    with atomic_folder(folder) as partial:
        result = study.write(partial)
        write_json(partial / _FILE, result)
    return result


def _items(documents: Iterable[Document]) -> list[_Item]:
    found: dict[Any, _Item] = {}
    for document in documents:
        segments = document.segments
        match segments:
            case (*_, Text() | Image() as last) if last.role == "assistant":
                start = len(segments)
                while start and segments[start - 1].role == "assistant":
                    start -= 1
                if start:
                    expected = segments[start:]
                    item = _Item(segments[:start], expected, *_last_file(expected))
                    found[document.name] = item
            case (*_, Text(text=caption), Image(source=Path() as path) as image):
                item = _Item(segments[:-1], (image,), path.resolve(), caption.strip())
                found.setdefault((item.image, len(segments)), item)
    return list(found.values())


def _last_file(segments: Sequence[Segment]) -> tuple[Path | None, str]:
    """Return the last image that is a file, and what it shows."""
    for segment in reversed(segments):
        if isinstance(segment, Image) and isinstance(segment.source, Path):
            return segment.source.resolve(), segment.alt
    return None, ""


class _Study:
    """The gallery and the scores of one model."""

    def __init__(
        self,
        bundle: Bundle,
        items: dict[str, list[_Item]],
        learnt: Sequence[str],
        config: SourcesConfig,
        retriever: Retriever | None,
    ) -> None:
        self.retriever = retriever
        self.bundle, self.config, self.learnt = bundle, config, set(learnt)
        self.items = items
        self.unusable: dict[int, str] = {}  # by id of an item that was tried: why, or ""
        self.learnt_of: dict[str, list[_Item]] = {}  # what training shows, by caption without label
        if ends := config.label_before:
            for item in (item for name in learnt for item in items.get(name, ()) if item.is_pair):
                self.learnt_of.setdefault(item.rest(ends), []).append(item)
        self.chosen = {
            name: found
            for name, some in items.items()
            if (found := self._sample(name, some, self._most(some)))
        }
        if left_out := [why for why in self.unusable.values() if why]:
            if not self.chosen:
                raise DataError(
                    f"No document of the sources can be scored; the first: {left_out[0]}"
                )
            logger.warning("Left out of the scores: %d; the first: %s", len(left_out), left_out[0])
        self.gallery = self._gallery()
        self.index = {item.image: i for i, item in enumerate(self.gallery) if item.image}
        self.net = ImageFeatures.load()
        originals = [open_image(path) for path in self.index]
        self.restored_images = self._restored(originals)
        self.features = self.net.of(originals)
        self.restored = self.net.of(self.restored_images)
        self.probe = self._probe()

    def write(self, folder: Path) -> dict[str, Any]:
        config = self.config
        scores: dict[str, Any] = {}
        for name, some in self.chosen.items():
            responses = self._responses(f"Generating ({name})", some)
            images = [_last_image(response) for response in responses]
            (folder / "images" / name).mkdir(parents=True)
            for number, image in enumerate(images):
                if image is not None:
                    image.save(folder / "images" / name / f"{number:04d}.png")
            pairs = [item for item in self.items[name] if item.is_pair]
            scores[name] = {
                "is_held_out": name not in self.learnt,
                "documents": len(self.items[name]),
                **_answer_scores(some, responses),
                **self._image_scores(some, images),
                **self._caption_scores(name, self._sample(name, pairs, config.captions)),
            }
        if config.label_before and config.grid and (grid := self._grid()):
            grid.save(folder / "grid.png")
        return {
            "chance": 1 / min(config.candidates, len(self.gallery)) if self.gallery else None,
            "gallery": len(self.gallery),
            "config": asdict(config),
            "sources": scores,
            **({"retrieval": self.retriever.facts()} if self.retriever else {}),
        }

    # ── what is compared ─────────────────────────────────────────────────────────────────────────

    def _most(self, items: Sequence[_Item]) -> int:
        return self.config.answers if items[0].is_answer else self.config.images

    def _sample(self, name: str, items: Sequence[_Item], n: int) -> list[_Item]:
        order = numpy_generator(self.config.seed, "sources", name).permutation(len(items))
        return list(islice((items[i] for i in order if not self._why_unusable(items[i])), n))

    def _why_unusable(self, item: _Item) -> str:
        """Return why the model cannot generate the image of an item, or be compared with it."""
        if id(item) not in self.unusable:
            self.unusable[id(item)] = _why_unusable(item, self.bundle)
        return self.unusable[id(item)]

    def _gallery(self) -> list[_Item]:
        """Return the originals of all prompts, and others of all sources, each image once."""
        found = {i.image: i for some in self.chosen.values() for i in some if i.image}
        others = {i.image: i for some in self.items.values() for i in some if i.image}
        others = {path: item for path, item in others.items() if path not in found}
        left = max(0, self.config.gallery - len(found))
        more = self._sample("gallery", list(others.values()), left)
        return [*found.values(), *more]

    def _restored(self, images: Sequence[PIL.Image.Image]) -> list[PIL.Image.Image]:
        """Return images as the image tokenizer restores them."""
        tokenizer = self.bundle.codec.image_tokenizer
        return tokenizer.images_of(tokenizer.codes_of(images))

    def _probe(self) -> LinearProbe | None:
        """Return a probe of labels that has learnt from originals of training.

        It learns them as the image tokenizer restores them too: no generated image can look
        sharper.
        """
        ends = self.config.label_before
        if ends is None:
            return None
        learnt = [item for name in self.learnt for item in self.items.get(name, ())]
        known = {item.image: item for item in learnt if item.image and item.label(ends)}
        if not known:
            raise ConfigError(
                f"No caption of a training source contains {ends!r}; correct label_before, or "
                "leave it out."
            )
        chosen = self._sample("probe", list(known.values()), self.config.probe)
        images = [open_image(item.image) for item in chosen if item.image]
        textures = [self.net.textures(images), self.net.textures(self._restored(images))]
        return LinearProbe.fit(torch.cat(textures), [item.label(ends) for item in chosen] * 2)

    # ── scores ───────────────────────────────────────────────────────────────────────────────────

    def _image_scores(
        self, items: Sequence[_Item], images: Sequence[PIL.Image.Image | None]
    ) -> dict[str, Any]:
        """Return the scores of images; one that was not generated is wrong."""
        expected = [pair for pair in zip(items, images, strict=True) if pair[0].image]
        if not expected:
            return {}
        items = [item for item, image in expected if image is not None]
        drawn = [image for _, image in expected if image is not None]
        vectors = self.net.of(drawn)
        originals = [self.index[item.image] for item in items if item.image]
        total = len(expected)
        ranks = self._ranks(vectors, originals)
        scores: dict[str, Any] = {
            "images": total,
            "retrieval": sum(rank == 1 for rank in ranks) / total,
            "retrieval_top5": sum(rank <= 5 for rank in ranks) / total,
            "retrieval_of_reconstructions": _share(
                rank == 1 for rank in self._ranks(self.restored[originals], originals)
            ),
        }
        ends = self.config.label_before
        probe = self.probe
        if probe is None or ends is None or not any(item.label(ends) for item in items):
            return scores
        labels = [item.label(ends) for item in items]

        def right_in(some: Sequence[PIL.Image.Image]) -> list[bool]:
            found = probe.predict(self.net.textures(some))
            return [a == b for a, b in zip(found, labels, strict=True)]

        right = right_in(drawn)
        others = [self._in_another_label(item) for item in items]
        copies = [(x, i) for x, i in zip(others, originals, strict=True) if x is not None]
        copied = self._ranks(
            self.net.of([open_image(path) for path, _ in copies]), [i for _, i in copies]
        )
        return {
            **scores,
            "retrieval_in_label": sum(r == 1 for r in self._ranks_in_label(vectors, items)) / total,
            "label": sum(right) / total,
            "label_of_originals": _share(
                right_in([open_image(item.image) for item in items if item.image])
            ),
            "label_of_reconstructions": _share(
                right_in([self.restored_images[i] for i in originals])
            ),
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
            assert item.image is not None
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

    def _caption_scores(self, name: str, items: Sequence[_Item]) -> dict[str, Any]:
        if not items:
            return {}
        config = self.config
        generation = GenerationConfig(
            mode="text", max_new_tokens=config.caption_tokens, temperature=0.0
        )
        prompts: list[Prompt] = [Document(item.expected) for item in items]
        found = [
            each.text.strip()
            for each in self._complete(f"Captioning ({name})", prompts, generation)
        ]
        expected = [item.caption for item in items]
        scores = score_captions(found, expected)
        result: dict[str, Any] = {
            "captions": len(items),
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

    def _responses(self, title: str, items: Sequence[_Item]) -> list[Document]:
        config = self.config
        generation = GenerationConfig(temperature=0.0).with_options(
            {
                "mode": "interleaved" if items[0].is_answer else "image",
                "guidance": config.guidance,
                "image_temperature": config.temperature,
                "max_new_tokens": self._budget(items),
            }
        )
        prompts: list[Prompt] = [Document(item.prompt) for item in items]
        return list(self._complete(title, prompts, generation))

    def _budget(self, items: Sequence[_Item]) -> int | None:
        """Return the tokens of an answer: as many images as any has, one to spare, and texts."""
        if not items[0].is_answer:
            return None
        images = max(sum(isinstance(s, Image) for s in item.expected) for item in items)
        return self.config.answer_tokens + (images + 1) * self.bundle.codec.grammar.tokens_per_image

    def _complete(
        self, title: str, prompts: Sequence[Prompt], generation: GenerationConfig
    ) -> Iterator[Response]:
        with bar(title, total=len(prompts), unit="prompts") as advance:
            for start in range(0, len(prompts), self.config.batch):
                batch = prompts[start : start + self.config.batch]
                seed = self.config.seed + start
                yield from generate_many(
                    self.bundle, batch, generation, seed=seed, retriever=self.retriever
                )
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
            _Item((Text(caption),), (Image(Path()),), None, caption)
            for rest in rows
            for label in labels
            for caption in [f"{label}{ends}{rest}"]
        ]
        images = [_last_image(each) for each in self._responses("Generating a grid", items)]
        assert images[0] is not None  # as the mode makes sure
        side = images[0].width + 2 * _GAP
        grid = PIL.Image.new("RGB", (side * len(labels), side * len(rows)), "white")
        pen = ImageDraw.Draw(grid)
        for number, (item, image) in enumerate(zip(items, images, strict=True)):
            top, left = (side * place for place in divmod(number, len(labels)))
            if item.label(ends) not in known[item.rest(ends)]:
                pen.rectangle((left + 2, top + 2, left + side - 3, top + side - 3), _FRAME)
            assert image is not None
            grid.paste(image, (left + _GAP, top + _GAP))
        return grid


def _answer_scores(items: Sequence[_Item], responses: Sequence[Document]) -> dict[str, Any]:
    """Return how often answers have the modalities that were expected, and the text."""
    pairs = [
        (item.expected, response.segments)
        for item, response in zip(items, responses, strict=True)
        if item.is_answer
    ]
    if not pairs:
        return {}
    scores: dict[str, Any] = {
        "answers": len(pairs),
        "modalities": _share(_modalities(want) == _modalities(got) for want, got in pairs),
    }
    texts = [(_text(got), text) for want, got in pairs if (text := _text(want))]
    if texts:
        compared = score_captions(*zip(*texts, strict=True))
        scores["answer_exact"], scores["answer_f1"] = compared.exact, compared.f1
        scores["answer_exact_of_constant"] = compared.constant_exact
    return scores


def _modalities(segments: Sequence[Segment]) -> list[type[Segment]]:
    return [kind for kind, _ in groupby(segments, key=type)]


def _text(segments: Sequence[Segment]) -> str:
    return " ".join(s.text.strip() for s in segments if isinstance(s, Text)).strip()


def _last_image(document: Document) -> PIL.Image.Image | None:
    images = document.images
    return open_image(images[-1].source) if images else None


def _why_unusable(item: _Item, bundle: Bundle) -> str:
    codec, context = bundle.codec, bundle.model.config.context
    given = [each.source for each in item.prompt if isinstance(each, Image)]
    images = [*([item.image] if item.image else []), *given]
    texts = [each.text for each in item.prompt if isinstance(each, Text)]
    n_text = sum(len(codec.text_tokenizer.encode(text)) for text in texts)
    n_tokens = 1 + n_text + len(images) * codec.grammar.tokens_per_image
    if n_tokens > context:
        return (
            f"a prompt with its image {item.image} has {n_tokens} tokens, which exceed the model's "
            f"context of {context}."
        )
    try:
        for image in images:
            open_image(image)
    except DataError as error:
        return str(error)
    return ""


def _share(values: Iterable[bool]) -> float | None:
    """Return the share of true values; None without values, for JSON has no NaN."""
    found = list(values)
    return sum(found) / len(found) if found else None
