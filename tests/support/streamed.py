"""A decoder whose weights are streamed from a file, sharded over ranks.

torchrun --nproc-per-node 2 tests/support/streamed.py FOLDER
"""

import json
import resource
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from shapes import decoder_config
from torch import Tensor

from pardalis.model import Decoder
from pardalis.parallel import ParallelConfig, fill, join, layout_of, local_part, parallelise
from pardalis.weights import stream_weights

FILE = "model.safetensors"
# 209 MB in 18 matrices, the largest of 33 MB.
SHAPE = decoder_config(
    vocab_size=8192, context=8, d_model=1024, n_layers=2, n_heads=8, n_kv_heads=8, d_ff=4608
)
TENSOR_BYTES = 4 * SHAPE.vocab_size * SHAPE.d_model


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with join() as world:
        layout = layout_of(world, config := ParallelConfig())
        with torch.device("meta"):
            model = Decoder(SHAPE)
        parallelise(model, layout, config)
        before = resident_bytes()
        stream_weights(model, folder / FILE, fill)
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        own = sum(4 * local_part(parameter).numel() for parameter in model.parameters())
        stored, state = load_file(folder / FILE), model.state_dict()
        found = {
            "own_bytes": own,
            "peak_bytes": peak - before,
            "wrong": [name for name in stored if not torch.equal(whole(state[name]), stored[name])],
        }
        (folder / f"rank-{world.rank}-of-{world.size}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
