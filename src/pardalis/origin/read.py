"""Reading what an image says of its origin."""

import io
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
from PIL.ExifTags import Base

from pardalis.documents import media_type, open_image
from pardalis.documents.images import read_source
from pardalis.errors import ConfigError
from pardalis.origin.credentials import Manifest, read_manifest
from pardalis.origin.foreign import one_line
from pardalis.origin.watermark import CERTAIN, watermark_certainty

_FIELDS = ("Software", "Source", "Creation Time", "Seed")
_TAGS = {"Software": Base.Software, "Source": Base.ImageDescription, "Creation Time": Base.DateTime}


@dataclass(frozen=True, slots=True)
class ImageOrigin:
    """What an image says of its origin; anybody can write the fields."""

    size: tuple[int, int]  # width and height of the upright image
    fields: dict[str, str]
    certainty: float  # of the mark in its pixels, in standard deviations
    manifest: Manifest | None  # its state is unreadable if it has one that cannot be read
    reads_manifests: bool  # whether c2pa-python is installed

    @property
    def has_watermark(self) -> bool:
        return self.certainty >= CERTAIN


def read_origin(source: Path | bytes) -> ImageOrigin:
    """Return what an image file, or the bytes of one, says of its origin.

    Raises:
        DataError: it is no image that can be read.
    """
    content = read_source(source)
    image = open_image(source)  # not its content, which has no name for a message
    manifest, reads = None, True
    try:
        manifest = read_manifest(content, media_type(content) or "")
    except ConfigError:
        reads = False
    return ImageOrigin(
        image.size, _fields(content), watermark_certainty(image), manifest, reads_manifests=reads
    )


def _fields(content: bytes) -> dict[str, str]:
    """Return the text fields of a PNG file, or the same tags of EXIF."""
    try:
        with PIL.Image.open(io.BytesIO(content)) as image:
            exif = image.getexif()
            found = {name: image.info.get(name) or exif.get(_TAGS.get(name, 0)) for name in _FIELDS}
    except Exception:  # Pillow raises many classes when metadata are damaged
        return {}
    return {name: one_line(text) for name, text in found.items() if isinstance(text, str)}
