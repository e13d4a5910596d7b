"""The codes of many images on disk, in plain files that other tools can open.

    codes.json                 format version, what the codes were made from and how
    part-00000.npy             codes [images, codes per image], uint16 where they fit
    part-00000.jsonl           the name of each of those images, one JSON string a line
    part-00000.rejected.jsonl  what of the part could not be encoded, and why; if anything

A part holds a fixed run of the source's images, whichever process encodes it, and is written
atomically. So an interrupted run continues, and several processes divide the parts among them.
"""

import io
import json
import logging
import os
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from jaxtyping import UInt

from pardalis import config as configs
from pardalis.config import shown
from pardalis.data.arrays import open_array
from pardalis.data.source import SourceConfig, read_source, size_and_time, survey
from pardalis.documents import ImageSource, Rejection, named_images
from pardalis.errors import ConfigError, DataError
from pardalis.files import (
    output_folder,
    parse_json,
    plain,
    read_json,
    read_text,
    write_bytes,
    write_once,
)
from pardalis.progress import Advance, bar
from pardalis.vq import ImageFit, ImageTokenizer
from pardalis.vq.stream import encode_stream

logger = logging.getLogger(__name__)

FORMAT = "pardalis-codes"
VERSION = 2
_OLD_KEYS = {"pictures": "images", "pictures_per_part": "images_per_part"}  # keys of version 1
SETTINGS = "codes.json"
_IMAGES_PER_PART = 256
_MOST_IMAGES, _MOST_PARTS = 10**10, 10**6
_LONGEST_NAME = 200  # bytes of a file's name; file systems allow 255
_FORBIDDEN = re.compile(r"[\x00-\x1f\\]")


