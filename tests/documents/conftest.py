"""Small pictures, as bytes and as files."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """Encode a picture: encode(image, "PNG", **options)."""

    def run(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, format=kind, **options)
        return buffer.getvalue()

    return run


@pytest.fixture
def red_png(encode: Callable[..., bytes]) -> bytes:
    return encode(Image.new("RGB", (4, 3), "red"))


@pytest.fixture
def red_file(tmp_path: Path, red_png: bytes) -> Path:
    path = tmp_path / "red.png"
    path.write_bytes(red_png)
    return path
