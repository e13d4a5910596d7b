"""Small documents of texts and images, as a source."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from pardalis.data import SourceConfig


def write_source(
    folder: Path, name: str, texts: Sequence[str], images: Sequence[int | None]
) -> SourceConfig:
    """Write documents of a text and an image each; None: no image, "": no text."""
    lines = []
    for number, (text, image) in enumerate(zip(texts, images, strict=True)):
        segments = [{"text": text}] if text else []
        if image is not None:
            pixels = np.random.default_rng(image).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(folder / f"{image}.png")
            segments.append({"image": f"{image}.png"})
        lines.append(json.dumps({"name": f"{name}-{number}", "segments": segments}) + "\n")
    (folder / f"{name}.jsonl").write_text("".join(lines))
    return SourceConfig(name=name, reader="jsonl", path=folder / f"{name}.jsonl")