@dataclass(frozen=True, slots=True)
class Worker:
    """One of ``size`` processes that divide the work; it takes every ``size``-th part."""

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ConfigError(
                f"rank must be from 0 to size - 1, got rank {self.rank} and size {self.size}."
            )

    @classmethod
    def from_environment(cls) -> "Worker":
        """Return the worker of a process that ``torchrun`` started; the only one without it."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    def takes(self, part: int) -> bool:
        return part % self.size == self.rank


SINGLE_WORKER = Worker()


@dataclass(slots=True)
class CodesReport:
    """The result for the images of one worker."""

    images: int = 0  # including rejected ones
    unchanged: int = 0  # encoded or decoded by an earlier run
    rejected: int = 0


def encode_source(
    tokenizer: ImageTokenizer,
    source: SourceConfig,
    folder: Path,
    image_fit: ImageFit = "crop",
    batch: int | None = None,
    worker: Worker = SINGLE_WORKER,
) -> CodesReport:
    """Write the codes of all images of a source; existing parts are kept.

    Args:
        batch: images encoded together; None: the default of the device.
        worker: which parts this process encodes.

    Raises:
        ConfigError: the folder holds codes of other settings or other images, or it is a file.
        DataError: the source does not exist or has no image.
    """
    # Each of many workers surveys the source, so files are identified without reading them.
    content = survey(source, size_and_time)
    if not content.n_images:
        raise DataError(f"{source.path} holds no images, so there is nothing to encode.")
    folder = output_folder(folder)
    settings = {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": tokenizer.fingerprint(),
        "config": configs.to_dict(tokenizer.config),
        "source": content.digest,
        "reader": source.reader,
        "fit": image_fit,
        "dtype": str(tokenizer.compute_dtype).removeprefix("torch."),
        "images": content.n_images,
        "images_per_part": _IMAGES_PER_PART,
    }
    _settle(folder, settings)
    sizes = {part: size for part, size in _sizes(settings).items() if worker.takes(part)}
    missing = {part: n for part, n in sizes.items() if not _codes_file(folder, part).exists()}
    report = CodesReport(sum(sizes.values()), sum(sizes.values()) - sum(missing.values()))
    with bar("Encoding", report.images, "images", done=report.unchanged) as advance:
        for number, part in _encoded_parts(tokenizer, source, missing, image_fit, batch, advance):
            _write_part(folder, number, part, tokenizer)
    report.rejected = report.images - sum(len(_codes(folder, part)) for part in sizes)
    return report


def decode_codes(
    tokenizer: ImageTokenizer, codes: Path, folder: Path, worker: Worker = SINGLE_WORKER
) -> CodesReport:
    """Write a PNG of each image's codes, named after the image; existing files are kept.

    Raises:
        ConfigError: ``folder`` is a file.
        DataError: there are no codes, or another image tokenizer made them.
        RequestError: the image tokenizer has no decoder.
    """
    settings = read_settings(codes)
    if settings["tokenizer"] != tokenizer.fingerprint():
        raise DataError(
            f"The codes in {codes} are of image tokenizer {settings['tokenizer']}, but "
            f"`tokenizer` is {tokenizer.fingerprint()}; decode them with the one that made them."
        )
    parts = [part for part in _sizes(settings) if _codes_file(codes, part).exists()]
    if len(parts) < len(_sizes(settings)):
        logger.warning(
            "%s holds %d of %d parts; the rest is not encoded yet.",
            codes, len(parts), len(_sizes(settings)),
        )  # fmt: skip
    for part in parts:
        _check_part(codes, part, tokenizer)
    files, folder = _file_names(codes, parts), output_folder(folder)
    mine = [part for part in parts if worker.takes(part)]
    report = CodesReport(sum(len(files[part]) for part in mine))
    with bar("Decoding", report.images, "images") as advance, ThreadPoolExecutor() as pool:
        for part in mine:
            paths = [folder / name for name in files[part]]
            missing = [i for i, path in enumerate(paths) if not path.exists()]
            report.unchanged += len(paths) - len(missing)
            advance(len(paths) - len(missing))
            for some in _chunks(missing, tokenizer.images_per_pass):
                grids = torch.from_numpy(_codes(codes, part)[some].astype(np.int64))
                images = tokenizer.images_of(grids)
                list(pool.map(_write_image, [paths[i] for i in some], images))
                advance(len(some))
    return report


def read_settings(folder: Path) -> dict[str, Any]:
    """Return what ``codes.json`` says, in the keys of this version.

    Raises:
        DataError: there is none, or it is of an unknown version.
    """
    path = folder / SETTINGS
    try:
        settings: dict[str, Any] = read_json(path)
        version = settings["version"]
        known = settings["format"] == FORMAT and type(version) is int and version <= VERSION
    except FileNotFoundError:
        raise DataError(f"No codes in {folder}: {SETTINGS} is missing; encode first.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} does not describe codes: {error!r}.") from error
    if not known:
        found = f"{shown(settings['format'])} version {shown(version)}".replace("'", "")
        raise DataError(
            f"{path} says {found}; this Pardalis reads {FORMAT} up to version {VERSION}."
        )
    settings = {_OLD_KEYS.get(key, key): value for key, value in settings.items()}
    if missing := {"tokenizer", "source", "images", "images_per_part"} - set(settings):
        raise DataError(f"{path} lacks {min(missing)}; delete the folder and encode again.")
    for name, least in (("images", 0), ("images_per_part", 1)):
        if type(value := settings[name]) is not int or not least <= value < _MOST_IMAGES:
            raise DataError(
                f"{path} has {shown(value)} as {name}, which must be a number from {least} to "
                f"{_MOST_IMAGES}; delete the folder and encode again."
            )
    if settings["images"] > _MOST_PARTS * settings["images_per_part"]:
        raise DataError(f"{path} has too many parts; delete the folder and encode again.")
    return settings | {"version": VERSION}


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Part:
    names: list[str] = field(default_factory=list)
    codes: list[list[int]] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.codes) + len(self.rejected)


def _encoded_parts(
    tokenizer: ImageTokenizer,
    source: SourceConfig,
    sizes: dict[int, int],
    image_fit: ImageFit,
    batch: int | None,
    advance: Advance,
) -> Iterator[tuple[int, _Part]]:
    """Yield the parts that ``sizes`` names, each as soon as it is complete."""
    parts: defaultdict[int, _Part] = defaultdict(_Part)
    begun: deque[tuple[int, str]] = deque()

    def images() -> Iterator[ImageSource]:
        items = named_images(read_source(source)) if sizes else ()
        for position, item in enumerate(items):
            part = position // _IMAGES_PER_PART
            if part not in sizes:
                continue
            if isinstance(item, Rejection):
                parts[part].rejected.append(item)
                continue
            name, image = item
            begun.append((part, name))
            yield image.source

    for result in encode_stream(tokenizer, images(), image_fit, batch):
        number, name = begun.popleft()
        part = parts[number]
        if isinstance(result, DataError):
            part.rejected.append(Rejection(name, "unreadable-image", str(result)))
        else:
            part.names.append(name)
            part.codes.append(result)
        advance(1)
        if len(part) == sizes[number]:
            yield number, parts.pop(number)
    yield from parts.items()  # those whose last items the reader rejected


def _write_part(folder: Path, number: int, part: _Part, tokenizer: ImageTokenizer) -> None:
    """Write the files of a part. Its codes come last, so they exist only for a complete part."""
    config = tokenizer.config
    dtype = np.uint16 if config.n_codes <= 1 << 16 else np.uint32
    codes = np.array(part.codes, dtype).reshape(-1, config.codes_per_image)
    if part.rejected:
        _write_lines(folder / f"part-{number:05d}.rejected.jsonl", map(asdict, part.rejected))
    _write_lines(_names_file(folder, number), part.names)
    buffer = io.BytesIO()
    np.save(buffer, codes)
    write_bytes(_codes_file(folder, number), buffer.getvalue())


def _write_lines(path: Path, values: Iterable[object]) -> None:
    # In ASCII, since the name of a file may be invalid Unicode.
    write_bytes(path, "".join(json.dumps(value) + "\n" for value in values).encode())


def _codes_file(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05d}.npy"


def _names_file(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05d}.jsonl"


def _codes(folder: Path, part: int) -> UInt[np.ndarray, "B G"]:
    path = _codes_file(folder, part)
    try:
        codes = open_array(path)
        if codes.dtype not in (np.uint16, np.uint32) or codes.ndim != 2:
            raise ValueError(f"it holds {codes.dtype} of shape {list(codes.shape)}, not codes")
        return codes
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); delete it and encode again, which makes it anew."
        ) from error


def _names(folder: Path, part: int) -> list[str]:
    path = _names_file(folder, part)
    try:
        names = [parse_json(line) for line in read_text(path).splitlines()]
        if wrong := [name for name in names if not isinstance(name, str)]:
            raise ValueError(f"{shown(wrong[0])} is not a name")
        return names
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); delete {_codes_file(folder, part).name} beside it "
            "and encode again, which makes that part anew."
        ) from error


def _check_part(folder: Path, part: int, tokenizer: ImageTokenizer) -> None:
    """Raise DataError unless the codes of a part are of an image tokenizer and each has a name."""
    codes, config = _codes(folder, part), tokenizer.config
    found, n_names = codes.shape, len(_names(folder, part))
    largest = codes.max(initial=0)
    if found != (n_names, config.codes_per_image) or largest >= config.n_codes:
        raise DataError(
            f"{_codes_file(folder, part)} has {found[0]} x {found[1]} codes up to {largest} for "
            f"{n_names} names; needed are {config.codes_per_image} codes an image, below "
            f"{config.n_codes}. Delete it and encode again, which makes it anew."
        )


def _sizes(settings: Mapping[str, Any]) -> dict[int, int]:
    """Return the number of images of each part, including rejected ones."""
    images, most = settings["images"], settings["images_per_part"]
    starts = range(0, images, most)
    return {part: min(most, images - start) for part, start in enumerate(starts)}


def _settle(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings, or compare them with those that are already there."""
    if not write_once(folder / SETTINGS, json.dumps(settings, indent=2) + "\n"):
        _compare(folder, read_settings(folder), plain(settings))


