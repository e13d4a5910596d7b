"""A pairwise study: people judge the answers of two models to the same prompts, blind.

STUDY/
├─ study.json                the prompts, both answers to each, and which of them stands left
├─ images/                   their images as PNG, named by content, so that no name tells the model
├─ judgements.jsonl          what raters say, a line each; the last of a rater on an item counts
└─ completions/A, B          what the models generated, if the study did it
"""

import hashlib
import json
import os
import secrets
import threading
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pardalis.bundle import bundle_folder, load
from pardalis.config import shown
from pardalis.documents import Text, to_png
from pardalis.documents.images import ImageSource
from pardalis.errors import ConfigError, DataError, RequestError
from pardalis.files import (
    exclusive,
    is_own_file,
    output_folder,
    read_bytes,
    write_bytes,
    write_json,
)
from pardalis.inference import Engine, EngineConfig, GenerationConfig, PromptFile
from pardalis.inference.mask import Mask
from pardalis.inference.prompt_file import COMPLETIONS, read_completions
from pardalis.inference.prompt_lines import (
    LinePart,
    category_of,
    json_or_none,
    parse_line,
    read_lines,
)
from pardalis.seeds import numpy_generator

SIDES = ("A", "B")
FULFILMENTS = ("does not", "partially", "fulfils")  # from worst to best
CHOICES = ("B", "same", "A")  # from worst to best, as A sees it

_STUDY, _JUDGEMENTS, _IMAGES = "study.json", "judgements.jsonl", "images"
_VERSION = 1
_LONGEST_NAME = 80  # characters of a rater's

Segment = dict[str, str]  # {"text": ...} or {"image": a name in images/}


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A prompt with two answers.

    Attributes:
        answers: that of model "A" and that of model "B".
        left: the model whose answer raters see left.
    """

    prompt: list[Segment]
    answers: dict[str, list[Segment]]
    left: str
    category: str = ""

    @property
    def right(self) -> str:
        return SIDES[self.left == "A"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What a rater says of an item.

    Attributes:
        fulfilment: for each model, one of ``FULFILMENTS``.
        choice: the model whose answer is better, or "same".
        study: digest of the study.json that was judged.
    """

    rater: str
    item: int
    fulfilment: dict[str, str]
    choice: str
    time: str
    study: str


# ── making one ───────────────────────────────────────────────────────────────────────────────────


def make_study(
    prompts: Path,
    models: Sequence[Path],
    folder: Path,
    *,
    seed: int | None = None,
    device: str = "cpu",
) -> "Study":
    """Write the folder of a study; an interrupted one continues.

    Args:
        prompts: a file as :class:`PromptFile` completes it; lines may have a ``category``.
        models: A and B, each a bundle, or a folder of completions of these prompts.
        seed: of the order of the two answers to each prompt. Default: one that nobody knows.

    Raises:
        ConfigError: the folder has a study, or cannot be written.
        DataError: completions are not those of all prompts.
        PardalisError: a prompt or a bundle is wrong, or a prompt cannot be completed.
    """
    lines = read_lines(prompts)
    parsed = [parse_line(line, prompts, GenerationConfig())[0] for line in lines]
    categories = [category_of(line, prompts) for line in lines]
    if os.path.lexists(folder / _STUDY):
        raise ConfigError(f"{folder} holds a study; choose another folder, or remove it.")
    with exclusive(output_folder(folder)):
        answers = {}
        for side, path in zip(SIDES, models, strict=True):
            if not (path / COMPLETIONS).is_file():
                path = _complete(path, prompts, folder / "completions" / side, device)
            answers[side] = _answers(path, prompts, parsed, folder)
        seed = secrets.randbits(32) if seed is None else seed
        order = numpy_generator(seed, "study").permutation(len(lines)) % 2
        items = [
            Item(
                prompt=[_stored(part, folder) for part in parts],
                answers={side: answers[side][index] for side in SIDES},
                left=SIDES[order[index]],
                category=categories[index],
            )
            for index, parts in enumerate(parsed)
        ]
        values = {
            "version": _VERSION,
            "models": {side: str(path) for side, path in zip(SIDES, models, strict=True)},
            "seed": seed,
            "items": [asdict(item) for item in items],
        }
        write_json(folder / _STUDY, values)
    return Study(folder)


