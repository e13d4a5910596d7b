"""Small images, as bytes and as files."""

import io
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """Encode an image: encode(image, "PNG", **options)."""

    def run(image: PIL.Image.Image, kind: str = "PNG", **options: object) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, format=kind, **options)
        return buffer.getvalue()

    return run


@pytest.fixture
def red_png(encode: Callable[..., bytes]) -> bytes:
    return encode(PIL.Image.new("RGB", (16, 12), "red"))


@pytest.fixture
def red_file(tmp_path: Path, red_png: bytes) -> Path:
    path = tmp_path / "red.png"
    path.write_bytes(red_png)
    return path
