"""Mixed-modal documents: their classes, readers, writers and conversations. No torch here."""

from pardalis.documents.chat import document_to_messages, learning_only, messages_to_document
from pardalis.documents.document import (
    MAX_WEIGHT,
    ROLES,
    Box,
    Document,
    Image,
    ImageSource,
    Omission,
    Region,
    Rejection,
    Role,
    Segment,
    Text,
    named_images,
)
from pardalis.documents.images import (
    MAX_PIXELS,
    from_array,
    from_data_uri,
    media_type,
    open_image,
    to_data_uri,
    to_png,
    why_damaged,
)
from pardalis.documents.readers import (
    OPTIONS,
    READERS,
    PageOptions,
    Reader,
    hint_at,
    read_cauldron,
    read_chat,
    read_csv,
    read_epub,
    read_folder,
    read_html,
    read_jsonl,
    read_markdown,
    read_mhtml,
    read_mmc4,
    read_obelics,
    read_pairs,
    read_parquet,
    read_pdf,
    read_sharegpt,
    read_texts,
    read_webdataset,
    reader_of,
    reader_with,
)
from pardalis.documents.tasks import TASKS, Task, task_document, task_of
from pardalis.documents.writers import to_html, to_markdown, write_jsonl
