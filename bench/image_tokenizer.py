"""Chameleon's image tokenizer compared with transformers' ChameleonVQVAE and our plain network.

All have the same random weights and encode the same images of 512 pixels, in alternating rounds of
one process. Peak memory is measured in one process each, relative to the memory after loading
weights and encoding an image of 32 pixels. Prints all results, then a summary as one line of JSON;
``--out`` writes the results.

On a GPU ours and the peer compute in bfloat16, and the agreement is with our results in 32 bits.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

from decoder import alternate, product_gflops
from pardalis.vq import ImageTokenizer, chameleon

SIDE = chameleon().resolution


@torch.no_grad()
def randomise(module: nn.Module) -> nn.Module:
    """Fill a module with random weights that keep the variance of activations."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 4:
            values /= parameter[0].numel() ** 0.5
        elif parameter.ndim == 1:
            values = values * 0.3 + float("norm" in name and name.endswith("weight"))
        parameter.copy_(values)
    return module.eval()


def images(batch: int) -> Tensor:
    """Return pixels of smooth random colours at several scales."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.zeros(batch, 3, SIDE, SIDE)
    for side in (4, 16, 64, 256):
        coarse = torch.randn(batch, 3, side, side, generator=generator)
        pixels += F.interpolate(coarse, SIDE, mode="bicubic") * (2 / side) ** 0.5
    return pixels.tanh()


def peer_of(ours: ImageTokenizer) -> ChameleonVQVAE:
    """Build the peer with our weights."""
    with torch.device("meta"):
        peer = ChameleonVQVAE(ChameleonVQVAEConfig(resolution=SIDE))
    state = ours.state_dict()
    peer.load_state_dict({name: state[name] for name in peer.state_dict()}, assign=True)
    return peer.eval()


@torch.no_grad()
def place_codebook(ours: ImageTokenizer) -> None:
    """Place the codes near latents of images, so that many are used and many are close."""
    latents = ours.latents(images(4)[2:].to(ours.device)).permute(0, 2, 3, 1).flatten(0, 2)
    generator = torch.Generator().manual_seed(2)
    sampled = torch.randint(len(latents), (ours.config.n_codes,), generator=generator)
    jitter = torch.randn(len(sampled), latents.shape[1], generator=generator).to(ours.device)
    ours.quantize.embedding.weight.copy_(latents[sampled] + 0.3 * latents.std(0) * jitter)


def encoders(ours: ImageTokenizer, compiled: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the encoders that are compared, from pixels to codes."""
    peer, device = peer_of(ours), ours.device.type
    is_gpu = device != "cpu"
    ours.compute_in(torch.bfloat16 if is_gpu else torch.float32, compiled)

    def plain(pixels: Tensor) -> Tensor:
        return ours.quantize.codes(ours.latents(pixels))

    def peers(pixels: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16) if is_gpu else nullcontext():
            return peer.encode(pixels).image_tokens.view(len(pixels), -1)

    return {"pardalis": ours.encode, "pardalis, plain": plain, "transformers": peers}


@torch.enable_grad()  # selects the plain networks
def counted_gflops() -> dict[str, float]:
    """Return the GFLOP of encoding and decoding one image, counted by PyTorch."""
    with torch.device("meta"):
        tokenizer = ImageTokenizer(chameleon())
        pixels, codes = torch.empty(1, 3, SIDE, SIDE), torch.zeros(1, 1024, dtype=torch.long)
    found = {}
    for name, run in (
        ("encode", lambda: tokenizer.latents(pixels)),
        ("decode", lambda: tokenizer.decode(codes)),
    ):
        with FlopCounterMode(display=False) as counter:
            run()
        found[name] = counter.get_total_flops() / 1e9
    return found


