"""A transform that kills the process that encodes a document, or is slow."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pardalis.data import TRANSFORMS
from pardalis.documents import Document
from pardalis.tokens import Encoded, Grammar


@TRANSFORMS.add
@dataclass(frozen=True, kw_only=True)
class Deadly:
    """Writes documents as they are, and before that does what a folder says.

    Attributes:
        marks: folder; the file ``left`` in it has the number of deaths that are left, and ``slow``
            lets every document take a second.
        document: the name of the document whose process dies.
    """

    kind: Literal["deadly"] = "deadly"
    marks: str
    document: str = ""

    def write(
        self, document: Encoded, raw: Document, grammar: Grammar
    ) -> list[tuple[str, Encoded]]:
        folder = Path(self.marks)
        names = os.listdir(folder)
        if "slow" in names:
            (folder / f"seen-{os.getpid()}").touch()
            time.sleep(1)
        if raw.name == self.document and "left" in names:
            left = int((folder / "left").read_text())
            if left:
                (folder / "left").write_text(str(left - 1))
                os.kill(os.getpid(), signal.SIGKILL)
        return [("", document)]
