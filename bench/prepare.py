"""Preparing documents: the same shards by one process, two, two parts and Ray; rates and memory.

A corpus of captioned photographs (JPEG of ``--side`` pixels, smooth noise) with ``--words`` words
each is prepared in every way, each time by a process of its own, in alternating rounds. Workers
compute with one thread. The seconds are those of ``prepare_source`` without the survey, so they
contain the start of workers and the joining. All shards must be equal to the byte.

``--through`` reads through four sources of text and four of photographs (512 pixels), by one
process and by two workers, with the start of these. ``--memory`` prepares 1,000 and 20,000
documents by one process and compares the peaks above the imports. ``--stages`` measures what a
preparation is made of, on one thread. Prints JSON and, with ``--out``, writes it.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from pardalis.codec import Codec
from pardalis.data import (
    WHOLE,
    Preparation,
    PrepareConfig,
    Reading,
    Share,
    SourceConfig,
    Workers,
    best_fit,
    prepare_source,
    read_through,
    survey,
)
from pardalis.digests import Digests
from pardalis.tokens import TextTokenizer, train_text_tokenizer
from pardalis.vq import ImageTokenizer, ImageTokenizerConfig
from pardalis.vq.config import PRESETS
from pardalis.vq.preprocessing import open_square

WAYS = ("one", "jobs", "parts", "ray")
CONFIG = PrepareConfig(row_tokens=4096, block_documents=32)
# A net that takes no time, so that 20,000 documents are prepared in a minute.
LEAST = ImageTokenizerConfig(
    resolution=16, patch_size=4, channels=8, channel_multipliers=(1, 2), n_res_blocks=1,
    norm_groups=4, z_channels=8, code_width=8, n_codes=32,
)  # fmt: skip
KIB = 2**10


def write_corpus(
    folder: Path, n: int, side: int, words: int, *, has_images: bool = True, n_files: int = 64
) -> None:
    """Write documents of different text; their images are some files, in turn."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(min(n, n_files)):
        coarse = random.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        image = PIL.Image.fromarray(coarse).resize((side, side), PIL.Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.jpg", quality=90)
    vocabulary = ["".join(random.choice(list("etaoinshrdlu"), 5)) for _ in range(5_000)]
    with (folder / "documents.jsonl").open("w") as file:
        for number in range(n):
            text = " ".join(random.choice(vocabulary, words))
            segments = [{"text": text}]
            if has_images:
                segments.append({"image": f"{number % n_files}.jpg"})
            file.write(json.dumps({"name": f"d{number}", "segments": segments}) + "\n")
    lines = (folder / "documents.jsonl").read_text().splitlines()[:300]
    texts = [json.loads(line)["segments"][0]["text"] for line in lines]
    train_text_tokenizer(texts, 4_000).save(folder / "tokenizer.json")


def codec_of(folder: Path, preset: str) -> Codec:
    torch.manual_seed(0)
    images = ImageTokenizer(LEAST if preset == "least" else PRESETS[preset]()).eval()
    return Codec.of(TextTokenizer.load(folder / "tokenizer.json"), images)


def source_of(folder: Path) -> SourceConfig:
    return SourceConfig(name="photos", reader="jsonl", path=folder / "documents.jsonl")


def rss_mib() -> float:
    """Return the peak of this process; children count by themselves."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB


def child(way: str, folder: Path, shards: Path, preset: str) -> None:
    """Prepare in one way, in a process of its own; print seconds and memory."""
    torch.set_num_threads(1)
    if way.startswith("through"):
        print_json(through_in(folder, int(way[-1])))
        return
    source, codec = source_of(folder), codec_of(folder, preset)
    content, before = survey(source), rss_mib()
    start = time.perf_counter()
    if way.startswith("part"):
        share = Share(int(way[-1]), 2)
        each = Preparation(source, codec, shards, CONFIG, content)
        each.make_share(share, share.among(each.n_blocks), Workers(jobs=1))
    else:
        workers = {
            "one": Workers(jobs=1),
            "jobs": Workers(jobs=2),
            "join": Workers(joins_only=True),
            "ray": Workers(jobs=2, engine="ray"),
        }[way]
        prepare_source(source, codec, shards, CONFIG, content, workers=workers)
    print_json({"seconds": time.perf_counter() - start, "mib": rss_mib(), "before": before})


def start(way: str, folder: Path, shards: Path, preset: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--child", way, str(folder), str(shards), preset]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    text = process.communicate()[0]
    assert process.returncode == 0
    return json.loads(text[text.index("{\n") :])


def seconds(way: str, folder: Path, shards: Path, preset: str) -> float:
    """Prepare in one way, and return the seconds."""
    if way != "parts":
        return finish(start(way, folder, shards, preset))["seconds"]
    both = [start(f"part{number}", folder, shards, preset) for number in (1, 2)]
    slowest = max(finish(each)["seconds"] for each in both)
    return slowest + finish(start("join", folder, shards, preset))["seconds"]


def digest(shards: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(shards.iterdir()):
        found.update(path.name.encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def ways(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Prepare in all ways; compare the shards."""
    folder, n = root / "corpus", options.documents
    write_corpus(folder, n, options.side, options.words)
    took: dict[str, list[float]] = {way: [] for way in options.ways}
    digests = set()
    for _ in range(options.rounds):
        for way in options.ways:
            shards = root / way
            took[way].append(seconds(way, folder, shards, options.preset))
            digests.add(digest(shards))
            shutil.rmtree(shards)
    result: dict[str, Any] = {"equal": len(digests) == 1, "documents": n}
    for way, each in took.items():
        middle = statistics.median(each)
        result[way] = {
            "seconds": [round(second, 1) for second in sorted(each)],
            "documents_per_second": round(n / middle, 1),
            "images_per_second": round(n / middle, 1),
        }
        if "one" in took:
            result[way]["times_one"] = round(statistics.median(took["one"]) / middle, 2)
    return result


def write_sources(root: Path) -> None:
    """Write four sources of 43 million tokens of text each, and four of 20,000 photographs each."""
    write_corpus(root / "text", 2_000, 64, 800, has_images=False)
    lines = (root / "text" / "documents.jsonl").read_text()
    write_corpus(root / "photos", 64, 512, 1)
    photos = sorted((root / "photos").glob("*.jpg"))
    for number in range(4):
        (root / f"text-{number}.jsonl").write_text(lines * 16)
        (root / f"photos-{number}").mkdir()
        for n in range(20_000):
            os.link(photos[n % len(photos)], root / f"photos-{number}" / f"{n}.jpg")


def through_in(root: Path, jobs: int) -> dict[str, Any]:
    """Read through all sources with a number of workers."""
    found = [("jsonl", root / f"text-{number}.jsonl") for number in range(4)]
    found += [("folder", root / f"photos-{number}") for number in range(4)]
    sources = [SourceConfig(name=path.stem, reader=reader, path=path) for reader, path in found]
    readings = [Reading(number, source, (WHOLE,)) for number, source in enumerate(sources)]
    begun = time.perf_counter()
    surveys = {
        reading.source.name: each[0].digest
        for reading, each in read_through(readings, Digests(), Workers(jobs=jobs))
    }
    return {"seconds": time.perf_counter() - begun, "mib": rss_mib(), "digests": surveys}


def through(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Compare one process and two workers that read through sources, in alternating rounds."""
    write_sources(root)
    took: dict[int, list[float]] = {1: [], 2: []}
    digests = set()
    for _ in range(options.rounds):
        for jobs, each in took.items():
            found = finish(start(f"through{jobs}", root, root, options.preset))
            each.append(found["seconds"])
            digests.add(json.dumps(found["digests"], sort_keys=True))
    one, two = (statistics.median(each) for each in took.values())
    return {
        "equal": len(digests) == 1,
        "seconds_of_one": [round(each, 1) for each in sorted(took[1])],
        "seconds_of_two": [round(each, 1) for each in sorted(took[2])],
        "times_one": round(one / two, 2),
    }


def memory(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Compare the peaks of 1,000 and 20,000 documents."""
    result = {}
    for n in (1_000, 20_000):
        folder = root / f"corpus-{n}"
        write_corpus(folder, n, 64, options.words)
        found = finish(start("one", folder, root / f"shards-{n}", "least"))
        result[f"{n} documents"] = {
            "peak_mib": round(found["mib"]),
            "above_imports_mib": round(found["mib"] - found["before"]),
            "seconds": round(found["seconds"], 1),
        }
    return result


def rate(work: Callable[[], Any], amount: float, least_s: float = 2.0) -> float:
    """Return the amount of work in a second of the processor, over some repetitions."""
    work()
    n, begun = 0, time.process_time()
    while (took := time.process_time() - begun) < least_s:
        work()
        n += 1
    return n * amount / took


def stages(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure what a preparation is made of, on one thread."""
    torch.set_num_threads(1)
    folder = root / "stages"
    write_corpus(folder, 200, options.side, options.words)
    source, codec = source_of(folder), codec_of(folder, options.preset)
    images, config = codec.image_tokenizer, codec.image_tokenizer.config
    paths = sorted(folder.glob("*.jpg"))
    text = " ".join(
        json.loads(line)["segments"][0]["text"]
        for line in (folder / "documents.jsonl").read_text().splitlines()
    )
    n_tokens = len(codec.text_tokenizer.encode(text))
    n_bytes = sum(path.stat().st_size for path in paths)
    squares = [open_square(path, config.resolution) for path in paths[: images.images_per_pass]]
    photo = io.BytesIO(paths[0].read_bytes())
    lengths = np.random.default_rng(0).integers(1, 4096, 1_000_000)
    return {
        "resolution": config.resolution,
        "bytes_of_an_image": round(n_bytes / len(paths)),
        "survey_documents_per_second": round(rate(lambda: survey(source), 200)),
        "hashed_mb_per_second": round(
            rate(lambda: [hashlib.sha256(path.read_bytes()) for path in paths], n_bytes / 1e6)
        ),
        "decoded_images_per_second": round(rate(lambda: PIL.Image.open(photo).convert("RGB"), 1)),
        "opened_images_per_second": round(
            rate(lambda: [open_square(path, config.resolution) for path in paths], len(paths)), 1
        ),
        "encoded_images_per_second": round(
            rate(lambda: images.codes_of_squares(squares), len(squares)), 2
        ),
        "text_tokens_per_second": round(rate(lambda: codec.text_tokenizer.encode(text), n_tokens)),
        "packed_documents_per_second": round(rate(lambda: best_fit(lengths, 4096), len(lengths))),
    }


def text_stage(root: Path) -> dict[str, int]:
    """Measure the preparation of documents of text alone: read, encode, check, join."""
    torch.set_num_threads(1)
    folder = root / "text"
    write_corpus(folder, 400, 64, 800, has_images=False)
    source, codec = source_of(folder), codec_of(folder, "least")
    content, begun = survey(source), time.process_time()
    report = prepare_source(source, codec, root / "text-shards", CONFIG, content)
    took = time.process_time() - begun
    each = Preparation(source, codec, root / "text-parts", CONFIG, content)
    each.make_share(Share(), range(each.n_blocks), Workers(jobs=1))
    begun = time.process_time()
    each.run(Workers(joins_only=True))
    joined = time.process_time() - begun
    n_tokens = sum(report.tokens.values())
    return {
        "survey_text_tokens_per_second": round(rate(lambda: survey(source), n_tokens)),
        "prepared_text_tokens_per_second": round(n_tokens / took),
        "joined_tokens_per_second": round(n_tokens / joined),
        "tokens_of_a_document": round(n_tokens / report.written),
    }


def machine() -> dict[str, Any]:
    return {
        "machine": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--documents", type=int, default=1_536)
    parser.add_argument("--side", type=int, default=256, help="pixels of a photograph")
    parser.add_argument("--words", type=int, default=100, help="of a document")
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="of the image tokenizer")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=WAYS[:3])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--through", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--stages", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.child:
        way, folder, shards, preset = options.child
        child(way, Path(folder), Path(shards), preset)
        return
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        result = machine()
        if options.ways and not (options.through or options.memory or options.stages):
            result["ways"] = ways(root, options)
        if options.through:
            result["through"] = through(root, options)
        if options.memory:
            result["memory"] = memory(root, options)
        if options.stages:
            result["stages"] = stages(root, options) | text_stage(root)
    print_json(result)
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
