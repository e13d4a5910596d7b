"""Writing documents: as JSONL that the JSONL reader reads back, as HTML or as Markdown.

HTML is for looking at one document in a browser, Markdown for carrying it elsewhere.
"""

import hashlib
import html
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pardalis.documents.document import Document, Image, ImageSource, Region, Text
from pardalis.documents.images import to_data_uri, to_png
from pardalis.files import atomic_file, write_bytes

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ max-width: 42rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 sans-serif; }}
img {{ display: block; max-width: 100%; margin: 1rem 0; }}
.role {{ margin: 1.5rem 0 0; font-weight: bold; }}
footer {{ margin-top: 2rem; font-size: 0.8rem; color: #666; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def write_jsonl(documents: Iterable[Document], path: Path, images_folder: Path) -> int:
    """Write documents one by one, their images as RGB PNG files; return the number of documents.

    An image file is named by its content, so an image used twice is stored once. The JSONL file
    appears under its name only when it is whole.

    Raises:
        DataError: an image cannot be decoded.
    """
    relative = Path(os.path.relpath(images_folder, path.parent))

    def store(image: Image) -> str:
        return (relative / _store_png(image.source, images_folder)).as_posix()

    return write_records((to_record(document, store) for document in documents), path)


def to_record(document: Document, image_path: Callable[[Image], str]) -> dict[str, Any]:
    """Return the document as one JSONL object; ``image_path`` gives the path of each image."""
    segments: list[dict[str, Any]] = []
    for segment in document.segments:
        record: dict[str, Any]
        if isinstance(segment, Text):
            record = {"text": segment.text}
        else:
            record = {"image": image_path(segment)}
            if segment.alt:
                record["alt"] = segment.alt
            if segment.regions:
                record["regions"] = [_region_record(region) for region in segment.regions]
        if segment.role:
            record["role"] = segment.role
        if segment.weight != 1:
            record["weight"] = segment.weight
        segments.append(record)
    head = {"name": document.name, "licence": document.licence}
    return {key: value for key, value in head.items() if value} | {"segments": segments}


def _region_record(region: Region) -> dict[str, Any]:
    record = {"box": list(region.box), "kind": region.kind, "weight": region.weight}
    return {key: value for key, value in record.items() if value}


def write_records(records: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Write objects one a line, atomically; return their number."""
    n_records = 0
    with atomic_file(path) as file:
        for record in records:
            file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
            n_records += 1
    return n_records


def to_html(document: Document) -> str:
    """Return a self-contained page: images inlined as PNG, each line of text a paragraph.

    Raises:
        DataError: an image cannot be decoded.
    """
    parts: list[str] = []
    role = None
    for segment in document.segments:
        if segment.role and segment.role != role:
            parts.append(f'<p class="role">{segment.role}</p>')
        role = segment.role
        if isinstance(segment, Text):
            lines = (line.strip() for line in segment.text.splitlines())
            parts += [f"<p>{html.escape(line)}</p>" for line in lines if line]
        else:
            uri = to_data_uri(to_png(segment.source))
            parts.append(f'<img src="{uri}" alt="{html.escape(segment.alt)}">')
    if document.licence:
        parts.append(f"<footer>{html.escape(document.licence)}</footer>")
    return _PAGE.format(title=html.escape(document.name or "Document"), body="\n".join(parts))


def to_markdown(document: Document, folder: Path) -> str:
    """Return the document as Markdown, and write its images into the folder as PNG.

    Text stands as it is, unescaped, because Markdown is mostly read as plain text.

    Raises:
        DataError: an image cannot be decoded.
    """
    parts: list[str] = []
    for segment in document.segments:
        if isinstance(segment, Text):
            parts.append(segment.text)
        else:
            alt = re.sub(r"([\\\[\]])", r"\\\1", segment.alt)
            parts.append(f"\n\n![{alt}]({_store_png(segment.source, folder)})\n\n")
    return re.sub(r"\n{3,}", "\n\n", "".join(parts)).strip() + "\n"


def _store_png(source: ImageSource, folder: Path) -> str:
    content = to_png(source)
    name = hashlib.sha256(content).hexdigest()[:16] + ".png"
    if not (folder / name).exists():
        write_bytes(folder / name, content)
    return name
