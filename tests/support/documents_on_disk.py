"""Numbered documents, written for each of the readers."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import PIL.Image

Write = Callable[[Path, Iterable[int]], Path]


def words(number: int) -> str:
    """Return the caption, which no other number has a part of."""
    return f"animal <{number}>"


def colour(number: int) -> tuple[int, int, int]:
    return (number * 37) % 256, (number * 91) % 256, number % 256


def write_documents(reader: str, folder: Path, numbers: Iterable[int]) -> Path:
    """Write an image and a caption of each number for a reader; return the path of the source."""
    folder.mkdir()
    return WRITERS[reader](folder, numbers)


def _image(folder: Path, number: int) -> str:
    PIL.Image.new("RGB", (32, 32), colour(number)).save(folder / f"{number}.png")
    return f"{number}.png"


def _folder(folder: Path, numbers: Iterable[int]) -> Path:
    for number in numbers:
        (folder / _image(folder, number)).with_suffix(".txt").write_text(words(number))
    return folder


def _html(folder: Path, numbers: Iterable[int]) -> Path:
    for number in numbers:
        name = words(number).replace("<", "&lt;").replace(">", "&gt;")
        page = f"<body><h1>{name}</h1><img src='{_image(folder, number)}'></body>"
        (folder / f"page-{number}.html").write_text(page)
    return folder


def _jsonl(folder: Path, numbers: Iterable[int]) -> Path:
    lines = [
        {"segments": [{"text": words(number)}, {"image": _image(folder, number)}]}
        for number in numbers
    ]
    return _lines(folder / "documents.jsonl", lines)


def _pairs(folder: Path, numbers: Iterable[int]) -> Path:
    lines = [
        {
            "prompt": words(number),
            "chosen": [{"image": _image(folder, number)}],
            "rejected": "no",
        }
        for number in numbers
    ]
    return _lines(folder / "pairs.jsonl", lines)


def _chat(folder: Path, numbers: Iterable[int]) -> Path:
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"Draw {words(number)}"},
                {"role": "assistant", "content": [{"type": "image", "image": image}]},
            ]
        }
        for number in numbers
        for image in [_image(folder, number)]
    ]
    return _lines(folder / "chat.jsonl", lines)


def _sharegpt(folder: Path, numbers: Iterable[int]) -> Path:
    lines = [
        {
            "image": _image(folder, number),
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": words(number)},
            ],
        }
        for number in numbers
    ]
    return _lines(folder / "talks.jsonl", lines)


def _cauldron(folder: Path, numbers: Iterable[int]) -> Path:
    lines = [
        {
            "images": [_image(folder, number)],
            "texts": [{"user": "What is it?", "assistant": words(number)}],
        }
        for number in numbers
    ]
    return _lines(folder / "cauldron.jsonl", lines)


def _lines(path: Path, lines: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


WRITERS: dict[str, Write] = {
    "folder": _folder,
    "html": _html,
    "jsonl": _jsonl,
    "pairs": _pairs,
    "chat": _chat,
    "sharegpt": _sharegpt,
    "cauldron": _cauldron,
}
