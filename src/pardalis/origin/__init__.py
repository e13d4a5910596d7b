"""What a generated image says of its origin: text fields, a watermark, a signed manifest."""

from pardalis.origin.credentials import Credentials, Manifest
from pardalis.origin.encode import About, ImageFormat, OriginWriter
from pardalis.origin.read import ImageOrigin, read_origin
from pardalis.origin.watermark import add_watermark, watermark_certainty

__all__ = [
    "About",
    "Credentials",
    "ImageFormat",
    "ImageOrigin",
    "Manifest",
    "OriginWriter",
    "add_watermark",
    "read_origin",
    "watermark_certainty",
]
