"""Prepares a source twice on a small Ray cluster: a script, which prints what was warned of.

    python ray_preparation.py FOLDER

FOLDER has a bundle and ``notes.jsonl``; it gets the shards ``plain`` and ``deadly``. The latter are
written by a deadly transform, for which the folder has ``marks``.
"""

import json
import logging
import sys
from pathlib import Path

import ray
from deadly_transform import Deadly

from pardalis.bundle import load_codec
from pardalis.data import PrepareConfig, SourceConfig, Workers, prepare_source

CONFIG = PrepareConfig(row_tokens=48, batch_documents=2, block_documents=3)


class Told(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def prepare(folder: Path, shards: Path, workers: Workers, *marks: str) -> None:
    transforms = tuple(Deadly(marks=each, document="notes:5") for each in marks)
    source = SourceConfig(
        name="notes", reader="jsonl", path=folder / "notes.jsonl", transforms=transforms
    )
    prepare_source(source, load_codec(folder / "bundle"), shards, CONFIG, workers=workers)


if __name__ == "__main__":
    told = Told()
    logging.getLogger("pardalis").addHandler(told)
    ray.init(num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
    where, on_ray = Path(sys.argv[1]), Workers(engine="ray")
    prepare(where, where / "plain", on_ray)
    prepare(where, where / "deadly", on_ray, str(where / "marks"))
    ray.shutdown()
    sys.stdout.write(json.dumps(told.messages))
