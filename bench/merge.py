"""Time and memory of merging two models of Chameleon-7B's shape, and of decoding with two trunks.

Merging: two bundles of random bfloat16 weights are merged by each kind, each time in its own
process. The limit is a plain copy: every byte of the parents is read, and as many are written as
the merged bundle has, flushed to the disk like a merge. Both alternate after a first copy, since
a virtual machine is slow at what fills memory for the first time; numbers are medians. With all 32
layers a parent has 14 GB and the result of ``width`` 54 GB; ``--layers`` makes fewer.

Decoding: a model of two trunks against its two parents, one after the other, on the same requests
by the same engine. Prints JSON and, with ``--out``, writes it.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from itertools import count
from pathlib import Path

import torch
from tokenizers import Tokenizer, models

from convert import GIB, largest, random_bf16
from decoder import alternate
from decoding import SIZES, Case, Ours, loop_for
from pardalis.bundle import MODEL
from pardalis.fusion import CrossMergeConfig
from pardalis.inference import EngineConfig
from pardalis.interop import ForeignModel, write_bundle
from pardalis.interop.model import decoder_shapes, image_tokenizer_shapes
from pardalis.model import PRESETS, build, initialise
from pardalis.tokens import TextTokenizer, Vocabulary
from pardalis.vq import chameleon
from training import print_json

KINDS = {
    "uniform": [],
    "slerp": ["--kind", "slerp"],
    "width": ["--kind", "width"],
    "cross": ["--kind", "cross"],
}
VOCABULARY, CONTEXT = 65_536, 4096
_BLOCK = 1 << 24  # bytes that the plain copy reads and writes at a time


def make_parent(folder: Path, n_layers: int, seed: int) -> None:
    """Write a bundle of random weights, tensor by tensor."""
    shape = replace(PRESETS["chameleon_7b"](), n_layers=n_layers, dropout=0.0)
    config, images = shape.sized(VOCABULARY, CONTEXT), chameleon()
    vocabulary = Vocabulary.build(images.n_codes, VOCABULARY - 8 - images.n_codes)
    words = {f"w{i}": i for i in range(len(vocabulary.text))}
    sizes = {"decoder": decoder_shapes(config), "image_tensors": image_tokenizer_shapes(images)}
    tensors = {
        what: {name: random_bf16(s, seed + i) for i, (name, s) in enumerate(shapes.items())}
        for what, shapes in sizes.items()
    }
    model = ForeignModel(
        config=config,
        vocabulary=vocabulary,
        text_tokenizer=TextTokenizer(Tokenizer(models.BPE(vocab=words, merges=[]))),
        image_tokenizer=images,
        origin="benchmark",
        **tensors,
    )
    write_bundle(model, folder)
    shutil.copytree(folder / "image_tokenizer", folder.parent / "images", dirs_exist_ok=True)


def merged(*arguments: str) -> dict[str, float]:
    """Run ``pardalis merge`` in a process; return its seconds, also those of the processor."""
    code = (
        "import json, resource, sys; from pardalis.cli.main import main; code = main(sys.argv[1:]);"
        "used = resource.getrusage(resource.RUSAGE_SELF);"
        "print(json.dumps([used.ru_maxrss, used.ru_utime + used.ru_stime])); sys.exit(code)"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, "--quiet", "merge", *arguments],
        check=True,
        stdout=subprocess.PIPE,
    )
    os.sync()
    peak, processor = json.loads(done.stdout.splitlines()[-1])
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(processor, 1),
        "peak_gib": round(peak / 2**20, 2),
    }


def plain_copy(sources: list[Path], target: Path, n_bytes: int) -> dict[str, float]:
    """Read all sources and write so many bytes, flushed; return the seconds as :func:`merged`."""
    start, buffer, before = time.perf_counter(), bytearray(_BLOCK), time.process_time()
    with open(target, "wb") as out:
        for source in sources:
            with open(source, "rb", buffering=0) as file:
                while n := file.readinto(buffer):
                    out.write(memoryview(buffer)[: min(n, n_bytes - out.tell())])
        while (left := n_bytes - out.tell()) > 0:
            out.write(memoryview(buffer)[: min(_BLOCK, left)])
    processor = time.process_time() - before
    os.sync()
    seconds = time.perf_counter() - start
    target.unlink()
    return {"seconds": round(seconds, 1), "processor_seconds": round(processor, 1)}


def merges(
    folder: Path, n_layers: int, kinds: list[str], rounds: int
) -> dict[str, dict[str, object]]:
    parents = [folder / "text", folder / "image"]
    for seed, parent in enumerate(parents):
        make_parent(parent, n_layers, 1000 * seed)
    for name in ("config.json", "model.safetensors"):  # one image tokenizer
        shutil.copy(folder / "images" / name, parents[0] / "image_tokenizer" / name)
    files = [parent / MODEL for parent in parents]
    os.sync()
    found = {}
    for kind in kinds:
        out = folder / kind
        taken, copies = [], []
        for number in range(1 + rounds):
            merge = merged(*map(str, parents), "-o", str(out), *KINDS[kind])
            n_bytes, tensor = (out / MODEL).stat().st_size, largest(out) / GIB
            shutil.rmtree(out)
            copy = plain_copy(files, folder / "copy", n_bytes)
            if number:
                taken.append(merge)
                copies.append(copy)
        found[kind] = {
            "gigabytes_read": round(sum(file.stat().st_size for file in files) / 1e9, 2),
            "gigabytes_written": round(n_bytes / 1e9, 2),
            "largest_tensor_gib": round(tensor, 2),
            "merge": {key: statistics.median(each[key] for each in taken) for key in taken[0]},
            "seconds of rounds": [each["seconds"] for each in taken],
            "plain copy": {key: statistics.median(each[key] for each in copies) for key in copy},
            "times_a_copy": round(
                statistics.median(each["seconds"] for each in taken)
                / statistics.median(each["seconds"] for each in copies),
                2,
            ),
        }
        print_json({kind: found[kind]})
    return found


def decoding(size: str, rounds: int, length: int) -> dict[str, dict[str, object]]:
    """Time text and images of a model of two trunks, and of its parents one after the other."""
    parent = SIZES[size]
    both = CrossMergeConfig().config_of(parent)
    loops = [initialise(build(config), 0).eval() for config in (parent, parent, both)]
    found: dict[str, dict[str, object]] = {}
    for kind, batch in (("text", 1), ("image", 1), ("image", 4)):
        case = Case(kind, batch, length)
        one, two, cross = (Ours(loop_for(m, EngineConfig(speculation_window=1), case), case)
                           for m in loops)  # fmt: skip
        seconds = alternate(rounds, parents=_runs(one, two), cross=_runs(cross))
        medians = {name: statistics.median(taken) for name, taken in seconds.items()}
        found[f"{kind}, batch {batch}"] = {
            name: {
                "ms_per_token": round(1e3 * median / length, 2),
                "range": [round(1e3 * s / length, 2) for s in (min(taken), max(taken))],
            }
            for (name, median), taken in zip(medians.items(), seconds.values(), strict=True)
        } | {"times_the_parents": round(medians["cross"] / medians["parents"], 2)}
        print_json({f"{kind}, batch {batch}": found[f"{kind}, batch {batch}"]})
    counts = [sum(p.numel() for p in model.parameters()) for model in (loops[0], loops[2])]
    return found | {"parameters": {"parent": counts[0], "cross": counts[1]}}


def _runs(*sides: Ours) -> Callable[[], None]:
    numbers = count()

    def run() -> None:
        number = next(numbers)
        for side in sides:
            side.run(number)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32, help="of a parent (default: 32)")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=["uniform", "width", "cross"])
    parser.add_argument("--size", choices=SIZES, default="15M", help="of a parent in decoding")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=128, help="tokens of a completion")
    parser.add_argument("--folder", type=Path, help="where to create the working folder")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    result: dict[str, object] = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "layers": options.layers,
        "size": options.size,
    }
    if options.kinds:
        with tempfile.TemporaryDirectory(dir=options.folder) as work:
            result["merging"] = merges(Path(work), options.layers, options.kinds, options.rounds)
    if options.rounds:
        result["decoding"] = decoding(options.size, options.rounds, options.length)
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
