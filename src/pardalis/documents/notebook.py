"""How documents and images show themselves in a notebook: as short HTML, with all text escaped."""

import html
import io

from pardalis.documents.document import Document, Image
from pardalis.documents.images import open_image, to_data_uri
from pardalis.errors import PardalisError

_SIDE = 256  # pixels of a thumbnail's longer side
_MOST_TEXT = 4000  # characters of one document
_MOST_IMAGES = 12


def document_html(document: Document) -> str:
    """Return a document's roles, texts and thumbnails; the rest of a long one is left out."""
    shown: list[str] = []
    n_characters, n_images, role = 0, 0, None
    for number, segment in enumerate(document.segments):
        if n_characters >= _MOST_TEXT or n_images >= _MOST_IMAGES:
            shown.append(f"<i>and {len(document.segments) - number:,} more segments</i>")
            break
        if segment.role and segment.role != role:
            shown.append(f"<b>{escaped(segment.role)}</b>")
        role = segment.role
        if isinstance(segment, Image):
            n_images += 1
            shown.append(f"<div>{image_html(segment)}</div>")
            continue
        text = segment.text[: _MOST_TEXT - n_characters]
        n_characters += len(segment.text)
        more = "" if len(text) == len(segment.text) else "…"
        shown.append(f'<div style="white-space: pre-wrap">{escaped(text)}{more}</div>')
    return f"<div>{''.join(shown)}</div>"


def image_html(image: Image) -> str:
    """Return a thumbnail, or why there is none."""
    try:
        small = open_image(image.source)
    except PardalisError as error:
        return f"<i>{escaped(str(error))}</i>"
    small.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG")
    return f'<img src="{to_data_uri(buffer.getvalue())}" alt="{escaped(image.alt)}">'


def escaped(text: str) -> str:
    """Return text that can inject neither tags nor attributes, nor break the notebook's file."""
    return html.escape(text.encode("utf-8", "replace").decode())
