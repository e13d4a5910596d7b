"""Mixed-modal documents: what one is, reading and writing them, conversations. No torch here."""

from pardalis.documents.chat import document_to_messages, messages_to_document
from pardalis.documents.document import (
    ROLES,
    Box,
    Document,
    Picture,
    PictureSource,
    Region,
    Rejection,
    Role,
    Segment,
    Text,
    named_pictures,
)
from pardalis.documents.drawings import DrawingsConfig, build_drawings, fetch_packages
from pardalis.documents.encyclopedia import EncyclopediaConfig, build_encyclopedia
from pardalis.documents.pictures import (
    MAX_PIXELS,
    from_data_uri,
    media_type,
    open_picture,
    to_data_uri,
    to_png,
)
from pardalis.documents.readers import READERS, Reader, read_folder, read_html, read_jsonl
from pardalis.documents.writers import to_html, to_markdown, write_jsonl

__all__ = [
    "MAX_PIXELS",
    "READERS",
    "ROLES",
    "Box",
    "Document",
    "DrawingsConfig",
    "EncyclopediaConfig",
    "Picture",
    "PictureSource",
    "Reader",
    "Region",
    "Rejection",
    "Role",
    "Segment",
    "Text",
    "build_drawings",
    "build_encyclopedia",
    "document_to_messages",
    "fetch_packages",
    "from_data_uri",
    "media_type",
    "messages_to_document",
    "named_pictures",
    "open_picture",
    "read_folder",
    "read_html",
    "read_jsonl",
    "to_data_uri",
    "to_html",
    "to_markdown",
    "to_png",
    "write_jsonl",
]