def convolution_gflops() -> float:
    """Return the machine's rate of 3 x 3 convolutions with 128 channels."""
    x = torch.randn(1, 128, 64, 512).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(128, 128, 3, 3).contiguous(memory_format=torch.channels_last)
    seconds = alternate(10, convolution=lambda: F.conv2d(x, weight, padding=1))["convolution"]
    return 2 * 9 * 128**2 * 64 * 512 / min(seconds) / 1e9


def peak_mb(name: str, batch: int) -> float:
    """Return the peak memory that encoding adds to this process, by Linux's counters."""
    run = encoders(randomise(ImageTokenizer(chameleon())), compiled=False)[name]
    with torch.no_grad():
        run(torch.zeros(1, 3, 32, 32))
        pixels = images(batch)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = status_mb("VmRSS")
        run(pixels)
    return status_mb("VmHWM") - before


def status_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    [value] = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return int(value) / 1024


def peaks_mb(
    runs: dict[str, Callable[[], Tensor]], options: argparse.Namespace
) -> dict[str, float]:
    """Return the peak memory that each adds; on a CPU each in its own process."""
    found = {}
    for name, run in runs.items():
        if options.device == "cpu":
            command = [sys.executable, __file__, "--batch", str(options.batch), "--memory", name]
            shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[name] = float(shown)
            continue
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        found[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return found


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    ours = randomise(ImageTokenizer(chameleon())).to(options.device)
    place_codebook(ours)
    pixels = images(options.batch).to(options.device)
    exact = ours.encode(pixels)
    compared = encoders(ours, options.compile)
    runs = {name: partial(run, pixels) for name, run in compared.items()}
    found = {name: run() for name, run in runs.items()}
    gflops, n = counted_gflops(), options.batch
    rate, peak_rate = product_gflops(), convolution_gflops()
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if options.device != "cpu" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "batch": n,
        "dtype": str(ours.compute_dtype),
        "compiled": options.compile,
        "gflop_per_image": {name: round(value) for name, value in gflops.items()},
        "cpu_product_gflops": round(rate, 1),
        "cpu_convolution_gflops": round(peak_rate, 1),
        "codes_used": len(exact.unique()),
    }
    seconds = alternate(options.rounds, **{name: synchronise(run) for name, run in runs.items()})
    decoding = synchronise(lambda: ours.decode(exact))
    seconds |= alternate(options.rounds, **{"pardalis, decode": decoding})
    peaks = peaks_mb(runs, options)
    for name, values in seconds.items():
        median = statistics.median(values)
        work = gflops["decode" if "decode" in name else "encode"] * n
        result[name] = {
            "images_per_second": round(n / median, 3),
            "range": [round(n / max(values), 3), round(n / min(values), 3)],
            "gflops": round(work / median, 1),
        }
    for name, peak in peaks.items():
        agreement = (found[name] == exact).double().mean().item()
        result[name] |= {"peak_mb": round(peak), "agreement": agreement}
    result["summary"] = {
        "encode_ratio": round(ratio(seconds, "transformers"), 2),
        "encode_ratio_to_plain": round(ratio(seconds, "pardalis, plain"), 2),
        "encode_memory_ratio": round(peaks["pardalis"] / peaks["transformers"], 2),
        "decode_images_per_s": result["pardalis, decode"]["images_per_second"],
        "code_agreement": (found["pardalis"] == found["transformers"]).double().mean().item(),
    }
    return result


def ratio(seconds: dict[str, list[float]], other: str) -> float:
    """Return the speed-up of ours: the median over rounds of neighbouring measurements."""
    pairs = zip(seconds[other], seconds["pardalis"], strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def synchronise(run: Callable[[], Tensor]) -> Callable[[], None]:
    """Return a run that waits for the device."""

    def synchronised() -> None:
        run()[:1].cpu()

    return synchronised


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory", metavar="WHO", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(peak_mb(options.memory, options.batch))  # noqa: T201
        return
    result = measure(options)
    summary = result.pop("summary")
    text = json.dumps(result | summary, indent=2)
    print(text)  # noqa: T201
    print(json.dumps(summary))  # noqa: T201
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
