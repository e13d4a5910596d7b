"""A whole run in seconds: twelve small images with captions, and the recipe that learns them.

And valid files of every format, which tests of hostile files change.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import hostile
import numpy as np
import PIL.Image
import pytest
import torch
from indexed_documents import write_source
from PIL import ImageDraw
from random_adapters import random_adapter
from shapes import decoder_config
from small_nets import write_clip

import pardalis
from pardalis.adapters import DoRAConfig, save_adapter
from pardalis.bundle import Bundle
from pardalis.data.shards import ShardWriter
from pardalis.interop import export_model
from pardalis.model import Decoder, initialise
from pardalis.retrieval import (
    ClipConfig,
    IndexConfig,
    RuleConfig,
    build_index,
    write_neighbours,
)
from pardalis.tokens import Encoded
from pardalis.train import checkpoint

COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (40, 70, 220), "grey": (120,) * 3}
SHAPES = ("ellipse", "rectangle", "line")

RECIPE = """
name = "tiny-run"

[[sources]]
name = "pairs"
reader = "jsonl"
path = "pairs.jsonl"
weight = 0.8
transforms = [{kind = "pair_order", order = "both"}]

[[sources]]
name = "pages"
reader = "jsonl"
path = "pages.jsonl"
weight = 0.2

[[heldout]]
name = "unseen"
reader = "jsonl"
path = "unseen.jsonl"

[text_tokenizer]
vocab_size = 300

[image_tokenizer]
preset = "tiny"
resolution = 16
channels = 16
z_channels = 16
code_width = 8
n_codes = 32

[image_tokenizer_training]
batch_images = 8
[image_tokenizer_training.schedule]
learning_rate = 1.5e-3
warmup_steps = 2

[image_tokenizer_loop]
steps = 12
save_every = 4
report_every = 4

[prepare]
row_tokens = 64

[model]
preset = "tiny"
d_model = 32
n_layers = 2
n_heads = 2
n_kv_heads = 2
d_ff = 64

[training]
batch_rows = 4
[training.schedule]
kind = "warmup_cosine"
learning_rate = 5e-3
warmup_steps = 2

[training_loop]
steps = 12
save_every = 4
report_every = 4
evaluate_every = 4

[sample]
images = 4
captions = 3
pages = 2
"""


def draw(colour: str, shape: str) -> PIL.Image.Image:
    image = PIL.Image.new("RGB", (20, 20), "white")
    getattr(ImageDraw.Draw(image), shape)((4, 4, 15, 15), fill=COLOURS[colour])
    return image


@pytest.fixture(scope="session")
def write_project() -> Callable[[Path], Path]:
    """A function that writes a recipe and its sources into a folder, and returns the folder."""
    return _write_project


def _write_project(folder: Path) -> Path:
    (folder / "images").mkdir()
    pairs, pages = [], []
    for n, (colour, shape) in enumerate((c, s) for c in COLOURS for s in SHAPES):
        name = f"{colour}-{shape}"
        draw(colour, shape).save(folder / "images" / f"{name}.png")
        image = {"image": f"images/{name}.png"}
        pairs.append({"name": name, "segments": [{"text": f"{colour} {shape}"}, image]})
        if n % 3 == 0:
            title, rest = {"text": f"{colour.title()}\n"}, {"text": "is a colour."}
            pages.append({"name": f"page-{colour}", "segments": [title, image, rest]})
    for name, records in (("pairs", pairs[:-2]), ("unseen", pairs[-2:]), ("pages", pages)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines)
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


@pytest.fixture
def project(tmp_path: Path, write_project: Callable[[Path], Path]) -> Path:
    """A folder with recipe.toml and its sources."""
    return write_project(tmp_path)


@pytest.fixture
def noise() -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8))


# ── valid files ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def good_bundle(codec, tmp_path_factory) -> Path:
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=40, d_model=32, n_layers=2, n_heads=4,
        n_kv_heads=2, d_ff=64, init_std=0.3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("hostile") / "bundle"
    Bundle(initialise(Decoder(config), 0).eval(), codec, {"recipe": "test"}, "# L\n").save(folder)
    return folder


@pytest.fixture(scope="session")
def good_adapter(good_bundle, tmp_path_factory) -> Path:
    """The folder of an adapter of that bundle's model, with rows for image tokens."""
    bundle, folder = pardalis.load(good_bundle), tmp_path_factory.mktemp("adapter") / "adapter"
    vocabulary = bundle.codec.vocabulary
    config = DoRAConfig(rank=2, rows=("image",))
    save_adapter(random_adapter(bundle.model, config, vocabulary), folder, vocabulary)
    return folder


@pytest.fixture(scope="session")
def good_export(good_bundle, tmp_path_factory) -> Path:
    """That bundle's decoder as a folder of Hugging Face's Llama."""
    folder = tmp_path_factory.mktemp("export") / "llama"
    export_model(good_bundle, folder, "hf")
    return folder


@pytest.fixture(scope="session")
def good_index(codec, tmp_path_factory) -> Path:
    """An index of documents, and candidates from it in its folder ``neighbours``."""
    folder = tmp_path_factory.mktemp("hostile")
    source = write_source(folder, "some", ["an owl", "a fox", "oak"], [0, 1, None])
    embedder = ClipConfig(folder=write_clip(folder / "clip"))
    index = build_index(folder / "index", [source], codec, IndexConfig(embedder=embedder))
    write_neighbours(
        folder / "index" / "neighbours", source, index, index.embedder(embedder), index.search(),
        RuleConfig(max_score=1.0), document_tokens=99, n_documents=3, seed=0,
    )  # fmt: skip
    return folder / "index"


@pytest.fixture(scope="session")
def good_shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "shards"
    folder.mkdir()
    writer = ShardWriter(folder, vocab_size=32, tokens_per_shard=8)
    for i in range(5):
        weights = np.full(4, 0.5 if i == 2 else 1.0, np.float32)
        writer.add(f"document {i}", Encoded(np.arange(4, dtype=np.uint16), weights))
    writer.finish(row_tokens=8, codec="codec")
    return folder


@pytest.fixture(scope="session")
def good_checkpoint(tmp_path_factory) -> Path:
    state = {"model": {"a": torch.ones(3, 2)}, "optimizer": {0: {"n": 3, "m": torch.ones(2)}}}
    return checkpoint.save(tmp_path_factory.mktemp("hostile"), 3, state, {"note": 1})


@pytest.fixture(scope="session")
def good_codes(good_bundle, codec, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "codes"
    folder.mkdir()
    settings = {
        "format": "pardalis-codes", "version": 2, "tokenizer": codec.image_tokenizer.fingerprint(),
        "source": "s", "images": 2, "images_per_part": 256,
    }  # fmt: skip
    (folder / "codes.json").write_text(json.dumps(settings))
    np.save(folder / "part-00000.npy", np.arange(8, dtype=np.uint16).reshape(2, 4))
    (folder / "part-00000.jsonl").write_text('"a"\n"../b"\n')
    return folder


@pytest.fixture
def bounded() -> Iterator[None]:
    """Bound time and memory of a test."""
    with hostile.limits(seconds=60):
        yield
