"""Tasks on disk, of a few items that the tiny tokenizer knows."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import PIL.Image

CHOICE = """\
kind = "choice"
prompt = "The {animal} is"
choices = ["{choices}"]
answer = "{answer}"
normalise = ["none", "tokens", "characters", "bytes"]

[data]
path = "items.jsonl"
id = "id"
"""

ITEMS = [
    {"id": f"q{i}", "animal": animal, "choices": ["old", "an owl", "naïve fox"], "answer": i % 3}
    for i, animal in enumerate(["owl", "fox", "cat", "oak", "ran"])
]


def write_lines(path: Path, lines: Iterable[Any]) -> None:
    """Write a JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_task(folder: Path, name: str = "animals", toml: str = CHOICE, items: Any = ITEMS) -> Path:
    """Write a task with its items and two images; return its file."""
    write_lines(folder / "items.jsonl", items)
    for colour in ("red", "blue"):
        PIL.Image.new("RGB", (20, 20), colour).save(folder / f"{colour}.png")
    path = folder / f"{name}.toml"
    path.write_text(toml)
    return path
