"""Rates and memory of reading large sources, beside the libraries that their layouts come from.

OBELICS-layout Parquet is read by our reader, by pyarrow and by Hugging Face's datasets; WebDataset
archives by our reader and by webdataset. Each reads the same files in its own process, images as
bytes that are not decoded. Ours also checks and joins the parts of each document. Memory is the
growth of the process from before the first document to its peak, for few and for many documents.
Prints JSON and, with ``--out``, writes it.

    python bench/readers.py --out bench/readers.json
"""

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

from pardalis.documents import READERS, Document

SIZES = (1_000, 20_000)  # documents
IMAGE = 20_000  # bytes
_ROW_GROUP = 100  # rows
_PER_ARCHIVE = 1_000


def write_obelics(folder: Path, n: int) -> None:
    import pyarrow
    from pyarrow import parquet

    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema(
        [("images", pyarrow.list_(image)), ("texts", pyarrow.list_(pyarrow.string()))]
    )
    folder.mkdir()
    with parquet.ParquetWriter(folder / "train-00000-of-00001.parquet", schema) as writer:
        for start in range(0, n, _ROW_GROUP):
            rows = [
                {"images": [None, {"bytes": os.urandom(IMAGE), "path": None}, None],
                 "texts": [f"Owl {number} sits here. " * 20, None, "It is white. " * 20]}
                for number in range(start, min(n, start + _ROW_GROUP))
            ]  # fmt: skip
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def write_webdataset(folder: Path, n: int) -> None:
    folder.mkdir()
    for start in range(0, n, _PER_ARCHIVE):
        with tarfile.open(folder / f"{start // _PER_ARCHIVE:05d}.tar", "w") as archive:
            for number in range(start, min(n, start + _PER_ARCHIVE)):
                for name, content in (("jpg", os.urandom(IMAGE)), ("txt", b"An owl. " * 10)):
                    info = tarfile.TarInfo(f"{number:09d}.{name}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))


def ours(reader: str) -> Callable[[Path], Iterator[int]]:
    def read(folder: Path) -> Iterator[int]:
        for item in READERS[reader](folder):
            assert isinstance(item, Document)
            yield sum(len(image.source) for image in item.images)  # type: ignore[arg-type]

    return read


def by_pyarrow(folder: Path) -> Iterator[int]:
    from pyarrow import parquet

    for path in sorted(folder.iterdir()):
        for batch in parquet.ParquetFile(path).iter_batches(64, use_threads=False):
            for row in batch.to_pylist():
                yield sum(len(image["bytes"]) for image in row["images"] if image)


def by_datasets(folder: Path) -> Iterator[int]:
    import datasets

    files = sorted(map(str, folder.iterdir()))
    for row in datasets.load_dataset("parquet", data_files=files, split="train", streaming=True):
        yield sum(len(image["bytes"]) for image in row["images"] if image)


def by_webdataset(folder: Path) -> Iterator[int]:
    import webdataset

    files = sorted(map(str, folder.iterdir()))
    for sample in webdataset.WebDataset(files, shardshuffle=False, empty_check=False):
        assert sample["txt"].decode()
        yield len(sample["jpg"])


CASES = {
    "obelics": {"ours": ours("obelics"), "pyarrow": by_pyarrow, "datasets": by_datasets},
    "webdataset": {"ours": ours("webdataset"), "webdataset": by_webdataset},
}
WRITERS = {"obelics": write_obelics, "webdataset": write_webdataset}


def measure(layout: str, who: str, folder: Path) -> None:
    """Read a folder once, and print what it took; one process does nothing else."""
    documents = CASES[layout][who](folder)
    n_bytes = next(documents)  # imports what it needs
    before, start = _memory("VmRSS"), time.perf_counter()
    n = 1
    for size in documents:
        n_bytes += size
        n += 1
    seconds = time.perf_counter() - start
    peak = _memory("VmHWM")
    assert n_bytes == n * IMAGE, (n, n_bytes)
    found = {"documents_s": round(n / seconds), "grown_mb": round((peak - before) / 1e6, 1)}
    sys.stdout.write(json.dumps(found | {"peak_mb": round(peak / 1e6, 1)}) + "\n")


def _memory(of: str) -> int:
    """Return the bytes of a line of the process's status; ru_maxrss would include the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = (line for line in lines if line.startswith(f"{of}:"))
    return int(line.split()[1]) * 1024


def run(sizes: tuple[int, ...], repeats: int) -> list[dict[str, object]]:
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as place:
        for layout, cases in CASES.items():
            for n in sizes:
                folder = Path(place, f"{layout}-{n}")
                WRITERS[layout](folder, n)
                found: dict[str, list[dict[str, float]]] = {who: [] for who in cases}
                for _ in range(repeats):  # one after the other, so that noise meets all
                    for who in cases:
                        command = [sys.executable, __file__, "--one", layout, who, str(folder)]
                        done = subprocess.run(command, capture_output=True, text=True)
                        if done.returncode == 0:
                            found[who].append(json.loads(done.stdout.splitlines()[-1]))
                        elif "ModuleNotFoundError" not in done.stderr:
                            raise RuntimeError(done.stderr)
                for who, each in found.items():
                    if each:
                        best = max(each, key=lambda one: one["documents_s"])
                        results.append({"layout": layout, "documents": n, "reader": who, **best})
                        sys.stderr.write(json.dumps(results[-1]) + "\n")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--one", nargs=3, metavar=("LAYOUT", "READER", "FOLDER"))
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.one:
        layout, who, folder = options.one
        measure(layout, who, Path(folder))
        return
    results = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "image_bytes": IMAGE,
        "results": run(tuple(options.sizes), options.repeats),
    }
    text = json.dumps(results, indent=2) + "\n"
    sys.stdout.write(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
