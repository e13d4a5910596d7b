"""How well a trained model fills gaps: a removed word of a caption, a removed half of an image.

Each pair of a text and an image of a run's sources is a task of each kind. A model that has learnt
to infill reads the document with a mask; every model can be asked to continue from the left, with
what stands before the gap alone, so that models with and without infilling can be compared::

    OUT/infilling.json    the scores of every source

Everything is generated greedily, and what was removed is scored too, in nats per token.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import torch

from pardalis import bundle as bundles
from pardalis.bundle import Bundle
from pardalis.config import check_at_least
from pardalis.documents import Document, Image, Segment, Text, open_image
from pardalis.errors import ConfigError, DataError
from pardalis.files import atomic_folder, require_replaceable, write_json
from pardalis.inference import (
    GenerationConfig,
    Infilling,
    Mask,
    Request,
    ScoreRequest,
    complete,
    score,
    to_document,
    to_request,
)
from pardalis.pipeline.builders import documents_of
from pardalis.pipeline.recipe import load_recipe
from pardalis.progress import bar
from pardalis.seeds import numpy_generator

_FILE = "infilling.json"
_GREEDY = GenerationConfig(temperature=0.0, image_temperature=0.0)
_ROWS = (0.0, 0.5)  # the upper half, of which a model from the left knows nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class InfillingConfig:
    """How much is scored."""

    tasks: int = 100  # of each kind and source, at most
    word_tokens: int = 16  # token budget of a word, with what may follow it
    batch: int = 64  # tasks per engine
    seed: int = 0  # selects documents and words

    def __post_init__(self) -> None:
        check_at_least(self, tasks=1, word_tokens=1, batch=1)


@dataclass(frozen=True, slots=True)
class _Task:
    """A document with a gap."""

    masked: tuple[Any, ...]  # segments, with a mask
    before: tuple[Segment, ...]  # what stands before the gap
    removed: str  # the word, with the space before it; "": half of an image


_Ask: TypeAlias = Callable[[_Task], Request]


def study_infilling(
    run: Path,
    folder: Path,
    config: InfillingConfig,
    device: torch.device | str = "cpu",
    bundle: Path | None = None,
) -> dict[str, Any]:
    """Score the infilling of a finished run's model for each source, and write the scores.

    Args:
        bundle: another model than that of the run.

    Returns:
        The content of ``infilling.json``.

    Raises:
        ConfigError: no source has pairs of a text and an image, or ``folder`` holds something else.
        BundleError: the run has no trained model, or ``bundle`` cannot be loaded.
        DataError: a source does not exist.
    """
    recipe = load_recipe(run / "recipe.toml")
    require_replaceable(folder, _FILE)
    model = bundles.load(bundle or run / "bundle", device)
    sources: dict[str, Any] = {}
    learnt = {source.name for source in recipe.sources}
    for source in recipe.all_sources:
        pairs = _pairs(documents_of([source], run), source.name, config)
        if pairs:
            scores = _Scorer(model, config).scores(source.name, pairs)
            sources[source.name] = {"is_held_out": source.name not in learnt, **scores}
    if not sources:
        raise ConfigError(
            f"No source of {run} has documents of one text and one image; name one in its recipe."
        )
    result = {"config": asdict(config), "sources": sources}
    with atomic_folder(folder) as partial:
        write_json(partial / _FILE, result)
    return result


def _pairs(
    documents: Iterable[Document], source: str, config: InfillingConfig
) -> list[tuple[Segment, ...]]:
    """Return pairs of a source, chosen at random, whose image can be opened."""
    found = [each.segments for each in documents if _is_pair(each.segments)]
    order = numpy_generator(config.seed, "infilling", source).permutation(len(found))
    return list(islice((found[i] for i in order if _opens(found[i])), config.tasks))


def _is_pair(segments: Sequence[Segment]) -> bool:
    kinds = {type(segment) for segment in segments if segment.role is None}
    return len(segments) == 2 and kinds == {Text, Image}


def _opens(segments: Sequence[Segment]) -> bool:
    try:
        for segment in segments:
            if isinstance(segment, Image):
                open_image(segment.source)
    except DataError:
        return False
    return True


def word_task(segments: Sequence[Segment], number: int) -> _Task:
    """Return a pair with one word of its text removed, that of a number modulo its words."""
    [place] = [n for n, segment in enumerate(segments) if isinstance(segment, Text)]
    words = " ".join(segment.text for segment in segments if isinstance(segment, Text)).split()
    at = number % len(words)
    before, removed, after = " ".join(words[:at]), words[at], " ".join(words[at + 1 :])
    removed = f" {removed}" if before else removed
    texts = [Text(before)] if before else []
    gap = [*texts, Mask(), *([Text(f" {after}")] if after else [])]
    earlier = tuple(segments[:place])
    return _Task((*earlier, *gap, *segments[place + 1 :]), (*earlier, *texts), removed)


def image_task(segments: Sequence[Segment]) -> _Task:
    """Return a pair with the upper half of its image removed."""
    [place] = [n for n, segment in enumerate(segments) if isinstance(segment, Image)]
    masked = [Mask(image=s, rows=_ROWS) if isinstance(s, Image) else s for s in segments]
    return _Task(tuple(masked), tuple(segments[:place]), "")


class _Scorer:
    """Scores tasks with one model."""

    def __init__(self, bundle: Bundle, config: InfillingConfig) -> None:
        self.bundle, self.config, self.codec = bundle, config, bundle.codec
        self.infills = bool(bundle.codec.vocabulary.masks)

    def scores(self, source: str, pairs: Sequence[tuple[Segment, ...]]) -> dict[str, Any]:
        """Return the scores of the pairs of a source."""
        generator = numpy_generator(self.config.seed, "words", source)
        numbers = generator.integers(1 << 30, size=len(pairs)).tolist()
        words = [
            word_task(pair, number)
            for pair, number in zip(pairs, numbers, strict=True)
            if any(isinstance(s, Text) and s.text.strip() for s in pair)
        ]
        images = [image_task(pair) for pair in pairs]
        ways = {"from_left": self._from_left} | (
            {"infilled": self._infilled} if self.infills else {}
        )
        found: dict[str, Any] = {"words": len(words), "images": len(images)}
        for way, request in ways.items():
            found[f"word_{way}"] = self._right_words(f"Words ({source})", words, request)
            found[f"word_nats_{way}"] = self._nats(words, request)
            found[f"codes_{way}"] = self._right_codes(f"Images ({source})", images, request)
            found[f"code_nats_{way}"] = self._nats(images, request)
        return found

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    def _infilled(self, task: _Task) -> Request:
        config = _GREEDY
        if task.removed:
            config = config.with_options({"max_new_tokens": self.config.word_tokens})
        return Infilling(self.bundle, task.masked, config).request()

    def _from_left(self, task: _Task) -> Request:
        mode = {"mode": "text", "max_new_tokens": self.config.word_tokens}
        return to_request(
            self.bundle,
            to_document(list(task.before)) if task.before else [],
            _GREEDY.with_options(mode if task.removed else {"mode": "image"}),
        )

    # ── scores ───────────────────────────────────────────────────────────────────────────────────

    def _right_words(self, title: str, tasks: Sequence[_Task], request: _Ask) -> float | None:
        """Return the share of removed words that are written, ignoring case."""
        right: list[float] = []
        for task, ids in self._generated(title, tasks, request):
            text = self._text(ids).lower().split()
            right.append(float(text[:1] == [task.removed.strip().lower()]))
        return _mean(right)

    def _right_codes(self, title: str, tasks: Sequence[_Task], request: _Ask) -> float | None:
        """Return the share of removed codes that are generated."""
        right: list[float] = []
        image = self.codec.vocabulary.image
        for task, ids in self._generated(title, tasks, request):
            codes, removed = [i for i in ids if i in image], self._removed_ids(task)
            pairs = zip(codes[: len(removed)], removed, strict=True)
            right.append(sum(a == b for a, b in pairs) / len(removed))
        return _mean(right)

    def _nats(self, tasks: Sequence[_Task], request: _Ask) -> float | None:
        """Return the mean negative log-probability of a removed token."""
        begin_image = (self.codec.vocabulary.begin_image_id,)
        requests = []
        for task in tasks:
            ids = request(task).prompt_ids
            if request == self._from_left and not task.removed:
                ids += begin_image
            removed = tuple(self._removed_ids(task))
            requests.append(ScoreRequest(prompt_ids=ids, continuation_ids=removed))
        found = [log_prob for each in score(self.bundle, requests) for log_prob in each.log_probs]
        return _mean([-log_prob for log_prob in found])

    def _removed_ids(self, task: _Task) -> list[int]:
        if task.removed:
            return self.codec.encode_continuation(Document((Text(task.removed),)))
        [image] = [part.image for part in task.masked if isinstance(part, Mask)]
        codes = self.codec.encode_continuation(Document((image,)))[1:-1]
        return codes[: len(codes) // 2]

    def _generated(
        self, title: str, tasks: Sequence[_Task], request: _Ask
    ) -> Iterator[tuple[_Task, list[int]]]:
        with bar(title, total=len(tasks), unit="tasks") as advance:
            for start in range(0, len(tasks), self.config.batch):
                batch = tasks[start : start + self.config.batch]
                completions = complete(self.bundle, [request(task) for task in batch])
                yield from zip(batch, (each.token_ids for each in completions), strict=True)
                advance(len(batch))

    def _text(self, ids: Sequence[int]) -> str:
        vocabulary = self.codec.vocabulary
        tokens = [vocabulary.text_token(i) for i in ids if i in vocabulary.text]
        return self.codec.text_tokenizer.decode(tokens)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
