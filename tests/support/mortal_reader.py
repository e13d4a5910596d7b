"""A reader that a user has added: it kills the process that reads, if a file says so, or fails."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

from pardalis.documents import Document, Rejection, Text


def read_mortal(path: Path) -> Iterator[Document | Rejection]:
    """Yield a document for each line; ``PATH.left`` has the number of deaths that are left."""
    for number, line in enumerate(path.read_text().splitlines()):
        left = path.with_suffix(".left")
        if left.exists() and (n := int(left.read_text())):
            left.write_text(str(n - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        if line == "fail":
            raise RuntimeError("the reader fails")
        yield Document((Text(line),), str(number))


def short_only(document: Document) -> bool:
    """Be a classifier."""
    return len(document.text) < 8