def _complete(bundle: Path, prompts: Path, folder: Path, device: str) -> Path:
    path = bundle_folder(bundle)
    loaded = load(path, device)
    config = EngineConfig(quantum_steps=loaded.model.config.context)
    with Engine(loaded, config) as engine:
        summary = PromptFile(engine, prompts, folder, bundle_path=path).run()
    if summary.failed:
        raise RequestError(
            f"{bundle} failed at {summary.failed} of {summary.requests} prompts; see the errors in "
            f"{folder / COMPLETIONS}."
        )
    return folder


def _answers(
    completions: Path, prompts: Path, parsed: Sequence[Sequence[LinePart | Mask]], folder: Path
) -> list[list[Segment]]:
    """Return the completions of the prompts, their images stored in the study."""
    records = {record["index"]: record for record in read_completions(completions)}
    lines = read_lines(prompts)
    for line, parts in zip(lines, parsed, strict=True):
        if records.get(line.index, {}).get("prompt") != line.digest(parts):
            raise DataError(
                f"{completions} has no answer to line {line.number} of {prompts}, or one to "
                "another prompt; both models must have completed this file."
            )
    if len(records) > len(lines):
        raise DataError(
            f"{completions} has {len(records)} answers and {prompts} {len(lines)} prompts; both "
            "models must have completed this file."
        )

    def stored(part: Segment) -> Segment:
        if "text" in part:
            return part
        image = completions / part["image"]
        if not is_own_file(image) or image.parent.is_symlink():
            raise DataError(f"{image} is a link; raters are shown what lies in {completions} only.")
        return _stored(image, folder)

    return [[stored(part) for part in records[line.index]["completion"]] for line in lines]


def _stored(part: LinePart | Mask, folder: Path) -> Segment:
    """Return a part of a prompt or an answer; an image is written anew, without what made it."""
    if isinstance(part, Text):
        return {"text": part.text}
    if isinstance(part, Mask):
        return {"text": "[mask]"}
    source: ImageSource = part
    content = to_png(source)
    name = hashlib.sha256(content).hexdigest()[:16] + ".png"
    if not is_own_file(folder / _IMAGES / name):
        write_bytes(folder / _IMAGES / name, content)
    return {"image": name}


# ── reading and judging one ──────────────────────────────────────────────────────────────────────


