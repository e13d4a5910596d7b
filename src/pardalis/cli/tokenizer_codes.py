"""``pardalis tokenizer encode`` and ``decode``: images to codes on disk, and back."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pardalis.cli.common import (
    Commands,
    add_command,
    add_image_tokenizer,
    add_images,
    add_number,
    add_output,
    print_result,
    reader_of,
    set_run,
)
from pardalis.errors import ConfigError

if TYPE_CHECKING:
    from pardalis.data.codes import CodesReport, Worker
    from pardalis.vq import ImageTokenizer

_ENCODE = """\
Encode all images of a folder, a JSONL file or HTML pages: part-00000.npy and so on hold the codes,
files beside them the names of the images. Unreadable images are listed with the reason and do not
stop the command. Can be interrupted; the same command continues.

  pardalis tokenizer encode BUNDLE photos -o codes
  pardalis tokenizer encode BUNDLE photos -o codes --shard 0/2      one of two machines
  torchrun --nproc-per-node 8 -m pardalis tokenizer encode BUNDLE photos -o codes \\
      --device cuda --dtype bfloat16 --compile
"""

_DECODE = """\
Decode the codes that encode wrote into PNG files, named after the images. Can be interrupted; the
same command continues.

  pardalis tokenizer decode BUNDLE codes -o reconstructions
"""


def add(verbs: Commands) -> None:
    encode = add_command(verbs, "encode", "encode images as codes", _ENCODE)
    add_images(encode)
    add_output(encode, "CODES", "folder of the codes")
    add_number(encode, "--batch", "images encoded together (default: by the device)")
    _add_compute_options(encode)
    set_run(encode, _encode)

    decode = add_command(verbs, "decode", "decode codes to images", _DECODE)
    add_image_tokenizer(decode)
    decode.add_argument("codes", metavar="CODES", type=Path, help="folder that encode wrote")
    add_output(decode, "IMAGES", "folder of the images")
    _add_compute_options(decode)
    set_run(decode, _decode)


def _add_compute_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="precision of the convolutions; with bfloat16, for GPUs, some codes differ",
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the networks with torch.compile"
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="process the I-th of N shares, from 0 (default: all, or this rank's under torchrun)",
    )


def _encode(options: argparse.Namespace) -> None:
    from pardalis.data import SourceConfig
    from pardalis.data.codes import encode_source

    if options.batch is not None and options.batch < 1:
        raise ConfigError(f"--batch must be at least 1, got {options.batch}.")
    path = options.data.resolve()
    source = SourceConfig(name="images", reader=reader_of(options), path=path)
    _process(
        options,
        lambda tokenizer, worker: encode_source(
            tokenizer, source, options.output, options.image_fit, options.batch, worker
        ),
    )


def _decode(options: argparse.Namespace) -> None:
    from pardalis.data.codes import decode_codes

    _process(
        options,
        lambda tokenizer, worker: decode_codes(tokenizer, options.codes, options.output, worker),
    )


def _process(
    options: argparse.Namespace, process: "Callable[[ImageTokenizer, Worker], CodesReport]"
) -> None:
    """Load the image tokenizer, let it process a share of the images, and print the report."""
    import os
    from dataclasses import asdict

    import torch

    from pardalis.pipeline.find import find_image_tokenizer

    worker, device = _worker(options), options.device
    if device == "cuda" and worker.size > 1:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    tokenizer = find_image_tokenizer(options.tokenizer, device)
    tokenizer = tokenizer.compute_in(getattr(torch, options.dtype), options.compile)
    start = time.monotonic()
    report = process(tokenizer, worker)
    seconds = time.monotonic() - start
    done = report.images - report.unchanged
    rate = done / seconds
    shown = {"output": str(options.output), **asdict(report)}
    rejected = f"{report.rejected:,} of them rejected"
    if report.rejected:
        rejected += f", see {options.output}/part-*.rejected.jsonl"
    unchanged = f"  {report.unchanged:,} had been processed before\n" if report.unchanged else ""
    print_result(
        options,
        {**shown, "seconds": seconds, "images_per_second": rate},
        f"{options.output}: {report.images:,} images, {rejected}",
        f"{unchanged}  {done:,} in {seconds:.1f} s, {rate:.3g} per second",
    )


def _worker(options: argparse.Namespace) -> "Worker":
    from pardalis.data.codes import Worker

    if options.shard is None:
        return Worker.from_environment()
    rank, _, size = options.shard.partition("/")
    if not (rank.isdecimal() and size.isdecimal()):
        raise ConfigError(f"--shard must read I/N, such as 0/4, got {options.shard!r}.")
    return Worker(int(rank), int(size))
