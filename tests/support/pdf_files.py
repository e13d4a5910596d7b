"""Small PDF files, written by hand: lines of text, and images in a column."""

import io
import zlib
from collections.abc import Sequence

import PIL.Image

Part = str | PIL.Image.Image | tuple[str | PIL.Image.Image, float]

WIDTH, HEIGHT, LINE = 400, 600, 20


def pdf_file(pages: Sequence[Sequence[Part]]) -> bytes:
    """Return a PDF whose pages have lines and images from the top down; a pair has its left."""
    objects: list[bytes] = [b"<< /Type /Catalog /Pages 2 0 R >>", b""]
    font = _add(objects, b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    kids = []
    for parts in pages:
        content, names, top = "", "", HEIGHT - 40.0
        for part in parts:
            what, left = part if isinstance(part, tuple) else (part, 40.0)
            if isinstance(what, str):
                escaped = what.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
                content += f"BT /F1 12 Tf {left} {top} Td ({escaped}) Tj ET\n"
                top -= LINE
            else:
                top -= what.height
                number = _add(objects, _image(what))
                names += f"/I{number} {number} 0 R "
                size = f"{what.width} 0 0 {what.height} {left} {top}"
                content += f"q {size} cm /I{number} Do Q\n"
                top -= LINE
        stream = _add(objects, _stream(b"<<", content.encode("latin-1")))
        kids.append(_add(
            objects,
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {WIDTH} {HEIGHT}] /Contents {stream} 0 R "
            f"/Resources << /Font << /F1 {font} 0 R >> /XObject << {names}>> >> >>".encode(),
        ))  # fmt: skip
    listed = " ".join(f"{kid} 0 R" for kid in kids)
    objects[1] = f"<< /Type /Pages /Kids [{listed}] /Count {len(kids)} >>".encode()
    return written(objects)


def written(objects: Sequence[bytes]) -> bytes:
    """Return the file of numbered objects."""
    file = io.BytesIO(b"%PDF-1.7\n")
    file.seek(0, io.SEEK_END)
    places = []
    for number, content in enumerate(objects, start=1):
        places.append(file.tell())
        file.write(b"%d 0 obj\n%b\nendobj\n" % (number, content))
    start = file.tell()
    file.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    file.write(b"".join(b"%010d 00000 n \n" % place for place in places))
    size = len(objects) + 1
    file.write(b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, start))
    return file.getvalue()


def _add(objects: list[bytes], content: bytes) -> int:
    objects.append(content)
    return len(objects)


def _image(image: PIL.Image.Image) -> bytes:
    head = (
        f"<< /Type /XObject /Subtype /Image /Width {image.width} /Height {image.height} "
        "/ColorSpace /DeviceRGB /BitsPerComponent 8 "
    )
    return _stream(head.encode(), image.convert("RGB").tobytes())


def _stream(head: bytes, content: bytes) -> bytes:
    packed = zlib.compress(content)
    facts = b" /Length %d /Filter /FlateDecode >>\nstream\n" % len(packed)
    return head + facts + packed + b"\nendstream"