class Study:
    """The folder of a study, which may come from elsewhere.

    Raises:
        DataError: it is no study, it has no items, or an image is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, path = folder, folder / _STUDY
        if not is_own_file(path):
            raise DataError(f"{folder} is not the folder of a study: it has no {_STUDY}.")
        content = read_bytes(path)
        self.digest = hashlib.sha256(content).hexdigest()[:16]
        match json_or_none(content):
            case {"version": 1, "models": {"A": str(a), "B": str(b)}, "items": [*items]}:
                self.models = {"A": a, "B": b}
            case None:
                raise DataError(f"{path} is not JSON that can be read; make the study again.")
            case {"version": int(version)} if version > _VERSION:
                raise DataError(
                    f"{path} has format version {version}, and this version of Pardalis reads "
                    f"{_VERSION}; update Pardalis."
                )
            case _:
                raise DataError(f"{path} does not have the form of a study; make it again.")
        if not items:
            raise DataError(f"{path} has no items to judge; make the study of some prompts.")
        self.images: set[str] = set()
        self.items = [self._item(n, item) for n, item in enumerate(items)]

    def _item(self, number: int, values: Any) -> Item:
        match values:
            case {
                "prompt": [*prompt],
                "answers": {"A": [*a], "B": [*b]},
                "left": "A" | "B" as left,
                "category": str(category),
            } if all(map(self._is_segment, [*prompt, *a, *b])):
                answers = {"A": a, "B": b}
                return Item(prompt=prompt, answers=answers, left=left, category=category)
        raise DataError(
            f"{self.folder / _STUDY} has an item {number} that is none, or an image of it is "
            f"missing in {_IMAGES}/; make the study again."
        )

    def _is_segment(self, segment: Any) -> bool:
        match segment:
            case {"text": str(), **rest}:
                return not rest
            case {"image": str(name), **rest} if not rest and self._is_image(name):
                self.images.add(name)
                return True
        return False

    def _is_image(self, name: str) -> bool:
        stem, dot, kind = name.partition(".")
        is_name = dot + kind == ".png" and len(stem) == 16 and set(stem) <= set("0123456789abcdef")
        folder = self.folder / _IMAGES
        return is_name and not folder.is_symlink() and is_own_file(folder / name)

    def image(self, name: str) -> bytes:
        """Return an image of the study; raises RequestError if it has none of that name."""
        if name not in self.images or not self._is_image(name):
            raise RequestError(f"The study has no image {name!r}.")
        return read_bytes(self.folder / _IMAGES / name)

    def item(self, number: int) -> Item:
        """Return an item; raises RequestError if there is none of that number."""
        if not 0 <= number < len(self.items):
            raise RequestError(
                f"The study has no item {number}; its items are 0 to {len(self.items) - 1}."
            )
        return self.items[number]

    def judgement(self, content: Any) -> Judgement:
        """Return a judgement, checked; raises RequestError."""
        match content:
            case {
                "rater": str(rater),
                "item": int(item),
                "fulfilment": {"A": str(a), "B": str(b)},
                "choice": str(choice),
                "time": str(time),
                "study": str(study),
            } if {a, b} <= set(FULFILMENTS) and choice in CHOICES and type(item) is int:
                pass
            case _:
                raise RequestError(f"It is no judgement: {shown(content)}.")
        if study != self.digest:
            raise RequestError(
                f"It is of another version of {_STUDY}, which must stay as it was judged."
            )
        self.item(item)
        return Judgement(
            rater=rater_name(rater),
            item=item,
            fulfilment={"A": a, "B": b},
            choice=choice,
            time=time,
            study=study,
        )

    def judgements(self) -> tuple[list[Judgement], int]:
        """Return the last judgement of each rater on each item, and the number of damaged lines.

        A line is damaged if a crash has cut it off.

        Raises:
            DataError: a line is of another study, or no judgement.
        """
        path = self.folder / _JUDGEMENTS
        found: dict[tuple[str, int], Judgement] = {}
        n_damaged = 0
        for number, line in self._lines(path):
            content = json_or_none(line)
            if content is None:
                n_damaged += 1
                continue
            try:
                judgement = self.judgement(content)
            except RequestError as error:
                raise DataError(f"{path}:{number}: {error} Correct or remove the line.") from None
            found[judgement.rater, judgement.item] = judgement
        return list(found.values()), n_damaged

    def _lines(self, path: Path) -> Iterator[tuple[int, bytes]]:
        if not os.path.lexists(path):
            return
        if not is_own_file(path):
            raise DataError(
                f"{path} is not a regular file; remove it, or put the judgements there."
            )
        for number, line in enumerate(read_bytes(path).split(b"\n"), 1):
            if line.strip():
                yield number, line


def rater_name(name: str) -> str:
    """Return the name of a rater in one form; raises RequestError if it is none.

    It must be printable, since reports and terminals show it.
    """
    name = unicodedata.normalize("NFC", " ".join(name.split(" "))).strip()
    if not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable():
        raise RequestError(
            f"The name of a rater has 1 to {_LONGEST_NAME} characters that can be printed, got "
            f"{shown(name)}."
        )
    return name


class Desk:
    """Takes judgements of a study, one at a time, and knows who has judged what.

    One process may have it, which :func:`exclusive` ensures.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self._lock = threading.Lock()
        self._judged: dict[str, set[int]] = {}
        for judgement in study.judgements()[0]:
            self._judged.setdefault(judgement.rater, set()).add(judgement.item)

    def judged(self, rater: str) -> list[int]:
        """Return the items that a rater has judged; raises RequestError for no name."""
        with self._lock:
            return sorted(self._judged.get(rater_name(rater), ()))

    def take(self, rater: str, item: int, left: str, right: str, choice: str) -> Judgement:
        """Append a judgement to the file, whole and on the disk, or not at all.

        Args:
            left: fulfilment of the answer that stands left.
            choice: "left", "right" or "same".

        Raises:
            RequestError: it is no judgement.
            DataError: the file is not a regular one.
        """
        shown_item = self.study.item(item)
        sides = {"left": shown_item.left, "right": shown_item.right, "same": "same"}
        judgement = self.study.judgement(
            {
                "rater": rater,
                "item": item,
                "fulfilment": {shown_item.left: left, shown_item.right: right},
                "choice": sides.get(choice, choice),
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "study": self.study.digest,
            }
        )
        with self._lock:
            _append(self.study.folder / _JUDGEMENTS, asdict(judgement))
            self._judged.setdefault(judgement.rater, set()).add(item)
        return judgement


def _append(path: Path, record: Mapping[str, Any]) -> None:
    """Append a line; one that a crash has cut off before gets its end."""
    if os.path.lexists(path) and not is_own_file(path):
        raise DataError(f"{path} is not a regular file; remove it.")
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        is_cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        line = "\n" * is_cut + json.dumps(record, ensure_ascii=False) + "\n"
        content = line.encode()
        try:
            if os.write(descriptor, content) < len(content):
                raise OSError(28, os.strerror(28), str(path))  # the disk is full
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
