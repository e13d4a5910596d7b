"""Turning any image file into plain RGB pixels, and images into PNG bytes and data URIs.

This is the only place that decodes images. Resizing and cropping belong to the image tokenizer.

Colour profiles are ignored, as Chameleon's release ignores them, so an image of wide gamut looks
paler than it is. JPEGs are decoded whole: decoding them at a fraction of their size
(``Image.draft``) would be faster and give other pixels.
"""

import base64
import binascii
import importlib.util
import io
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal
from urllib.parse import unquote_to_bytes

import numpy as np
import PIL.Image
from PIL import ExifTags, ImageChops, UnidentifiedImageError
from PIL.IcoImagePlugin import IcoFile

from pardalis.documents.document import ImageSource
from pardalis.documents.encoded import JPEG, damaged, jpeg_forms, without_metadata
from pardalis.errors import DataError
from pardalis.files import kind_of, pointer_of, read_bytes

# Above this many pixels an image is refused before it is decoded: its RGB form would take 240 MB,
# and a file of a few kilobytes can claim any size. Pillow begins to warn at a slightly larger size.
MAX_PIXELS = 80_000_000

_MOST_BYTES = 1 << 29  # of a file: as many pixels, uncompressed, with 16 bits for each colour

Blend = Literal["chameleon", "pillow"]
_BLENDED_AT_ONCE = 1 << 16  # pixels; as floats they take 24 times the memory

_CHANNELS = (1, 3, 4)  # of an array: grey, RGB, RGBA

# Pillow reads more formats, mostly rare ones; for EPS it starts a program.
_KINDS = (
    "PNG", "JPEG", "MPO", "GIF", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "ICO",
    "TGA", "HEIF",
)  # fmt: skip

# How the main brand of HEIC images begins; that of AVIF, which Pillow reads itself, is another.
_HEIC = re.compile(rb"....ftyp(?:hei[cxms]|hev[cx]|mif1|msf1)", re.DOTALL)

# What stands in place of images, in lower case, and what to do.
_OTHERS = {
    b"<!doctype html": "an HTML page and not an image, as a server sends for a missing file",
    b"<html": "an HTML page and not an image, as a server sends for a missing file",
    b"<svg": "an SVG drawing, which is read as part of a page only; save it as PNG",
    b"%pdf": "a PDF document and not an image; save its pages as PNG",
    b"<?xml": "an XML document and not an image, such as a drawing or the error of a server",
}

# How to stand an image upright, by the EXIF orientation.
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}

# 32-bit numbers of no stated range, and two kinds of colour that Pillow does not convert.
_MODES_WITHOUT_RGB = ("I", "F", "LAB", "La")
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


def open_image(source: ImageSource, blend: Blend = "chameleon") -> PIL.Image.Image:
    """Return the image as upright 8-bit RGB on white; of an animation, the first frame.

    Half of all pairs of opacity and colour have another byte on white in Chameleon's release, which
    cuts fractions off (``chameleon``), than by ``alpha_composite`` of Pillow (``pillow``), which is
    one level brighter there. An image tokenizer's config says which one it needs
    (:mod:`pardalis.vq.preprocessing`).

    Raises:
        DataError: the image is missing, empty, truncated, of an unknown kind or too large.
    """
    if isinstance(source, PIL.Image.Image):
        return _to_rgb(source, "the image in memory", blend)
    if not isinstance(source, Path | bytes):
        raise DataError(
            f"The source of an image is of type {type(source).__name__}; it must be a Path, bytes "
            "or a PIL image."
        )
    where, content = _shown(source), read_source(source)
    try:
        return _decoded(content, where, blend)
    except DataError:
        if (bare := without_metadata(content)) is not None:
            with suppress(DataError):
                return _decoded(bare, where, blend)
        raise


def _decoded(content: bytes, where: str, blend: Blend) -> PIL.Image.Image:
    forms = jpeg_forms(content, where) if content.startswith(JPEG) else (content,)
    image = _of_form(forms[0], where, blend)
    for form in forms[1:]:
        if ImageChops.difference(image, _of_form(form, where, blend)).getbbox():
            raise damaged(where, "its last scan is cut off")
    return image


def _of_form(content: bytes, where: str, blend: Blend) -> PIL.Image.Image:
    with _opened(io.BytesIO(content), where) as image:
        return _to_rgb(image, where, blend)


def why_damaged(source: ImageSource) -> str:
    """Return why an image cannot be decoded; "" if it can."""
    try:
        open_image(source)
    except DataError as error:
        return str(error)
    return ""


def image_size(source: Path | bytes) -> tuple[int, int]:
    """Return the width and height that the header of an encoded image states, before any turn.

    Pixels are not decoded, so a file that is cut off behind its header has a size too.

    Raises:
        DataError: the image is missing or empty, of an unknown kind or too large.
    """
    where = _shown(source)
    try:
        file = source.open("rb") if isinstance(source, Path) else io.BytesIO(source)
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror}.") from error
    with file:
        if not file.read(1):
            raise _empty(where)
        file.seek(0)
        try:
            return _size(file, where)
        except DataError:
            file.seek(0)
            if (bare := without_metadata(file.read(_MOST_BYTES))) is not None:
                with suppress(DataError):
                    return _size(io.BytesIO(bare), where)
            raise


