"""A bundle of random weights, and a recipe that trains an adapter beside it."""

from pathlib import Path

import PIL.Image
import pytest
import torch
from shapes import decoder_config

from pardalis.bundle import Bundle
from pardalis.model import Decoder, initialise

RECIPE = """
name = "adapted"
start_from = "base"

[[sources]]
name = "pairs"
reader = "jsonl"
path = "pairs.jsonl"

[prepare]
row_tokens = 32

[adapter]
rank = 4
rows = ["image", "begin_image"]

[training]
batch_rows = 4
statistics_every = 2
[training.schedule]
learning_rate = 1e-2
warmup_steps = 1

[training_loop]
steps = 6
save_every = 2
report_every = 1
"""


@pytest.fixture
def project(tmp_path, codec) -> Path:
    """A folder with a recipe, its source, and the bundle that it starts from."""
    torch.set_num_threads(1)
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=48, d_model=32, n_layers=2, n_heads=4,
        n_kv_heads=2, d_ff=48, init_std=0.2,
    )  # fmt: skip
    model = initialise(Decoder(config), 0)
    Bundle(model, codec, {"recipe": "base"}).save(tmp_path / "base")
    lines = []
    for n, word in enumerate(("owl", "cat", "fox", "oak", "old", "sat")):
        PIL.Image.new("RGB", (16, 16), (40 * n, 90, 250 - 40 * n)).save(tmp_path / f"{n}.png")
        text, image = f'{{"text": "an {word}"}}', f'{{"image": "{n}.png"}}'
        lines.append(f'{{"name": "{n}", "segments": [{text}, {image}]}}\n')
    (tmp_path / "pairs.jsonl").write_text("".join(lines))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path
