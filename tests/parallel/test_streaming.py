"""Weights that are streamed from a file: equal to the bit, and no rank holds the whole file."""

import json
import os
import subprocess
import sys

import pytest
import streamed
import torch
from safetensors.torch import save_file

from pardalis.model import Decoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streamed")
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.rand(tensor.shape, generator=generator)
        for name, tensor in Decoder(streamed.SHAPE).state_dict().items()
    }
    save_file(weights, folder / streamed.FILE)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="reads resident memory from /proc")
@pytest.mark.parametrize("size", [1, 2])
def test_peak_memory_of_a_rank_is_little_more_than_its_shard(folder, size):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run = subprocess.run(
        [*command, "--nproc-per-node", str(size), streamed.__file__, str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    for rank in range(size):
        found = json.loads((folder / f"rank-{rank}-of-{size}.json").read_text())
        assert found["wrong"] == []
        assert found["own_bytes"] < 1.01 * (folder / streamed.FILE).stat().st_size / size
        assert found["peak_bytes"] < found["own_bytes"] + 2 * streamed.TENSOR_BYTES