def _size(file: io.BufferedReader | io.BytesIO, where: str) -> tuple[int, int]:
    with _opened(file, where) as image:
        _check_size(image, where)
        return image.size


def is_clear(content: bytes) -> bool:
    """Whether nothing of an image is seen on any ground; raises as :func:`image_size`."""
    with _opened(io.BytesIO(content), "the image in memory") as image:
        _check_size(image, "the image in memory")
        return image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)


def from_array(array: np.ndarray) -> PIL.Image.Image:
    """Return the image of an array of 8-bit numbers, or of floats in [0, 1].

    The shape is Y X, Y X C or C Y X, with 1 (grey), 3 (RGB) or 4 channels (RGBA). If the first and
    the last dimension could hold the channels, the last does.

    Raises:
        DataError: the array has another shape, another dtype, or numbers outside their range.
    """
    shape = " x ".join(map(str, array.shape)) or "no dimension"
    if array.ndim == 3 and array.shape[2] not in _CHANNELS and array.shape[0] in _CHANNELS:
        array = np.moveaxis(array, 0, 2)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in _CHANNELS):
        raise DataError(
            f"The array has the shape {shape}; an image has height x width, or 1, 3 or 4 channels "
            "in a last or first dimension."
        )
    if not array.size:
        raise DataError(f"The array has the shape {shape}, which is no image.")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise _too_large("The array")
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # also refuses NaN
            raise DataError(
                f"The array has numbers from {array.min():g} to {array.max():g}; floats must lie "
                "in [0, 1], so scale them, or give 8-bit integers."
            )
        array = (array.astype(np.float32) * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise DataError(
            f"The array has the dtype {array.dtype}; an image has uint8, or floats in [0, 1]."
        )
    array = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return PIL.Image.fromarray(np.array(array, order="C"))  # a copy


def read_source(source: Path | bytes) -> bytes:
    """Return the bytes of an encoded image, which are never empty.

    Raises:
        DataError: the file is missing or cannot be read, or there are no bytes.
    """
    where = _shown(source)
    if isinstance(source, Path):
        try:
            content = read_bytes(source, _MOST_BYTES)
        except FileNotFoundError as error:
            raise DataError(f"{where} does not exist; an image was expected there.") from error
        except OSError as error:
            raise DataError(f"{where} cannot be read: {error.strerror}.") from error
        except ValueError as error:  # a NUL character
            raise DataError(f"{where!r} is not the path of an image: {error}.") from error
    else:
        content = source
    if not content:
        raise _empty(where)
    return content


def to_png(source: ImageSource) -> bytes:
    """Return the image, opened by :func:`open_image`, as PNG bytes."""
    buffer = io.BytesIO()
    open_image(source).save(buffer, format="PNG")
    return buffer.getvalue()


def media_type(content: bytes) -> str | None:
    """Return the media type of an encoded PNG, JPEG, GIF or WebP, and None for anything else."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return None


def to_data_uri(content: bytes, kind: str = "image/png") -> str:
    """Return the bytes as a base64 ``data:`` URI of that media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def from_data_uri(uri: str) -> bytes:
    """Return the bytes that a ``data:`` URI carries.

    Raises:
        DataError: it is not a data URI, or its base64 is broken.
    """
    head, comma, body = uri.partition(",")
    if not comma or not head.lower().startswith("data:"):
        raise DataError(f"{uri[:40]!r} is not a data URI, which reads data:image/png;base64,...")
    content = unquote_to_bytes(body)
    if not head.lower().endswith(";base64"):
        return content
    return from_base64(content)


def from_base64(text: str | bytes) -> bytes:
    """Return the bytes of base64 text, which may have line breaks; DataError if it is broken."""
    try:
        content = text.encode("ascii") if isinstance(text, str) else text
        return base64.b64decode(b"".join(content.split()), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise DataError(f"The image's base64 text is broken: {error}.") from error


@cache  # looking for what is not installed takes longer than reading an image
def can_read_heic() -> bool:
    """Whether the extra ``heic`` is installed."""
    return importlib.util.find_spec("pi_heif") is not None


@cache
def _add_heic() -> None:
    import pi_heif

    pi_heif.register_heif_opener()


def _is_heic(file: io.BufferedReader | io.BytesIO) -> bool:
    file.seek(0)
    beginning = file.read(12)
    file.seek(0)
    return _HEIC.match(beginning) is not None


def _opened(file: io.BufferedReader | io.BytesIO, where: str) -> PIL.Image.Image:
    """Return the image of a file, of which no more than the header is read, mostly."""
    try:
        if _is_large_icon(file):
            raise _too_large(where)
        if _is_heic(file):
            if not can_read_heic():
                raise _unknown(where, file)
            _add_heic()
        image = PIL.Image.open(file)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise _unknown(where, file) from error
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise _too_large(where) from error
    except MemoryError:
        raise
    except Exception as error:  # see _to_rgb; WebP is unpacked at once
        raise damaged(where, error) from error
    if image.format not in _KINDS:
        image.close()
        raise _unknown(where, file)
    return image


def _check_size(image: PIL.Image.Image, where: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(where)
    if not image.width * image.height:
        raise DataError(f"{where} is {image.width} x {image.height} pixels, which is no image.")


def _to_rgb(image: PIL.Image.Image, where: str, blend: Blend) -> PIL.Image.Image:
    _check_size(image, where)
    try:
        image.load()
        return _on_white(_upright(image), where, blend)
    except (MemoryError, DataError):
        raise
    except Exception as error:  # Pillow's decoders raise many classes when bytes are damaged
        if _is_closed(image, error):
            raise DataError(f"{where} is closed; open it again, or give its path.") from error
        raise damaged(where, error) from error


def _is_large_icon(file: io.BufferedReader | io.BytesIO) -> bool:
    """Whether an icon has too many pixels, whatever its directory says; Pillow decodes at once."""
    is_icon = file.read(4) == b"\0\0\1\0"
    file.seek(0)
    if not is_icon:
        return False
    icon = IcoFile(file)
    width, height = icon.frame(icon.getentryindex(icon.entry[0].dim)).size
    file.seek(0)
    return bool(width * height > MAX_PIXELS)


def _is_closed(image: PIL.Image.Image, error: Exception) -> bool:
    """Whether that is why Pillow failed; its versions raise different classes then."""
    failed = isinstance(error, AssertionError | AttributeError) or "closed" in str(error)
    return failed and getattr(image, "fp", None) is None


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return the image turned as its EXIF data say; unreadable ones do not spoil an image."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as many classes as there are ways to damage them
        return image
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _on_white(image: PIL.Image.Image, where: str, blend: Blend) -> PIL.Image.Image:
    if image.mode in _SIXTEEN_BIT_MODES:
        # Pillow clips instead of scaling when it converts these to 8 bits.
        grey = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
        clear = image.info.get("transparency")
        if clear is not None:
            grey.paste(255, mask=PIL.Image.fromarray(np.asarray(image) == clear))
        return grey.convert("RGB")
    if image.mode in _MODES_WITHOUT_RGB:
        raise DataError(
            f"{where} has pixels of mode {image.mode}, whose RGB colours are not defined; "
            "save it as RGB with 8 bits per channel."
        )
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    if blend == "chameleon":
        return _blended_as_chameleon(layer)
    white = PIL.Image.new("RGBA", layer.size, "white")
    return PIL.Image.alpha_composite(white, layer).convert("RGB")


def _blended_as_chameleon(layer: PIL.Image.Image) -> PIL.Image.Image:
    """Lay an RGBA image on white, in Chameleon's order of operations: rounding depends on it."""
    rgba = np.asarray(layer).reshape(-1, 4)
    rgb = np.empty((len(rgba), 3), dtype=np.uint8)
    for start in range(0, len(rgba), _BLENDED_AT_ONCE):
        block = rgba[start : start + _BLENDED_AT_ONCE]
        opacity = block[:, 3:] / 255
        blended = (1 - opacity) * 255 + opacity * block[:, :3]
        rgb[start : start + _BLENDED_AT_ONCE] = blended.astype(np.uint8)  # cuts fractions off
    return PIL.Image.fromarray(rgb.reshape(layer.height, layer.width, 3))


def _shown(source: Path | bytes) -> str:
    return str(source) if isinstance(source, Path) else "the image in memory"


def _empty(where: str) -> DataError:
    return DataError(f"{where} holds zero bytes; an image was expected.")


def _unknown(where: str, file: io.BufferedReader | io.BytesIO) -> DataError:
    beginning = raw = b""
    if not file.closed:
        if _is_heic(file) and not can_read_heic():
            return DataError(
                f"{where} is an HEIC image, which is read with the extra heic "
                "(pip install pardalis[heic]); or save it as PNG or JPEG."
            )
        file.seek(0)
        raw = file.read(256)
        beginning = raw.strip().lower().lstrip(b"./")
    if pointer := pointer_of(beginning, "image"):
        return DataError(f"{where} is {pointer}.")
    for start, what in _OTHERS.items():
        if beginning.startswith(start):
            return DataError(f"{where} is {what}.")
    is_tiff = raw.startswith((b"II*\0", b"MM\0*"))
    if found := "image/tiff" if is_tiff else media_type(raw):
        return DataError(
            f"{where} is of the kind {found}, and is truncated, damaged or of a rare form that is "
            "not read; save it again as PNG or JPEG."
        )
    what = kind_of(raw)
    text = " ".join(raw.decode().split()) if raw.isascii() else ""
    if not what and raw and not any(raw):
        what = "zeros alone, as a download that was cut off may be"
    elif not what and len(text) > 3 and text.isprintable():
        what = f"a text that begins {text[:60]!r}"
    found = f" (it is {what})" if what else ""
    return DataError(
        f"{where} is not an image of a kind that can be read; save it as PNG or JPEG{found}."
    )


def _too_large(where: str) -> DataError:
    return DataError(
        f"{where} has more than {MAX_PIXELS // 1_000_000} million pixels, the most that is "
        "decoded; scale it down."
    )
