"""Documents from text files: each file is one, whatever the encoding of its author."""

from collections.abc import Iterator
from pathlib import Path

from pardalis.documents.document import Document, Rejection, Text
from pardalis.documents.readers._packed import PACKED
from pardalis.documents.readers._text import damaged_text, read_decoded
from pardalis.documents.readers._walk import files_below, of_files
from pardalis.documents.readers.recognise import expect
from pardalis.files import with_line_feeds

SUFFIXES = (".txt", ".text", *(".txt" + end for end in PACKED))


def read_texts(path: Path) -> Iterator[Document | Rejection]:
    """Yield a document for the file, or for each text file below a folder, named by its path.

    Raises:
        DataError: there is nothing at the path.
    """
    expect(path, "a text file, or a folder of such files,")
    return of_files(path, files_below(path, SUFFIXES), _read)


def _read(file: Path, root: Path) -> Iterator[Document | Rejection]:
    try:
        text, n_damaged = read_decoded(file)
    except (OSError, ValueError) as error:
        yield Rejection(str(file), "unreadable-file", f"The file cannot be read: {error}.")
        return
    if n_damaged:
        yield damaged_text(file, n_damaged)
    if text := with_line_feeds(text).strip():
        yield Document((Text(text),), file.relative_to(root).as_posix())
    else:
        yield Rejection(str(file), "empty-document", "The file has no text.")
