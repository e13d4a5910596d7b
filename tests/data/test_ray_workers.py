"""Workers on a Ray cluster make the shards of one process, and one that dies costs its block."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from shapes import decoder_config

from pardalis.bundle import Bundle
from pardalis.data import SourceConfig, Workers, prepare_source
from pardalis.errors import ConfigError
from pardalis.model import Decoder, initialise

SUPPORT = Path(__file__).parents[1] / "support"
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: make .venv/.cluster"
)


@pytest.fixture(scope="module")
def folder(codec, tmp_path_factory) -> Path:
    """A bundle with the codec, and eight captioned images."""
    folder = tmp_path_factory.mktemp("ray-sources")
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=64, d_model=32, n_layers=1, n_heads=2,
        n_kv_heads=1, d_ff=64,
    )  # fmt: skip
    Bundle(initialise(Decoder(config), 0).eval(), codec, {}).save(folder / "bundle")
    lines = []
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append({"segments": [{"text": f"owl {number}"}, {"image": f"{number}.png"}]})
    (folder / "notes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def contents(shards: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(shards.iterdir())}


@pytest.fixture(scope="module")
def messages(folder: Path) -> list[str]:
    """Prepare on a cluster, as it is and with a worker that dies; return what was warned of."""
    (folder / "marks").mkdir()
    (folder / "marks" / "left").write_text("1")
    with tempfile.TemporaryDirectory(prefix="ray-") as sessions:  # a short path, for its sockets
        environment = os.environ | {
            "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "RAY_TMPDIR": sessions,
            "RAY_raylet_start_wait_time_s": "200",  # on a busy machine
            "PYTHONPATH": os.pathsep.join(sys.path),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, SUPPORT / "ray_preparation.py", folder],
            env=environment, text=True, capture_output=True, timeout=500, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_ray
def test_actors_make_the_shards_of_one_process(folder: Path, messages, tmp_path: Path):
    from ray_preparation import prepare

    prepare(folder, tmp_path / "here", Workers(jobs=1))
    assert contents(folder / "plain") == contents(tmp_path / "here")
    assert len(messages) == 1


@needs_ray
def test_an_actor_that_dies_costs_its_block(folder: Path, messages, tmp_path: Path):
    from ray_preparation import prepare

    [message] = messages
    assert re.fullmatch(
        r"Ray worker [12] died \(process \d+ on [\d.]+\) while it encoded documents 4 to 6 of "
        r"source 'notes'; another does that again\.", message
    )  # fmt: skip
    prepare(folder, tmp_path / "here", Workers(jobs=1), str(folder / "marks"))
    assert contents(folder / "deadly") == contents(tmp_path / "here")


def test_without_ray_the_extra_is_named(folder: Path, codec, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    source = SourceConfig(name="notes", reader="jsonl", path=folder / "notes.jsonl")
    from pardalis.data import PrepareConfig

    with pytest.raises(ConfigError, match=r"needs Ray, .*pip install 'pardalis\[cluster\]'"):
        prepare_source(
            source, codec, tmp_path / "shards", PrepareConfig(row_tokens=48),
            workers=Workers(engine="ray"),
        )  # fmt: skip
    assert not list(tmp_path.iterdir())