def _compare(folder: Path, found: Mapping[str, Any], needed: Mapping[str, Any]) -> None:
    if found["source"] != needed["source"]:
        raise ConfigError(
            f"{folder} holds codes of other images, or the images have changed; choose another "
            "folder, or delete this one."
        )
    for name, value in needed.items():
        if found.get(name) != value:
            raise ConfigError(
                f"{folder} was begun with {name} {found.get(name)}, but now it is {value}; use "
                "the same value, or choose another folder."
            )


# ── images ─────────────────────────────────────────────────────────────────────────────────────


def _file_names(codes: Path, parts: Iterable[int]) -> dict[int, list[str]]:
    """Return a relative path for each image, short enough for file systems."""
    taken: set[str] = set()
    files = {}
    for part in parts:
        files[part] = [
            _new_name(_safe(name), f"{part}-{index}", taken)
            for index, name in enumerate(_names(codes, part))
        ]
    return files


def _new_name(name: str, place: str, taken: set[str]) -> str:
    """Add the suffix ``.png``, and the place of an image whose file name is taken."""
    stem = name.removesuffix(".png")
    new = f"{stem}.png" if f"{stem}.png" not in taken else f"{stem}~{place}.png"
    taken.add(new)
    return new


def _safe(name: str) -> str:
    """Return a name without parts that lead out of a folder."""
    parts = [part for part in _FORBIDDEN.sub("_", name).split("/") if part.strip(".")]
    cut = [os.fsdecode(os.fsencode(part)[:_LONGEST_NAME]) for part in parts]
    return "/".join(cut) or "image"


def _write_image(path: Path, image: PIL.Image.Image) -> None:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    write_bytes(path, buffer.getvalue())


def _chunks(items: list[int], size: int) -> Iterator[list[int]]:
    return (items[start : start + size] for start in range(0, len(items), size))
