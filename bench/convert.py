"""Time and peak memory of converting a checkpoint of Chameleon's full shape.

Makes a Hugging Face folder of random weights on disk, then runs, each in its own process,

    import   Hugging Face → bundle
    export   bundle → the original release's layout (as many ranks as QK-norm has groups)
    import   that → bundle
    export   bundle → Hugging Face

and compares the first and the last folder tensor by tensor. The limit is the time of a plain copy
of the same bytes on the same disk, which is shown beside each. Needs three times the model's
size on the disk (42 GB for the 7B). Prints a table and, with ``--out``, writes it as JSON.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models

from pardalis.interop import ForeignModel, write_chameleon
from pardalis.interop.model import decoder_shapes, image_tokenizer_shapes
from pardalis.interop.tensors import LazyTensor, open_tensors
from pardalis.interop.vocabulary import SINGLE_NAMES, image_name, read_vocabulary
from pardalis.model import PRESETS
from pardalis.tokens import TextTokenizer
from pardalis.vq import chameleon

GIB = 2**30

# Name: source, result and command of each conversion.
STEPS = {
    "import from Hugging Face": ("hf", "bundle", "import {0} -o {1}"),
    "export to the release": ("bundle", "meta", "export {0} -o {1} --to meta"),
    "import from the release": ("meta", "bundle2", "import {0} -o {1}"),
    "export to Hugging Face": ("bundle2", "hf2", "export {0} -o {1} --to hf"),
}


def random_bf16(shape: tuple[int, ...], seed: int) -> LazyTensor:
    """Return random bits as finite numbers of absolute value below 2."""

    def sample() -> torch.Tensor:
        n = int(np.prod(shape))
        bits = np.frombuffer(np.random.default_rng(seed).bytes(2 * n), dtype=np.int16).copy()
        bits &= np.int16(-0x4001)  # without the exponent's highest bit: no infinity, no NaN
        return torch.from_numpy(bits).view(torch.bfloat16).reshape(shape)

    return LazyTensor(shape, torch.bfloat16, sample)


def tokenizer(size: int) -> str:
    """Return a tokenizer in Chameleon's layout: special, image, reserved and text tokens."""
    names = [SINGLE_NAMES[n] for n in ("bos", "pad", "eos", "unk")]
    names += [image_name(code) for code in range(chameleon().n_codes)]
    names += ["<eoss>", "<racm3:break>"]
    names += [f"<reserved{n:05}>" for n in range(8194, 8802)]
    words = [f"w{i}" for i in range(size - len(names))]
    vocab = {name: i for i, name in enumerate([*names, *words])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    return made.to_str()


def make_source(folder: Path, preset: str, n_layers: int | None) -> None:
    config = PRESETS[preset]()
    config = replace(config, n_layers=n_layers or config.n_layers, dropout=0.0)
    text = tokenizer(config.vocab_size)
    vocabulary = read_vocabulary(text, config.vocab_size, "the random tokenizer")
    foreign = vocabulary.foreign_ids or ()
    vq = chameleon()
    shapes, vq_shapes = decoder_shapes(config), image_tokenizer_shapes(vq)
    write_chameleon(
        ForeignModel(
            config=config,
            vocabulary=vocabulary,
            text_tokenizer=TextTokenizer(
                Tokenizer.from_str(text),
                [foreign[i] for i in vocabulary.text],
                foreign[vocabulary.unk_id],
            ),
            image_tokenizer=vq,
            decoder={n: random_bf16(s, i) for i, (n, s) in enumerate(shapes.items())},
            image_tensors={
                n: random_bf16(s, 10_000 + i) for i, (n, s) in enumerate(vq_shapes.items())
            },
            origin="benchmark",
        ),
        folder,
    )


def largest(folder: Path) -> int:
    files = folder.glob("*.safetensors")
    return max(tensor.n_bytes for file in files for tensor in open_tensors(file).values())


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measured(*arguments: str) -> tuple[float, float]:
    """Run a command of pardalis; return its seconds and its peak memory in GiB."""
    code = (
        "import resource, sys; from pardalis.cli.main import main; code = main(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, "--quiet", *arguments], check=True, stdout=subprocess.PIPE
    )
    os.sync()
    return time.perf_counter() - start, int(done.stdout.split()[-1]) / 2**20


def copied(folder: Path, to: Path) -> float:
    """Return the seconds of a plain copy of a folder, flushed to disk like a conversion."""
    start = time.perf_counter()
    shutil.copytree(folder, to)
    os.sync()
    seconds = time.perf_counter() - start
    shutil.rmtree(to)
    return seconds


def equal(one: Path, other: Path) -> int:
    """Return the number of tensors of a folder; fails unless the other has them all, equal."""
    tensors = [
        {n: t for path in sorted(f.glob("*.safetensors")) for n, t in open_tensors(path).items()}
        for f in (one, other)
    ]
    assert tensors[0].keys() <= tensors[1].keys()
    for name, tensor in tensors[0].items():
        assert torch.equal(tensor.read(), tensors[1][name].read()), name
    return len(tensors[0])


def echo(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--preset", choices=("chameleon_7b", "chameleon_34b"), default="chameleon_7b"
    )
    parser.add_argument("--layers", type=int, help="number of layers (default: the preset's)")
    parser.add_argument(
        "--folder",
        type=Path,
        help="where to create the working folder",
    )
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as work:
        folder = Path(work)
        source = folder / "hf"
        make_source(source, options.preset, options.layers)
        n_bytes = size_of(source)
        result: dict[str, object] = {
            "date": date.today().isoformat(),
            "machine": platform.machine(),
            "torch": torch.__version__,
            "shape": options.preset + (f", {options.layers} layers" if options.layers else ""),
            "gigabytes": round(n_bytes / 1e9, 2),
            "largest_tensor_gib": round(largest(source) / GIB, 2),
        }
        echo(json.dumps(result))
        copy = copied(source, folder / "copy")
        result["plain copy"] = {"seconds": round(copy, 1)}
        for name, (one, other, command) in STEPS.items():
            paths = [str(folder / one), str(folder / other)]
            seconds, peak = measured(*command.format(*paths).split())
            result[name] = {"seconds": round(seconds, 1), "peak_gib": round(peak, 2)}
            echo(
                f"{name:<26} {seconds:6.1f} s ({n_bytes / 1e6 / seconds:5.0f} MB/s; "
                f"plain copy {copy:.1f} s)   peak {peak:.2f} GiB"
            )
            if one != "hf":
                shutil.rmtree(folder / one)
        result["equal_tensors"] = equal(source, folder / "hf2")
        echo(f"{result['equal_tensors']} tensors equal after the round trip")
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
